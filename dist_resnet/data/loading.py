"""Which loader reads a training's betons, and from where: staged or shared, resident or streaming, whole images or crops."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dist_resnet.config import Config
from dist_resnet.data import manifest, resident, staging
from dist_resnet.data.manifest import Manifest
from dist_resnet.data.resident import ResidentLoader
from dist_resnet.data.streaming import Resize, StreamingLoader
from dist_resnet.distributed import World
from dist_resnet.schedule import Plan
from dist_resnet.stream import Augment

DataLoader = StreamingLoader | ResidentLoader


@contextmanager
def betons_of(config: Config, run_dir: Path, world: World) -> Iterator[tuple[Path, Manifest]]:
    """Where the betons are to be read, and what they hold."""
    source = Path(config.data.dir)
    betons = manifest.load(source, config.data.dataset)
    if not config.data.stage:
        yield source, betons
        return
    splits = tuple(split for split in ("train", config.data.evaluate_on) if split in betons.splits)
    with staging.staged(source, betons, splits, run_dir, world, warn=print if world.rank == 0 else lambda line: None) as directory:
        yield directory, betons


def loader(config: Config, data_dir: Path, betons: Manifest, split: str, batch_size: int, world: World, plan: Plan | None = None) -> DataLoader:
    """A verified beton's loader, streaming or resident; that of `train`, which needs the plan, draws crops and flips."""
    path, settings = manifest.verify(data_dir, betons, split), config.data
    if betons.shape is None and settings.resolution is None:
        raise ValueError(f"data.dir = {str(data_dir)!r} holds images of different sizes, which cannot be batched as they are: "
                         "set --data.resolution (224, say)")
    augment = resize = None
    if split == "train" and (settings.pad or settings.flip != "none"):
        fill = tuple(round(255 * value) for value in betons.mean)
        augment = Augment(config.train.seed, settings.pad, settings.flip, fill)
    if is_resident(config, betons, world):
        return ResidentLoader(path, batch_size, world.device, augment=augment, threads=settings.loader_threads)
    if settings.resolution is not None:
        size = settings.eval_resolution or settings.resolution
        resize = (Resize(plan.resolution_at, config.train.seed, settings.crop_area) if plan is not None
                  else Resize(lambda epoch: size, share=settings.eval_share))
    return StreamingLoader(path, batch_size, world.device, augment=augment, resize=resize, threads=settings.loader_threads,
                           batches_ahead=settings.batches_ahead, timeout_s=settings.timeout_s, os_cache=settings.order == "random")


def is_resident(config: Config, betons: Manifest, world: World) -> bool:
    """Whether the betons are to lie on the device. Raises ValueError where that is asked for and cannot be."""
    if config.data.residency == "stream" or config.data.resolution is not None or config.data.order != "random":
        return False
    copies = 1 if world.device.type == "cuda" else world.local_size
    obstacle = resident.obstacle(betons, ("train", config.data.evaluate_on), world.device, copies)
    if obstacle and config.data.residency == "device":
        raise ValueError(f"data.residency = 'device': {obstacle}; use --data.residency stream, or auto")
    return obstacle is None
