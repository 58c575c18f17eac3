"""Writes betons: aside, validated, fsynced, renamed; a crash leaves no half beton and no stray
process.

FFCV's DatasetWriter feeds worker processes and waits for their counter, so that one bad sample
makes it wait for ever,
and its workers outlive it when it is killed. Here its parts run in this process, fed with images
that encoding.py has
encoded: an exception is an exception, there is nobody to outlive us, and the bytes do not depend on
the number of CPUs.
"""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dist_resnet.data import manifest
from dist_resnet.data.ffcv import (
    DatasetWriter,
    IntField,
    MemoryAllocator,
    Reader,
    RGBImageField,
    handle_sample,
)
from dist_resnet.data.manifest import Manifest
from dist_resnet.prepare import encoding
from dist_resnet.prepare.encoding import Encoded, Encoding, Samples, Statistics


@dataclass(frozen=True)
class Dataset:
    name: str
    classes: list[str]
    train: Samples
    test: Samples
    source: str
    encoding: Encoding = field(default_factory=Encoding)
    # write the training images in a random order, so that neighbours in the file are of all classes
    shuffled: bool = False


def prepare(dataset: Dataset, out: Path, val: int, seed: int) -> Manifest:
    """Write train, val (where val > 0) and test betons and their manifest into `out`.

    The manifest goes last: until it fits the files, `manifest.verify` refuses them. The same call
    goes on with what a killed one has encoded."""
    out.mkdir(parents=True, exist_ok=True)
    train_ids, val_ids = hold_out(dataset.train.labels, val, seed)
    if dataset.shuffled:
        train_ids = np.random.default_rng(seed).permutation(train_ids)
    splits = {
        "train": dataset.train.subset(train_ids),
        "val": dataset.train.subset(val_ids),
        "test": dataset.test,
    }
    written: dict[str, manifest.Split] = {}
    shapes: set[tuple[int, int, int]] = set()
    mean: list[float] = []  # of the training images, the first that are written
    std: list[float] = []
    for name, samples in splits.items():
        if len(samples.labels) == 0:
            continue
        path = out / f"{name}.beton"
        statistics = write(path, samples, dataset, f"{dataset.name} {name}")
        written[name] = manifest.describe_file(path, statistics.samples)
        shapes |= statistics.shapes
        if not mean:
            mean, std = statistics.mean_std()
            _tell_of_constant_colours(std)
    result = Manifest(
        dataset.name,
        dataset.classes,
        list(shapes.pop()) if len(shapes) == 1 else None,
        dataset.encoding.mode,
        mean,
        std,
        dataset.source,
        seed,
        written,
    )
    result.save(out)
    for name in written:
        shutil.rmtree(_parts(out / f"{name}.beton"), ignore_errors=True)
    return result


def _tell_of_constant_colours(std: list[float]) -> None:
    for colour, value in zip(("red", "green", "blue"), std):
        if value <= encoding.LEAST_STD:
            print(
                f"note: {colour} is (nearly) the same in all training images; its standard "
                "deviation is taken as 1/255",
                flush=True,
            )


def hold_out(labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of (train, val): `count` samples, equally many of each class to within one, drawn with
    the seed; both sorted."""
    classes = np.unique(labels)
    if not 0 <= count < len(labels):
        raise ValueError(
            f"--val {count}: must be 0 or more and less than the {len(labels)} training images"
        )
    draw = np.random.default_rng(seed)
    val: list[int] = []
    for position, c in enumerate(classes):
        quota = (count * (position + 1)) // len(classes) - (count * position) // len(classes)
        members = np.flatnonzero(labels == c)
        if quota >= len(members) and count:
            raise ValueError(
                f"--val {count}: class {c} has {len(members)} training images, too few to hold "
                f"out {quota}"
            )
        val.extend(draw.permutation(members)[:quota])
    held = np.sort(np.array(val, dtype=np.int64))
    return np.setdiff1d(np.arange(len(labels)), held), held


def write(path: Path, samples: Samples, dataset: Dataset, title: str) -> Statistics:
    """Write one beton aside, validate it, put it in place. A sample that cannot be read is a
    ValueError with its name."""
    how = dataset.encoding
    statistics = encoding.encode(samples, dataset.source, how, _parts(path), title)
    if statistics.samples == 0:
        raise ValueError(f"{title}: not one image could be read")
    aside = path.with_suffix(".beton.partial")
    try:
        labels = _write(
            aside, encoding.encoded(_parts(path), len(samples.labels)), statistics.samples, how.mode
        )
        _validate(aside, labels)
        with open(aside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return statistics


def _parts(path: Path) -> Path:
    return path.with_suffix(".parts")


def _write(path: Path, samples: Iterable[Encoded], count: int, mode: str) -> np.ndarray:
    """Returns the labels."""
    image = RGBImageField()
    image.encode = lambda destination, sample, malloc: sample.store(destination, mode, malloc)
    fields = {"image": image, "label": IntField()}
    writer = DatasetWriter(str(path), fields, num_workers=1)
    writer.num_samples = count
    writer.prepare()
    metadata = np.frombuffer(writer.metadata_sm.buf, writer.metadata_type, count)
    allocator = MemoryAllocator(str(path), writer.data_region_start, writer.page_size)
    labels = np.empty(count, np.int64)
    try:
        with allocator:
            for i, sample in enumerate(samples):
                labels[i] = sample.label
                handle_sample(
                    (sample, sample.label), i, metadata.dtype.names, metadata, allocator, fields
                )
        writer.finalize([allocator.allocations])
    finally:
        del metadata
        writer.metadata_sm.close()
    return labels


def _validate(path: Path, labels: np.ndarray) -> None:
    """Every pointer inside the data, every label as given, no byte missing. Raises RuntimeError."""
    reader = Reader(str(path))
    table = int(reader.header["alloc_table_ptr"])
    pointers = reader.metadata["f0"]["data_ptr"]
    sound = (
        reader.num_samples == len(labels) == len(reader.alloc_table)
        and table + reader.alloc_table.nbytes == path.stat().st_size
        and np.array_equal(reader.metadata["f1"].ravel(), labels)
        and np.isin(pointers, reader.alloc_table["ptr"]).all()
        and int((reader.alloc_table["ptr"] + reader.alloc_table["size"]).max()) <= table
    )
    if not sound:
        raise RuntimeError(
            f"{path} did not come out as written; is the disk full or faulty? Try again"
        )
