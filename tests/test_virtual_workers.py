"""One result at any world size: the same virtual workers, run by any number of workers."""

import numpy as np
import pytest
import torch
from conftest import assert_identical, curves, wait_for_step

from dist_resnet.data import sampling
from dist_resnet.runtime import distributed
from dist_resnet.runtime.ordered_sum import OrderedSum, tree_sum
from dist_resnet.tracking.tracker import read_metrics

VIRTUAL = ("--batch.virtual_workers", 4)


def test_the_tree_adds_neighbours_first():
    """Checked against brackets written by hand, with numbers whose sum depends on them."""
    leaves = [torch.tensor([float(v)]) for v in (1e8, 1.0, -1e8, 1.0, 3e-8, 1e8, -1e8)]

    def added(count):
        return tree_sum([leaf.clone() for leaf in leaves[:count]]).item()

    a, b, c, d, e, f, g = (leaf[0] for leaf in leaves)
    assert added(1) == a and added(2) == a + b
    assert added(4) == ((a + b) + (c + d)).item() != (((a + b) + c) + d).item()
    assert added(6) == (((a + b) + (c + d)) + (e + f)).item()
    assert added(7) == (((a + b) + (c + d)) + ((e + f) + g)).item()


def test_ranks_hold_blocks_of_virtual_workers():
    order = sampling.epoch_order(0, 0, 100)
    whole = [sampling.shard(order, 24, v, 6).reshape(-1, 4) for v in range(6)]
    for size in (1, 2, 3, 6):
        parts = 6 // size
        for rank in range(size):
            own = sampling.shard(order, 24, rank, size, parts=parts).reshape(-1, parts, 4)
            for part in range(parts):
                assert np.array_equal(own[:, part], whole[rank * parts + part])


def ordered_sums() -> list[bytes]:
    """Of 12 and of 8 virtual workers' random numbers, twice each; in a worker."""
    found = []
    with distributed.connect("cpu", 60) as world:
        for virtual in (12, 8):
            parts = virtual // world.size
            ordered = OrderedSum(1000, parts, world)
            for step in range(2):
                for v in range(world.rank * parts, (world.rank + 1) * parts):
                    leaf = ordered.buffer()
                    generator = torch.Generator().manual_seed(99 * step + v)
                    ordered.add(leaf.copy_(torch.randn(1000, generator=generator)))
                found.append(ordered.total().numpy().tobytes())
    return found


@pytest.mark.slow
def test_every_rank_has_the_same_bits_for_any_number_of_ranks(workers):
    """Of 8 virtual workers by recursive doubling, of 12 by gathering."""
    alone = workers.call(ordered_sums)[0]
    assert len(set(alone)) == 4
    for size in (2, 4):
        assert workers.call(ordered_sums, size=size) == [alone] * size


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("--optim.lookahead", 4, "--train.cast", "together"),
        ("--train.precision", "fp32", "--optim.name", "adam", "--optim.lr", 0.002),
    ],
    ids=["bf16-sgd", "fp32-adam"],
)
def test_weights_and_metrics_do_not_depend_on_the_world_size(
    workers, small_path, tmp_path, settings
):
    """Four workers, preempted; one, preempted; two to the end: as one throughout, and as two."""
    overrides = (*VIRTUAL, *settings, "--train.all_reduce", "ordered")
    run_dir = tmp_path / "changing"
    for size, step in ((4, 8), (1, 18)):

        def reached(step=step):
            wait_for_step(run_dir, step)

        workers.train_until(small_path, run_dir, reached, *overrides, size=size)
    workers.train(small_path, run_dir, *overrides, size=2)
    for size in (1, 2):
        straight = workers.train(small_path, tmp_path / f"by{size}", *overrides, size=size)
        assert_identical(straight, run_dir)
        assert curves(straight) == curves(run_dir)


@pytest.mark.slow
def test_a_ring_gives_the_same_up_to_rounding(workers, small_path, tmp_path):
    """Virtual workers with gloo's own all-reduce."""
    settings = (*VIRTUAL, "--train.precision", "fp32", "--train.max_steps", 10)
    ring = ("--train.all_reduce", "flat")
    runs = [
        workers.train(small_path, tmp_path / "ordered", *settings, size=2),
        workers.train(small_path, tmp_path / "flat", *settings, *ring, size=2),
    ]
    ordered, flat = ([r["train/loss"] for r in read_metrics(d) if "lr" in r] for d in runs)
    assert ordered == pytest.approx(flat, rel=1e-3) and len(flat) == 5


def test_what_does_not_fit_is_refused(cli, small_path):
    """Three workers cannot run four virtual ones; without those, another world size is refused."""
    code, output = cli("train", "tiny.yaml", *VIRTUAL, "--workers-per-node", 3)
    assert code == 1 and "batch.virtual_workers = 4 cannot be run by 3 workers" in output, output
    assert "1, 2, 4" in output
    for words in (("--train.all_reduce", "buckets"), ("--train.gradient_type", "bf16")):
        code, output = cli("train", "tiny.yaml", *VIRTUAL, *words)
        assert code == 1 and f"{words[0].removeprefix('--')} = " in output, output
        assert "batch.virtual_workers" in output
    code, output = cli("train", "tiny.yaml", "--train.all_reduce", "ordered")
    assert code == 1 and "set --batch.virtual_workers too" in output, output
