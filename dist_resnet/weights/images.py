"""Images of any size as a network wants them, and which there are in a folder."""

from pathlib import Path

import numpy as np
from PIL import Image

from dist_resnet.data.decoders import shrink
from dist_resnet.data.ffcv import resize_crop
from dist_resnet.weights.card import Card

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm")


def prepare(image: Path | str | Image.Image, card: Card) -> np.ndarray:
    """uint8 (3, H, W) of the card's size: the largest central piece of that shape, shrunk to
    card.share, then resized by the functions of an evaluation's decoder. An image of that size is
    taken as it is where card.share is 1.

    Raises ValueError for a file that is no image."""
    pixels = np.ascontiguousarray(_pixels(image))
    height, width = card.size
    piece = min(pixels.shape[0] / height, pixels.shape[1] / width) * card.share
    h, w = (max(1, int(piece * side + 1e-6)) for side in (height, width))
    top, left = (pixels.shape[0] - h) // 2, (pixels.shape[1] - w) // 2
    result = np.empty((height, width, 3), np.uint8)
    if (h, w) == (height, width):
        result[:] = pixels[top : top + h, left : left + w]
    elif h >= height and w >= width:
        shrink(pixels, top, left, h, w, result)
    else:
        resize_crop(pixels, top, top + h, left, left + w, result)
    return np.ascontiguousarray(result.transpose(2, 0, 1))


def find(paths: list[Path], classes: list[str]) -> list[tuple[Path, int | None]]:
    """(image, label) of files, and of all images in folders. Labels are known where a folder has
    subfolders with names of classes, else None. Raises ValueError where there is nothing."""
    found: list[tuple[Path, int | None]] = []
    for path in paths:
        if path.is_dir():
            inside = _in_folder(path, classes)
            if not inside:
                raise ValueError(f"{path} holds no images ({', '.join(SUFFIXES)})")
            found += inside
        elif path.is_file():
            found.append((path, None))
        else:
            raise ValueError(f"{path}: no such image or folder")
    return found


def _in_folder(folder: Path, classes: list[str]) -> list[tuple[Path, int | None]]:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    names = {file.relative_to(folder).parts[0] for file in files}
    known = names & set(classes)
    if not known:
        return [(file, None) for file in files]
    if unknown := sorted(names - known):
        raise ValueError(
            f"{folder}: {', '.join(sorted(known)[:3])} are classes of the network, "
            f"{', '.join(unknown[:3])} are not; name the folders to read one by one, or mend these"
        )
    labels = {name: label for label, name in enumerate(classes)}
    return [(file, labels[file.relative_to(folder).parts[0]]) for file in files]


def _pixels(image: Path | str | Image.Image) -> np.ndarray:
    """uint8 (height, width, 3)."""
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    try:
        with Image.open(image) as opened:
            return np.asarray(opened.convert("RGB"))
    except OSError as error:
        raise ValueError(f"{image}: not an image that can be read ({error})") from None
