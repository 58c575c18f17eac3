"""manifest.json: what a directory of betons holds, and the check that the files still hold it. No
torch, no FFCV."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

FILE = "manifest.json"
WHOLE = 2**30  # files up to this size are hashed whole; larger ones at both ends
EDGE = 2**26


@dataclass(frozen=True)
class Split:
    file: str
    samples: int
    bytes: int
    sha256: str  # of the whole file
    edges_sha256: str  # of its first and last 64 MiB: header, labels and pointers; allocation table


@dataclass(frozen=True)
class Manifest:
    dataset: str
    classes: list[str]
    shape: list[int] | None  # height, width, channels; null where images differ
    mode: str  # raw or jpg
    mean: list[float]  # per channel over the training images, in [0, 1]
    std: list[float]
    source: str
    val_seed: int
    splits: dict[str, Split]

    def save(self, directory: Path) -> None:
        aside = directory / f"{FILE}.partial"
        aside.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")
        aside.replace(directory / FILE)

    def digest(self) -> str:
        """Sixteen hex digits that differ where the betons differ."""
        return digest_of(json.dumps({k: s.sha256 for k, s in sorted(self.splits.items())}))


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load(directory: Path, dataset: str | None = None) -> Manifest:
    """Raises ValueError for a missing or unreadable manifest, or one of another data set than asked
    for."""
    path = directory / FILE
    remedy = (
        f"run `dist-resnet prepare {dataset or '<data set>'} --out {directory}`, or set --data.dir"
    )
    if not path.is_file():
        raise ValueError(
            f"data.dir = {str(directory)!r}: no betons there ({FILE} is missing); {remedy}"
        )
    try:
        fields = json.loads(path.read_text())
        manifest = Manifest(
            **fields
            | {"splits": {name: Split(**split) for name, split in fields["splits"].items()}}
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a manifest of this version ({error}); write the betons again with "
            f"`dist-resnet prepare {dataset or '<data set>'} --out {directory} --force`"
        ) from None
    if dataset is not None and manifest.dataset != dataset:
        raise ValueError(
            f"data.dir = {str(directory)!r} holds {manifest.dataset} ({len(manifest.classes)} "
            "classes), but "
            f"data.dataset = {dataset!r}: set --data.dir, or --data.dataset {manifest.dataset}"
        )
    return manifest


def describe_file(path: Path, samples: int) -> Split:
    return Split(path.name, samples, path.stat().st_size, _sha256(path), _edges_sha256(path))


def verify(directory: Path, manifest: Manifest, split: str, *, contents: bool = True) -> Path:
    """The path of a split's beton, once it is known to be the file that the manifest describes.

    contents=False compares the size only. Raises ValueError for a missing, truncated, corrupted or
    foreign file."""
    if split not in manifest.splits:
        raise ValueError(
            f"{directory} has no split {split!r}, only {', '.join(manifest.splits)}: "
            f"prepare it (`dist-resnet prepare {manifest.dataset} --val N`), or choose another"
        )
    entry = manifest.splits[split]
    path = directory / entry.file
    remedy = (
        f"write it again with `dist-resnet prepare {manifest.dataset} --out {directory} --force`"
    )
    if not path.is_file():
        raise ValueError(f"beton {str(path)!r} is missing though {FILE} names it; {remedy}")
    size = path.stat().st_size
    if size != entry.bytes:
        raise ValueError(
            f"beton {str(path)!r} is truncated or foreign: {size:,} bytes instead of "
            f"{entry.bytes:,}; {remedy}"
        )
    if contents:
        whole = size <= WHOLE
        found, expected = (
            (_sha256(path), entry.sha256) if whole else (_edges_sha256(path), entry.edges_sha256)
        )
        if found != expected:
            raise ValueError(
                f"beton {str(path)!r} is corrupted or foreign: sha256 {found[:12]} instead of "
                f"{expected[:12]}; {remedy}"
            )
    return path


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _edges_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read(EDGE))
        file.seek(max(0, path.stat().st_size - EDGE))
        digest.update(file.read())
    return digest.hexdigest()
