"""Writes betons: aside, validated, fsynced, renamed; a crash leaves no half beton and no stray process.

FFCV's DatasetWriter feeds worker processes and waits for their counter, so that one bad sample makes it wait for ever,
and its workers outlive it when it is killed. Here its parts run in this process, fed by threads that decode images:
an exception is an exception, there is nobody to outlive us, and the bytes do not depend on the number of workers.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from rich.progress import track

from dist_resnet.data import manifest
from dist_resnet.data.ffcv import DatasetWriter, IntField, MemoryAllocator, Reader, RGBImageField, handle_sample, resizer
from dist_resnet.data.manifest import Manifest


@dataclass(frozen=True)
class Samples:
    """One split: image i is read(i), uint8 (H, W, 3); labels: (N,) class numbers; name(i) is for error messages."""

    labels: np.ndarray
    read: Callable[[int], np.ndarray]
    name: Callable[[int], str] = "sample {}".format

    def subset(self, ids: np.ndarray) -> "Samples":
        return Samples(self.labels[ids], lambda i: self.read(ids[i]), lambda i: self.name(ids[i]))


@dataclass(frozen=True)
class Dataset:
    name: str
    classes: list[str]
    train: Samples
    test: Samples
    source: str
    mode: str = "raw"  # raw pixels or jpg
    max_resolution: int | None = None
    jpeg_quality: int = 90

    def fields(self) -> dict:
        image = RGBImageField(write_mode=self.mode, max_resolution=self.max_resolution, jpeg_quality=self.jpeg_quality)
        return {"image": image, "label": IntField()}


def prepare(dataset: Dataset, out: Path, val: int, seed: int) -> Manifest:
    """Write train, val (where val > 0) and test betons and their manifest into `out`.

    The manifest goes last: until it fits the files, `manifest.verify` refuses them."""
    out.mkdir(parents=True, exist_ok=True)
    train_ids, val_ids = hold_out(dataset.train.labels, val, seed)
    splits = {"train": dataset.train.subset(train_ids), "val": dataset.train.subset(val_ids), "test": dataset.test}
    written, shapes, colours = {}, set(), None
    for name, samples in splits.items():
        if len(samples.labels) == 0:
            continue
        path = out / f"{name}.beton"
        statistics = write(path, samples, dataset.fields(), f"{dataset.name} {name}")
        written[name] = manifest.describe_file(path, len(samples.labels))
        shapes |= statistics.shapes
        colours = colours or statistics
    result = Manifest(dataset.name, dataset.classes, list(*shapes) if len(shapes) == 1 else None, dataset.mode,
                      *colours.mean_std(), dataset.source, seed, written)
    result.save(out)
    return result


def hold_out(labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of (train, val): `count` samples, equally many of each class to within one, drawn with the seed; both sorted."""
    classes = np.unique(labels)
    if not 0 <= count < len(labels):
        raise ValueError(f"--val {count}: must be 0 or more and less than the {len(labels)} training images")
    draw = np.random.default_rng(seed)
    val: list[int] = []
    for position, c in enumerate(classes):
        quota = (count * (position + 1)) // len(classes) - (count * position) // len(classes)
        members = np.flatnonzero(labels == c)
        if quota >= len(members) and count:
            raise ValueError(f"--val {count}: class {c} has {len(members)} training images, too few to hold out {quota}")
        val.extend(draw.permutation(members)[:quota])
    held = np.sort(np.array(val, dtype=np.int64))
    return np.setdiff1d(np.arange(len(labels)), held), held


class Statistics:
    """Shapes seen, and a histogram of every channel: exact, whatever the order."""

    def __init__(self) -> None:
        self.shapes: set[tuple[int, ...]] = set()
        self.counts = np.zeros((3, 256), np.int64)

    def add(self, image: np.ndarray) -> None:
        self.shapes.add(image.shape)
        for channel in range(3):
            self.counts[channel] += np.bincount(image[..., channel].ravel(), minlength=256)

    def mean_std(self) -> tuple[list[float], list[float]]:
        values, n = np.arange(256) / 255, self.counts.sum(1)
        mean = self.counts @ values / n
        std = np.sqrt(self.counts @ values**2 / n - mean**2)
        return mean.tolist(), std.tolist()


def write(path: Path, samples: Samples, fields: dict, title: str) -> Statistics:
    """Write one beton aside, validate it, put it in place. A sample that cannot be read is a ValueError with its name."""
    aside = path.with_suffix(".beton.partial")
    statistics = Statistics()
    try:
        _write(aside, _read_ahead(samples, title), len(samples.labels), fields, statistics)
        _validate(aside, samples.labels)
        with open(aside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return statistics


def _write(path: Path, images: Iterable[tuple[np.ndarray, int]], count: int, fields: dict, statistics: Statistics) -> None:
    writer = DatasetWriter(str(path), fields, num_workers=1)
    writer.num_samples = count
    writer.prepare()
    metadata = np.frombuffer(writer.metadata_sm.buf, writer.metadata_type, count)
    allocator = MemoryAllocator(str(path), writer.data_region_start, writer.page_size)
    try:
        with allocator:
            for i, (image, label) in enumerate(images):
                image = resizer(image, fields["image"].max_resolution)
                statistics.add(image)
                handle_sample((image, label), i, metadata.dtype.names, metadata, allocator, fields)
        writer.finalize([allocator.allocations])
    finally:
        del metadata
        writer.metadata_sm.close()
        writer.metadata_sm.unlink()


def _read_ahead(samples: Samples, title: str, window: int = 256) -> Iterable[tuple[np.ndarray, int]]:
    """(image, label) in order, decoded by a few threads, no more than a window ahead; with a progress bar."""
    def read(i: int) -> np.ndarray:
        try:
            image = samples.read(i)
        except Exception as error:
            raise ValueError(f"cannot read {samples.name(i)}: {error}; remove or replace it") from error
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"{samples.name(i)} is {image.dtype} {image.shape}, not uint8 (height, width, 3)")
        return image

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        ids = iter(range(len(samples.labels)))
        pending = [pool.submit(read, i) for i in islice(ids, window)]
        for i in track(range(len(samples.labels)), title):
            image = pending[i % window].result()
            following = next(ids, None)
            if following is not None:
                pending[i % window] = pool.submit(read, following)
            yield image, int(samples.labels[i])


def _validate(path: Path, labels: np.ndarray) -> None:
    """Every pointer inside the data, every label as given, no byte missing. Raises RuntimeError."""
    reader = Reader(str(path))
    table = int(reader.header["alloc_table_ptr"])
    pointers = reader.metadata["f0"]["data_ptr"]
    sound = (reader.num_samples == len(labels) == len(reader.alloc_table)
             and table + reader.alloc_table.nbytes == path.stat().st_size
             and np.array_equal(reader.metadata["f1"].ravel(), labels)
             and np.isin(pointers, reader.alloc_table["ptr"]).all()
             and int((reader.alloc_table["ptr"] + reader.alloc_table["size"]).max()) <= table)
    if not sound:
        raise RuntimeError(f"{path} did not come out as written; is the disk full or faulty? Try again")
