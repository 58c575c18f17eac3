"""Images encoded in parallel for a beton, in chunks on disk: a preparation that is killed goes on
where it was."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

from dist_resnet.data import jpeg
from dist_resnet.data.ffcv import IMAGE_MODES, resizer

CHUNK = 512  # samples
LEAST_STD = 1 / 255  # of a colour: one that is constant is divided by a grey level, not by nothing


@dataclass(frozen=True)
class Samples:
    """One split: image i is read(i), uint8 (H, W, 3); labels: (N,) class numbers; name(i) is for
    error messages; stamp(i) is another where its file is another: of its size and time, or of its
    content."""

    labels: np.ndarray
    read: Callable[[int], np.ndarray]
    name: Callable[[int], str] = "sample {}".format
    stamp: Callable[[int], str] = str

    def subset(self, ids: np.ndarray) -> "Samples":
        return Samples(
            self.labels[ids],
            lambda i: self.read(ids[i]),
            lambda i: self.name(ids[i]),
            lambda i: self.stamp(ids[i]),
        )


@dataclass(frozen=True)
class Encoding:
    mode: str = "raw"  # raw pixels or jpg
    max_resolution: int | None = None  # pixels of the longer side; larger images are shrunk
    jpeg_quality: int = 90
    skip_broken: bool = (
        False  # leave an image out that cannot be read, and say so; else it is an error
    )


@dataclass(frozen=True)
class Encoded:
    """One sample. content: uint8 (bytes,)."""

    label: int
    height: int
    width: int
    content: np.ndarray

    def store(self, destination: np.ndarray, mode: str, malloc: Callable) -> None:
        """Into a beton, as FFCV's RGBImageField would."""
        destination["mode"], destination["height"], destination["width"] = (
            IMAGE_MODES[mode],
            self.height,
            self.width,
        )
        destination["data_ptr"], storage = malloc(self.content.nbytes)
        storage[:] = self.content


class Statistics:
    """Number of samples, shapes seen, labels, and a histogram of every channel: exact, whatever the
    order."""

    def __init__(self) -> None:
        self.samples, self.counts = 0, np.zeros((3, 256), np.int64)
        self.shapes: set[tuple[int, int, int]] = set()

    def mean_std(self) -> tuple[list[float], list[float]]:
        values, n = np.arange(256) / 255, self.counts.sum(1)
        mean = self.counts @ values / n
        std = np.sqrt(np.maximum(self.counts @ values**2 / n - mean**2, 0))
        return mean.tolist(), np.maximum(std, LEAST_STD).tolist()


def encode(samples: Samples, source: str, how: Encoding, folder: Path, title: str) -> Statistics:
    """Encode what the folder does not hold yet, on all CPUs. Raises ValueError with the name of an
    image that cannot be read.

    source: where the samples come from; chunks that were made of another one are not used."""
    identity = _identity(samples, source, how)
    if not (folder / identity).exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / identity).touch()
    statistics = Statistics()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for path, ids in track(_chunks(folder, len(samples.labels)), title):
            if not path.exists():
                _save(path, list(pool.map(lambda i: _encode(samples, i, how), ids)))
            with np.load(path) as chunk:
                statistics.samples += len(chunk["labels"])
                statistics.shapes |= {
                    (int(h), int(w), 3) for h, w in zip(chunk["heights"], chunk["widths"])
                }
                statistics.counts += chunk["counts"]
    return statistics


def encoded(folder: Path, samples: int) -> Iterator[Encoded]:
    """What `encode` has put into the folder for so many samples, in their order."""
    for path, _ in _chunks(folder, samples):
        with np.load(path) as chunk:
            content, ends = chunk["content"], np.cumsum(chunk["sizes"])
            for label, height, width, end, size in zip(
                chunk["labels"], chunk["heights"], chunk["widths"], ends, chunk["sizes"]
            ):
                yield Encoded(int(label), int(height), int(width), content[end - size : end])


def _chunks(folder: Path, samples: int) -> list[tuple[Path, range]]:
    return [
        (folder / f"{start:09d}.npz", range(start, min(start + CHUNK, samples)))
        for start in range(0, samples, CHUNK)
    ]


def _encode(samples: Samples, i: int, how: Encoding) -> tuple[Encoded, np.ndarray] | None:
    """(encoded sample, histogram (3, 256)); None for a broken image that is to be skipped."""
    try:
        image = samples.read(i)
    except Exception as error:
        if how.skip_broken:
            print(f"skipped: cannot read {samples.name(i)}: {error}", flush=True)
            return None
        raise ValueError(f"cannot read {samples.name(i)}: {error}; remove or replace it") from error
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"{samples.name(i)} is {image.dtype} {image.shape}, not uint8 (height, width, 3)"
        )
    image = resizer(image, how.max_resolution)
    counts = np.stack(
        [np.bincount(image[..., channel].ravel(), minlength=256) for channel in range(3)]
    )
    content = (
        jpeg.encode(image, how.jpeg_quality) if how.mode == "jpg" else np.ascontiguousarray(image)
    )
    return Encoded(
        int(samples.labels[i]), image.shape[0], image.shape[1], content.reshape(-1)
    ), counts


def _save(path: Path, found: list[tuple[Encoded, np.ndarray] | None]) -> None:
    kept = [item for item in found if item is not None]
    aside = path.with_suffix(".partial.npz")
    np.savez(
        aside,
        labels=np.array([e.label for e, _ in kept], np.int64),
        heights=np.array([e.height for e, _ in kept], np.int64),
        widths=np.array([e.width for e, _ in kept], np.int64),
        sizes=np.array([e.content.nbytes for e, _ in kept], np.int64),
        content=np.concatenate([np.empty(0, np.uint8), *(e.content for e, _ in kept)]),
        counts=sum((c for _, c in kept), np.zeros((3, 256), np.int64)),
    )
    os.replace(aside, path)


def _identity(samples: Samples, source: str, how: Encoding) -> str:
    """A file's name that stands for these samples, encoded so."""
    digest = hashlib.sha256(
        f"{source} {how} {CHUNK}".encode() + np.asarray(samples.labels, np.int64).tobytes()
    )
    for i in range(len(samples.labels)):
        digest.update(f"{samples.name(i)} {samples.stamp(i)}\n".encode())
    return f"of-{digest.hexdigest()[:16]}"
