"""Betons of raw 32x32 images, carried as lossless mosaics: half their size, in parts that travel
apart. python -m benchmarks.gpu.mosaics unpack OUT PART...

A mosaic is a WebP of 32 x 32 images; what else a beton holds (header, labels, table, padding) is
compressed beside them. Imports neither torch nor FFCV, so that its processes may be forked."""

import hashlib
import io
import json
import lzma
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

SIDE, PIXELS, VALUES = 32, 32, 32 * 32 * 3  # images a side, pixels a side, values of an image
# of FFCV's format: its header, and the table of where samples lie
HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page", "<u4"), ("samples", "<u8"), ("table", "<u8")],
    align=True,
)
TABLE = np.dtype([("sample", "<u8"), ("start", "<u8"), ("size", "<u8")])
MANIFEST = "manifest.json"


def pack(betons: Path, parts: list[Path]) -> None:
    """Spread a folder of betons over parts of about the same size."""
    splits = json.loads((betons / MANIFEST).read_text())["splits"]
    files: dict[str, bytes] = {}
    with ProcessPoolExecutor() as pool:
        for name, split in splits.items():
            content = np.fromfile(betons / split["file"], np.uint8)
            images = _places(content)
            mosaics = [content[some].reshape(-1, VALUES) for some in _groups(images)]
            for number, encoded in enumerate(pool.map(_encode, mosaics)):
                files[f"{name}/{number:03d}.webp"] = encoded
            content[images] = 0
            files[f"{name}/rest.xz"] = lzma.compress(content.tobytes())
    total, written = sum(map(len, files.values())), 0
    for name, data in files.items():
        part = parts[min(len(parts) * written // total, len(parts) - 1)]
        written += len(data)
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        (part / name).write_bytes(data)
    for part in parts:
        shutil.copy(betons / MANIFEST, part)


def unpack(out: Path, parts: list[Path]) -> None:
    """The same betons again. Raises RuntimeError where a part is missing, or a bit differs."""
    out.mkdir(parents=True, exist_ok=True)
    told = json.loads((parts[0] / MANIFEST).read_text())
    with ProcessPoolExecutor() as pool:
        for name, split in told["splits"].items():
            found = {path.name: path for part in parts for path in (part / name).glob("*")}
            if "rest.xz" not in found:
                raise RuntimeError(f"{name}: rest.xz is in none of {', '.join(map(str, parts))}")
            rest = lzma.decompress(found.pop("rest.xz").read_bytes())
            content = np.frombuffer(bytearray(rest), np.uint8)
            groups = _groups(_places(content))
            if len(found) != len(groups):
                raise RuntimeError(f"{name}: {len(found)} of {len(groups)} mosaics are there")
            paths = [found[key] for key in sorted(found)]
            for some, mosaic in zip(groups, pool.map(_decode, paths)):
                content[some] = mosaic[: len(some)]
            if hashlib.sha256(content).hexdigest() != split["sha256"]:
                raise RuntimeError(f"{split['file']}: not the bytes that were packed")
            content.tofile(out / split["file"])
    shutil.copy(parts[0] / MANIFEST, out)


def _places(content: np.ndarray) -> np.ndarray:
    """Where each image's values lie: int64 (samples, VALUES)."""
    (header,) = np.frombuffer(content[: HEADER.itemsize].tobytes(), HEADER)
    table = np.frombuffer(content[int(header["table"]) :].tobytes(), TABLE)
    return table["start"].astype(np.int64)[:, None] + np.arange(VALUES)


def _groups(images: np.ndarray) -> list[np.ndarray]:
    return np.split(images, range(SIDE * SIDE, len(images), SIDE * SIDE))


def _encode(images: np.ndarray) -> bytes:
    last = images[-1:].repeat(SIDE * SIDE - len(images), 0)
    tiles = np.concatenate([images, last]).reshape(SIDE, SIDE, PIXELS, PIXELS, 3)
    picture = tiles.swapaxes(1, 2).reshape(SIDE * PIXELS, SIDE * PIXELS, 3)
    file = io.BytesIO()
    how = {"lossless": True, "quality": 100, "method": 4, "exact": True}
    Image.fromarray(picture).save(file, "WEBP", **how)
    return file.getvalue()


def _decode(path: Path) -> np.ndarray:
    picture = np.asarray(Image.open(path).convert("RGB"))
    return picture.reshape(SIDE, PIXELS, SIDE, PIXELS, 3).swapaxes(1, 2).reshape(-1, VALUES)


if __name__ == "__main__":
    _, verb, first, *others = sys.argv
    {"pack": pack, "unpack": unpack}[verb](Path(first), [Path(path) for path in others])
