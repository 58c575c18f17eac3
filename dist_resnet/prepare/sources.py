"""Where images come from: CIFAR in every form that people have it, and trees of images by class."""

import io
import lzma
import pickle
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from dist_resnet.prepare import download
from dist_resnet.prepare.betons import Dataset
from dist_resnet.prepare.encoding import Encoding, Samples
from dist_resnet.weights import pixels

PLACE = re.compile(r"(?:^|/)(train|test|val)/([^/]+)/([^/]+)$", re.IGNORECASE)
HOME = "https://www.cs.toronto.edu/~kriz"  # of CIFAR
ARCHIVES = ("*.tar", "*.tar.xz", "*.tar.gz", "*.tgz")


@dataclass(frozen=True)
class OfficialForm:
    """How a CIFAR data set's own archive of python pickles is laid out."""

    folder: str
    archive: str
    meta: str
    names: str  # of the classes, in `meta`
    labels: str
    train: tuple[str, ...]
    test: str
    md5: str  # of the archive


CIFAR = {
    "cifar10": OfficialForm(
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        meta="batches.meta",
        names="label_names",
        labels="labels",
        train=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test="test_batch",
        md5="c58f30108f718f92721af3b95e74349a",
    ),
    "cifar100": OfficialForm(
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        meta="meta",
        names="fine_label_names",
        labels="fine_labels",
        train=("train",),
        test="test",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
    ),
}


# what CIFAR's pickles ask for
PLAIN = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class Unavailable(RuntimeError):
    """The data set is nowhere to be had: the one failure for which the quickstart takes another."""

    exit_code = 69  # EX_UNAVAILABLE


def cifar(name: str, source: Path | str | None, data_folder: Path) -> Dataset:
    """CIFAR-10 or CIFAR-100 from `source`, else from a copy in data_folder, else downloaded there.

    source: an ImageFolder tree, a folder of archives of one, the folder or the archive of the
    official python batches, or the URL of that archive. Raises ValueError for a source that holds
    none of these, Unavailable where nothing can be had."""
    form = CIFAR[name]
    if source is None:
        copies = [p for p in (data_folder / form.folder, data_folder / form.archive) if p.exists()]
        source = copies[0] if copies else _download(name, data_folder)
    elif "://" in str(source):
        source = _download(name, data_folder, str(source))
    source = Path(source)
    if not source.exists():
        raise ValueError(f"--source {source}: no such file or folder")
    if source.name == form.archive:
        return _from_batches(name, _files_of_archive(source), source)
    if source.is_dir():
        for folder in (source, source / form.folder):
            if (folder / form.meta).exists():
                return _from_batches(
                    name,
                    ((p.name, p.read_bytes()) for p in folder.iterdir() if p.is_file()),
                    source,
                )
        if (source / form.archive).exists():
            return _from_batches(name, _files_of_archive(source / form.archive), source)
        archives = sorted(path for pattern in ARCHIVES for path in source.glob(pattern))
        files = (
            _files_of_tree(source)
            if (source / "train").is_dir()
            else (f for a in archives for f in _files_of_archive(a))
        )
        return _from_pngs(name, files, source)
    return _from_pngs(name, _files_of_archive(source), source)


def imagefolder(
    name: str, source: Path, how: Encoding, share: float | None = None, seed: int = 0
) -> Dataset:
    """A tree train/<class>/<image> and test/ or val/ likewise; images are read while they are
    written, in a random order.

    how.mode: raw, jpg, or auto: raw where the first images of the training set are all of one size
    up to 64 pixels. share: of a folder <class>/<image>, or a train/ alone, this share of each
    class, drawn with the seed, becomes test."""
    train, test, classes = _splits(source, share, seed)
    if how.mode == "auto":
        sizes = {_size(path) for path, _ in train[:100]} - {None}
        small = len(sizes) == 1 and all(size is not None and max(size) <= 64 for size in sizes)
        how = replace(how, mode="raw" if small else "jpg")
    return Dataset(
        name, classes, _from_paths(train), _from_paths(test), str(source), how, shuffled=True
    )


Entries = list[tuple[Path, int]]  # (image, label)


def _splits(source: Path, share: float | None, seed: int) -> tuple[Entries, Entries, list[str]]:
    if not source.is_dir():
        raise ValueError(f"--source {source}: no such folder")
    evaluation = next((s for s in ("test", "val") if (source / s).is_dir()), None)
    has_train = (source / "train").is_dir()
    if share is not None and evaluation:
        raise ValueError(f"--split {share}: {source} has {evaluation}/ already; leave --split out")
    if share is None and not (has_train and evaluation):
        raise ValueError(
            f"--source {source}: must hold train/<class>/<image> and test/<class>/<image> (or "
            "val/); of a folder <class>/<image>, --split 0.1 takes a tenth of each class as test"
        )
    root = source / "train" if has_train else source
    hidden = pixels.hidden
    classes = sorted(p.name for p in root.iterdir() if p.is_dir() and not hidden(Path(p.name)))
    if share is None:
        return _tree(root, classes), _tree(source / str(evaluation), classes), classes
    train, test, draw = [], [], np.random.default_rng(seed)
    everything = _tree(root, classes)
    for label, name in enumerate(classes):
        members = [entry for entry in everything if entry[1] == label]
        count = max(1, round(share * len(members)))
        if count >= len(members):
            raise ValueError(
                f"--split {share}: class {name} has {len(members)} images, of which {count} would "
                "be test; add images, or lower --split"
            )
        chosen = set(draw.permutation(len(members))[:count].tolist())
        test += [entry for i, entry in enumerate(members) if i in chosen]
        train += [entry for i, entry in enumerate(members) if i not in chosen]
    return train, test, classes


