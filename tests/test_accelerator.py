"""A training on a device that is not the CPU, without one: tensors on the wrong device, and what
makes the host wait."""

import fake_accelerator
import planted
import pytest
from conftest import assert_identical, curves, without_last_checkpoint
from worker_pool import WorkerPool

SETTINGS = ("--train.precision", "fp32", "--train.max_steps", 12, "--train.threads", 1)
MAY_WAIT = {
    "metrics.py:table": 6 + 2 + 4,  # lines of the log, evaluations, checkpoints
    "stop_vote.py:requested": 2 * 12,  # once a second, or a step where that is longer
    "loop.py:require_finite_weights": 4,
    "pace.py:slowest": 2 * 6,
    "distributed.py:barrier": 1,
    "normalise.py:<genexpr>": 2,  # mean and std, once
    "sampling.py:_colour": 1,
}


@pytest.fixture(scope="module")
def accelerated():
    """A worker of its own: the device must be there before the first backward pass."""
    pool = WorkerPool()
    yield pool
    pool.close()


@pytest.mark.slow
def test_a_training_on_an_accelerator_is_that_on_the_cpu_and_resumes(
    workers, accelerated, small_path, tmp_path
):
    """The same bits, since the fake one computes as the CPU does. Between two lines of the log the
    host waits for nothing."""
    cpu = tmp_path / "cpu"
    workers.make(small_path, cpu, *SETTINGS)
    workers.call(planted.by_torchs_operations, str(cpu))
    accelerated.make(small_path, tmp_path / "fake", *SETTINGS)
    (waits,) = accelerated.call(fake_accelerator.train, str(tmp_path / "fake"))
    assert waits.pop("stop_vote.py:requested") <= MAY_WAIT["stop_vote.py:requested"]
    assert waits == {k: n for k, n in MAY_WAIT.items() if not k.startswith("stop_vote")}
    assert_identical(cpu, tmp_path / "fake")
    assert curves(cpu) == curves(tmp_path / "fake")
    without_last_checkpoint(tmp_path / "fake", tmp_path / "resumed")
    accelerated.call(fake_accelerator.train, str(tmp_path / "resumed"))
    assert "resuming at step 10" in accelerated.output
    assert_identical(cpu, tmp_path / "resumed")


@pytest.mark.parametrize(
    "plant, where",
    [
        ("reads the loss", "loop.py:forward_and_backward"),
        ("asks for the norm", "loop.py:update"),
    ],
)
def test_a_step_that_waits_is_seen(accelerated, small_path, tmp_path, plant, where):
    accelerated.make(small_path, tmp_path / "run", *SETTINGS, "--train.max_steps", 3)
    (waits,) = accelerated.call(fake_accelerator.train, str(tmp_path / "run"), plant)
    assert waits[where] >= 3 and where not in MAY_WAIT


def test_a_tensor_on_the_wrong_device_is_seen(accelerated, small_path, tmp_path):
    accelerated.make(small_path, tmp_path / "run", *SETTINGS)
    with pytest.raises(RuntimeError, match="sub: expected all tensors on fake:0"):
        accelerated.call(fake_accelerator.train, str(tmp_path / "run"), "a mean on the CPU")
