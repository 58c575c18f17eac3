"""What all ranks decide together, and what one of them does for the others."""

import pickle
import time
from unittest import mock

from dist_resnet import worker
from dist_resnet.acceleration import fast_paths
from dist_resnet.config import config_file, for_device
from dist_resnet.data import loader, manifest, resident_loader
from dist_resnet.runtime import distributed
from dist_resnet.runtime.distributed import World
from dist_resnet.runtime.signals import StopSignal
from dist_resnet.training import evaluation, loop
from dist_resnet.training.progress import Progress


def built(config, run_dir, world, betons, data_dir):
    config, _ = worker.settle(config, betons, world)
    return worker.build(config, run_dir, data_dir, betons, world, StopSignal(), Progress())


def residencies(run_dir) -> list[str]:
    """In a worker of two: what becomes of each setting where rank 1 has no room."""
    config = config_file.load(run_dir / "config.yaml")
    with (
        distributed.connect("cpu", 60) as world,
        loader.betons_of(config, run_dir, world) as (_, betons),
    ):
        found = []
        for setting in ("auto", "device"):
            asked = for_device.with_residency(config, setting)
            for share in (resident_loader.SHARE, 0 if world.rank == 1 else 1):
                with mock.patch.object(resident_loader, "SHARE", share):
                    try:
                        settled = loader.settle_residency(asked, betons, world)
                        found.append(settled.data.residency)
                    except ValueError as error:
                        found.append(str(error))
        return found


def test_betons_lie_on_every_ranks_device_or_on_none(workers, small_path, tmp_path):
    workers.make(small_path, tmp_path / "run")
    first, second = workers.call(residencies, tmp_path / "run", size=2)
    assert first == second and first[:3] == ["device", "stream", "device"]
    assert "data.residency = 'device': " in first[3] and "(rank 1 on " in first[3]


def hashed(run_dir) -> int:
    """In a worker: how many files it has read for their checksums."""
    config, reads = config_file.load(run_dir / "config.yaml"), []
    sha256 = manifest._sha256
    with (
        mock.patch.object(manifest, "_sha256", lambda path: (reads.append(path), sha256(path))[1]),
        distributed.connect("cpu", 60) as world,
        loader.betons_of(config, run_dir, world) as (data_dir, betons),
    ):
        built(config, run_dir, world, betons, data_dir)
        world.barrier()
    return len(reads)


def test_one_rank_of_a_node_reads_the_betons_for_their_checksums(workers, small_path, tmp_path):
    workers.make(small_path, tmp_path / "run")
    assert workers.call(hashed, tmp_path / "run", size=2) == [2, 0]


def worst_images(run_dir) -> tuple[list[tuple[int, bytes]], int]:
    """In a worker: the worst five, and the largest that a rank has handed to another's pickle."""
    config, sizes = config_file.load(run_dir / "config.yaml"), [0]
    gather = World.gather

    def measured(world, value):
        sizes.append(len(pickle.dumps(value)))
        return gather(world, value)

    with (
        distributed.connect("cpu", 60) as world,
        loader.betons_of(config, run_dir, world) as (data_dir, betons),
    ):
        run = built(config, run_dir, world, betons, data_dir)
        with mock.patch.object(World, "gather", measured):
            found = evaluation.top_losses(
                run.model.module, run.eval_data, run.normalise, world, "none", 5
            )
        world.barrier()
    return [(w.sample, w.image.tobytes()) for w in found], max(sizes)


def test_of_the_worst_images_only_those_that_are_shown_travel(workers, small_path, tmp_path):
    workers.make(small_path, tmp_path / "run")
    (alone, _), *_ = workers.call(worst_images, tmp_path / "run", size=1)
    found = workers.call(worst_images, tmp_path / "run", size=3)
    assert len(alone) == 5 and len(set(alone)) == 5
    for images, largest in found:
        assert images == alone and largest < len(alone[0][1])  # scores, and no image


def said_of_the_slowest(run_dir) -> list[str]:
    """In a worker of two, after the one all-reduce was refused: rank 1's forward pass is slow."""
    config, said = config_file.load(run_dir / "config.yaml"), []
    with (
        distributed.connect("cpu", 60) as world,
        loader.betons_of(config, run_dir, world) as (data_dir, betons),
    ):
        run = built(config, run_dir, world, betons, data_dir)
        settled = for_device.settle(run.config, "cpu")
        fast_paths.one_all_reduce(run, settled, mock.Mock()).off()
        run.tracker.say, run.tracker.log = said.append, lambda *_: None
        run.model.module.register_forward_pre_hook(lambda *_: time.sleep(1.5 * world.rank))
        loop.fit(run)
        world.barrier()
        del run
    return said


def test_the_pace_is_of_the_network_that_is_trained(workers, small_path, tmp_path):
    words = ("--train.max_steps", 2, "--train.evaluate_every", "9 steps")
    workers.make(small_path, tmp_path / "run", *words)
    said = workers.call(said_of_the_slowest, tmp_path / "run", size=2)[0]
    assert any(line.startswith("rank 1 is the slowest") for line in said), said