def _tree(folder: Path, classes: list[str]) -> Entries:
    """(image, label) of folder/<class>/<image>. Says what it leaves out; raises ValueError for a
    class without images, or one that is not among `classes`."""
    known, left_out = pixels.suffixes(), []
    found: dict[str, list[Path]] = {c: [] for c in classes if (folder / c).is_dir()}
    for path in sorted(folder.glob("*/*")):
        place = path.relative_to(folder)
        if pixels.hidden(place) or path.suffix.lower() not in known:
            left_out.append(place)
        else:
            found.setdefault(place.parts[0], []).append(path)
    told = pixels.left_out(left_out)
    if unknown := sorted(set(found) - set(classes)):
        raise ValueError(f"{folder}: classes {', '.join(unknown)} are not in train/")
    empty = [c for c, paths in found.items() if not paths]
    if empty or not found:
        raise ValueError(
            f"{folder}: "
            + (f"no image of class {', '.join(empty)}" if empty else "holds no <class>/<image>")
            + (f"; there are {told}" if told else "")
            + "; images are files that Pillow opens (.png, .jpg, .tif, .webp ...)"
        )
    if told:
        print(f"{folder}: left out {told}", flush=True)
    return [(path, classes.index(c)) for c in sorted(found) for path in found[c]]


def _from_paths(entries: Entries) -> Samples:
    def stamp(i: int) -> str:
        status = entries[i][0].stat()
        return f"{status.st_size} {status.st_mtime_ns}"

    return Samples(
        np.array([label for _, label in entries]),
        lambda i: pixels.read(entries[i][0]),
        lambda i: str(entries[i][0]),
        stamp,
    )


def _size(path: Path) -> tuple[int, int] | None:
    """None for what is no image: the preparation will say so."""
    try:
        with Image.open(path) as image:
            return image.size
    except OSError:
        return None


def _from_pngs(name: str, files: Iterator[tuple[str, bytes]], source: Path) -> Dataset:
    found: dict[str, list[tuple[str, str, bytes]]] = {"train": [], "test": []}
    known = pixels.suffixes()
    for path, content in files:
        match = PLACE.search(path)
        picture = PurePosixPath(path).suffix.lower() in known
        if match and match[1] in found and picture and not pixels.hidden(Path(*match.groups())):
            found[match[1]].append((match[2], match[3], content))
    if not found["train"] or not found["test"]:
        raise ValueError(
            f"--source {source}: found {len(found['train'])} training and {len(found['test'])} "
            "test images; give an "
            "ImageFolder tree (train/<class>/*.png, test/<class>/*.png), a folder of tar archives "
            "of one, "
            f"{CIFAR[name].folder} or {CIFAR[name].archive}"
        )
    classes = sorted({c for c, _, _ in found["train"]})

    def split(entries: list[tuple[str, str, bytes]]) -> Samples:
        entries = sorted(entries)
        labels = np.array([classes.index(c) for c, _, _ in entries])
        return Samples(
            labels,
            lambda i: pixels.read(io.BytesIO(entries[i][2])),
            lambda i: f"{entries[i][0]}/{entries[i][1]} of {source}",
            lambda i: str(zlib.crc32(entries[i][2])),
        )

    return Dataset(name, classes, split(found["train"]), split(found["test"]), str(source))


def _from_batches(name: str, files: Iterator[tuple[str, bytes]], source: Path) -> Dataset:
    """The official pickles: rows of 3072 bytes, channel by channel."""
    form = CIFAR[name]
    wanted = {form.meta, form.test, *form.train}
    content = {
        PurePosixPath(path).name: _unpickled(data, source)
        for path, data in files
        if PurePosixPath(path).name in wanted
    }
    missing = wanted - set(content)
    if missing:
        raise ValueError(
            f"--source {source}: {', '.join(sorted(missing))} missing; is it a whole "
            f"{form.archive}?"
        )

    def split(parts: Sequence[str]) -> Samples:
        rows = np.concatenate([content[p]["data"] for p in parts])
        images = np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        return Samples(
            np.concatenate([content[p][form.labels] for p in parts]),
            images.__getitem__,
            stamp=lambda i: str(zlib.crc32(images[i])),
        )

    return Dataset(
        name,
        list(content[form.meta][form.names]),
        split(form.train),
        split([form.test]),
        str(source),
    )


class _Plain(pickle.Unpickler):
    """Reads arrays, strings, lists and dictionaries. A pickle can call any function: one of a
    stranger's archive must not."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PLAIN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no data")
        return super().find_class(module, name)


def _unpickled(data: bytes, source: Path) -> Any:
    try:
        return _Plain(io.BytesIO(data), encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, IndexError, AttributeError) as error:
        raise ValueError(
            f"--source {source}: not CIFAR's own batches ({error}); fetch them again"
        ) from None


def _files_of_tree(root: Path) -> Iterator[tuple[str, bytes]]:
    for path in root.glob("*/*/*"):
        if path.is_file():
            yield path.relative_to(root).as_posix(), path.read_bytes()


def _files_of_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None:
                    yield member.name, content.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(
            f"--source {path}: not a whole tar archive ({error}); fetch it again"
        ) from None


def _download(name: str, data_folder: Path, url: str | None = None) -> Path:
    form = CIFAR[name]
    path, url = data_folder / form.archive, url or f"{HOME}/{form.archive}"
    try:
        download.fetch(url, path, form.md5)
    except OSError as error:
        raise Unavailable(
            f"{name} is not in {data_folder} and cannot be downloaded ({error}): bring "
            f"{form.archive} there, or name a copy or another URL of it with --source"
        ) from None
    return path
