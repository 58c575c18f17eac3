"""Which loader reads a training's betons, and from where: staged or shared, resident or streaming,
whole images or crops."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dist_resnet.config import Config, for_device
from dist_resnet.config.schedule import Plan
from dist_resnet.data import manifest, resident_loader, staging
from dist_resnet.data.manifest import Manifest
from dist_resnet.data.resident_loader import ResidentLoader
from dist_resnet.data.sampling import Augment
from dist_resnet.data.streaming_loader import Batch, Resize, StreamingLoader
from dist_resnet.runtime import slurm_job
from dist_resnet.runtime.distributed import World

DataLoader = StreamingLoader | ResidentLoader
__all__ = ["Batch", "DataLoader", "betons_of", "eval_loader", "settle_residency", "train_loader"]


@contextmanager
def betons_of(config: Config, run_dir: Path, world: World) -> Iterator[tuple[Path, Manifest]]:
    """Where the betons are to be read, and what they hold."""
    source = Path(config.data.dir)
    betons = manifest.load(source, config.data.dataset)
    if not config.data.stage:
        yield source, betons
        return
    wanted = ("train", config.data.evaluate_on, config.train.final_split)
    splits = tuple(split for split in betons.splits if split in wanted)
    with staging.staged(
        source, betons, splits, run_dir, world, warn=print if world.rank == 0 else lambda line: None
    ) as directory:
        yield directory, betons


def train_loader(
    config: Config, data_dir: Path, betons: Manifest, world: World, plan: Plan
) -> DataLoader:
    """The training images, with their crops and flips drawn."""
    data = config.data
    augment = resize = None
    if data.pad or data.flip != "none" or data.cutout:
        red, green, blue = (round(255 * value) for value in betons.mean)
        augment = Augment(config.train.seed, data.pad, data.flip, (red, green, blue), data.cutout)
    if data.resolution is not None:
        resize = Resize(plan.resolution_at, config.train.seed, data.crop_area)
    return _loader(config, data_dir, betons, "train", plan.local_batch, world, augment, resize)


def eval_loader(
    config: Config, data_dir: Path, betons: Manifest, split: str, world: World
) -> DataLoader:
    """The images of a split as they are, or their central crops."""
    data, resize = config.data, None
    if data.resolution is not None:
        size = data.eval_resolution or data.resolution
        resize = Resize(lambda epoch: size, share=data.eval_share)
    return _loader(config, data_dir, betons, split, config.train.eval_batch, world, None, resize)


def _loader(
    config: Config,
    data_dir: Path,
    betons: Manifest,
    split: str,
    batch_size: int,
    world: World,
    augment: Augment | None,
    resize: Resize | None,
) -> DataLoader:
    """A verified beton's loader, streaming or resident. The first rank of a node reads all of the
    file for that; the others trust it, which ends the training where it must."""
    path = manifest.verify(data_dir, betons, split, contents=world.local_rank == 0)
    data = config.data
    assert data.residency != "auto", "settle_residency has not been called"
    if betons.shape is None and data.resolution is None:
        raise ValueError(
            f"data.dir = {str(data_dir)!r} holds images of different sizes, which cannot be "
            "batched as they are: "
            "set --data.resolution (224, say)"
        )
    if data.residency == "device":
        return ResidentLoader(
            path, batch_size, world.device, augment=augment, threads=data.loader_threads
        )
    return StreamingLoader(
        path,
        batch_size,
        world.device,
        augment=augment,
        resize=resize,
        threads=data.loader_threads,
        batches_ahead=data.batches_ahead,
        timeout_s=data.timeout_s,
        os_cache=data.order == "random",
    )


def settle_residency(config: Config, betons: Manifest, world: World) -> Config:
    """The configuration with data.residency as every rank has it: on the device only where there is
    room on all of them, since loaders differ in the collectives that follow. Every rank calls.

    Raises ValueError, on every rank, where "device" is asked for and one cannot."""
    data = config.data
    if data.residency == "stream" or data.resolution is not None or data.order != "random":
        return for_device.with_residency(config, "stream")
    copies = 1 if world.device.type == "cuda" else world.local_size
    obstacle = resident_loader.obstacle(betons, ("train", data.evaluate_on), world.device, copies)
    everyones = world.gather((slurm_job.node(), obstacle))
    obstacles = [(rank, *found) for rank, found in enumerate(everyones) if found[1]]
    if obstacles and data.residency == "device":
        rank, node, told = obstacles[0]
        raise ValueError(
            f"data.residency = 'device': {told} (rank {rank} on {node}); use --data.residency "
            "stream, or auto"
        )
    return for_device.with_residency(config, "stream" if obstacles else "device")
