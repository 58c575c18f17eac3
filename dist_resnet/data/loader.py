"""Which loader reads a training's betons, and from where: staged or shared, resident or streaming,
whole images or crops."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dist_resnet.config import Config
from dist_resnet.config.schedule import Plan
from dist_resnet.data import manifest, resident_loader, staging
from dist_resnet.data.manifest import Manifest
from dist_resnet.data.resident_loader import ResidentLoader
from dist_resnet.data.sampling import Augment
from dist_resnet.data.streaming_loader import Batch, Resize, StreamingLoader
from dist_resnet.runtime.distributed import World

DataLoader = StreamingLoader | ResidentLoader
__all__ = ["Batch", "DataLoader", "betons_of", "eval_loader", "train_loader"]


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
    """A verified beton's loader, streaming or resident."""
    path, data = manifest.verify(data_dir, betons, split), config.data
    if betons.shape is None and data.resolution is None:
        raise ValueError(
            f"data.dir = {str(data_dir)!r} holds images of different sizes, which cannot be "
            "batched as they are: "
            "set --data.resolution (224, say)"
        )
    if is_resident(config, betons, world):
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


def is_resident(config: Config, betons: Manifest, world: World) -> bool:
    """Whether the betons are to lie on the device. Raises ValueError where that is asked for and
    cannot be."""
    if (
        config.data.residency == "stream"
        or config.data.resolution is not None
        or config.data.order != "random"
    ):
        return False
    copies = 1 if world.device.type == "cuda" else world.local_size
    obstacle = resident_loader.obstacle(
        betons, ("train", config.data.evaluate_on), world.device, copies
    )
    if obstacle and config.data.residency == "device":
        raise ValueError(
            f"data.residency = 'device': {obstacle}; use --data.residency stream, or auto"
        )
    return obstacle is None
