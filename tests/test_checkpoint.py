"""Checkpoints survive damage and crashes, and are written beside the training."""

import time
import warnings
from unittest import mock

import pytest
import torch

from dist_resnet.runtime.distributed import World
from dist_resnet.weights import checkpoint
from dist_resnet.weights.writer import Writer


class Alone(World):
    """A world of one, without a process group: the one call that checkpoints make of it."""

    def from_rank0(self, value):
        return value


ALONE = Alone(0, 1, torch.device("cpu"))


def save(directory, step, best=False, keep=2):
    checkpoint.save(
        directory,
        {"step": step, "weights": torch.full((1000,), float(step))},
        step,
        best,
        keep,
        ALONE,
    )


def names(directory):
    return sorted(p.name for p in directory.iterdir())


def test_the_last_two_and_the_best_are_kept(tmp_path):
    assert checkpoint.load_latest(tmp_path, ALONE) is None
    for step in (10, 20, 30, 40):
        save(tmp_path, step, best=step == 20)
    kept = [f"step_000000{s}.pt" for s in (20, 30, 40)]
    assert names(tmp_path) == sorted(["BEST", "LATEST", *kept, *(f"{k}.sha256" for k in kept)])
    assert checkpoint.load_latest(tmp_path, ALONE)["step"] == 40
    assert checkpoint.load(checkpoint.named(tmp_path, "BEST"))["weights"][0] == 20
    save(tmp_path, 50, keep=3)
    assert len(list(tmp_path.glob("*.pt"))) == 4 and (tmp_path / "step_00000030.pt").exists()


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-10], lambda b: b[:500] + bytes([b[500] ^ 1]) + b[501:], lambda b: b""]
)
def test_a_damaged_latest_falls_back_with_a_warning(tmp_path, damage):
    for step in (10, 20):
        save(tmp_path, step)
    path = tmp_path / checkpoint.name_of(20)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="step_00000020.pt is damaged"):
        assert checkpoint.load_latest(tmp_path, ALONE)["step"] == 10
    with pytest.raises(ValueError, match=r"step_00000020.pt is damaged or missing"):
        checkpoint.named(tmp_path, "LATEST")


def test_when_all_are_damaged_nothing_starts_over_silently(tmp_path):
    save(tmp_path, 10)
    (tmp_path / checkpoint.name_of(10)).write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match="delete that directory to start over"):
            checkpoint.load_latest(tmp_path, ALONE)


def test_a_crash_at_any_write_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    """Every fsync and every rename in turn is the last thing that happens."""
    save(tmp_path, 10)

    class Crash(BaseException):
        pass

    survived = []
    for moment in range(20):
        calls = iter(range(100))

        def dying(call, calls=calls, moment=moment):
            def wrapped(*arguments):
                if next(calls) == moment:
                    raise Crash
                return call(*arguments)

            return wrapped

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.os, "replace", dying(checkpoint.os.replace))
            patch.setattr(checkpoint.os, "fsync", dying(checkpoint.os.fsync))
            try:
                save(tmp_path, 20 + moment)
                crashed = False
            except Crash:
                crashed = True
        survived.append(checkpoint.load_latest(tmp_path, ALONE)["step"])
        if not crashed:
            break
    assert not crashed and len(survived) > 5
    assert survived == sorted(survived) and survived[-1] == 20 + moment


def write(writer, step, weights, last=False):
    writer.save({"step": step, "weights": weights}, step, best=False, last=last)


def test_what_is_written_beside_the_training_is_the_state_of_its_step(tmp_path):
    """The weights change while their checkpoint waits for a slow disk."""
    weights, said = torch.zeros(1000), []
    writer = Writer(tmp_path, 5, 0.0, ALONE, said.append)
    with mock.patch.object(checkpoint.os, "fsync", side_effect=lambda handle: time.sleep(0.05)):
        for step in (10, 20, 30):
            weights.fill_(step)
            write(writer, step, weights)
            weights.fill_(-1)
        assert writer.wait()
    for step in (10, 20, 30):
        saved = checkpoint.load(tmp_path / checkpoint.name_of(step))
        assert saved["step"] == step and (saved["weights"] == step).all()
    assert said == []


def test_a_checkpoint_that_cannot_be_written_is_said_and_only_the_last_is_an_error(tmp_path):
    said = []
    writer = Writer(tmp_path, 2, 0.0, ALONE, said.append)
    with mock.patch.object(checkpoint.os, "fsync", side_effect=OSError("disk full")):
        write(writer, 10, torch.zeros(3))
        assert not writer.wait()
        assert len(said) == 1 and "step 10" in said[0] and "training goes on" in said[0]
        write(writer, 20, torch.zeros(3), last=True)
        with pytest.raises(OSError, match="disk full"):
            writer.wait()
    write(writer, 30, torch.zeros(3))
    assert writer.wait() and checkpoint.load_latest(tmp_path, ALONE)["step"] == 30
