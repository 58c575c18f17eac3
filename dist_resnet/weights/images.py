"""Images of any size as a network wants them, and which there are in a folder."""

from pathlib import Path

import numpy as np
from PIL import Image

from dist_resnet.data.decoders import shrink
from dist_resnet.data.ffcv import resize_crop
from dist_resnet.weights import pixels
from dist_resnet.weights.card import Card


def prepare(image: Path | str | Image.Image, card: Card) -> np.ndarray:
    """uint8 (3, H, W) of the card's size: the largest central piece of that shape, shrunk to
    card.share, then resized by the functions of an evaluation's decoder. An image of that size is
    taken as it is where card.share is 1.

    Raises ValueError for a file that is no image, or of a mode without colours (pixels.read)."""
    whole = np.ascontiguousarray(_pixels(image))
    height, width = card.size
    piece = min(whole.shape[0] / height, whole.shape[1] / width) * card.share
    h, w = (max(1, int(piece * side + 1e-6)) for side in (height, width))
    top, left = (whole.shape[0] - h) // 2, (whole.shape[1] - w) // 2
    result = np.empty((height, width, 3), np.uint8)
    if (h, w) == (height, width):
        result[:] = whole[top : top + h, left : left + w]
    elif h >= height and w >= width:
        shrink(whole, top, left, h, w, result)
    else:
        resize_crop(whole, top, top + h, left, left + w, result)
    return np.ascontiguousarray(result.transpose(2, 0, 1))


def find(paths: list[Path], classes: list[str]) -> list[tuple[Path, int | None]]:
    """(image, label) of files, and of all images in folders. Labels are known where a folder has
    subfolders with names of classes, else None. Raises ValueError where there is nothing."""
    found: list[tuple[Path, int | None]] = []
    for path in paths:
        if path.is_dir():
            inside = _in_folder(path, classes)
            if not inside:
                there = pixels.left_out(p.relative_to(path) for p in path.rglob("*") if p.is_file())
                raise ValueError(f"{path} holds no images" + (f", but {there}" if there else ""))
            found += inside
        elif path.is_file():
            found.append((path, None))
        else:
            raise ValueError(f"{path}: no such image or folder")
    return found


def _in_folder(folder: Path, classes: list[str]) -> list[tuple[Path, int | None]]:
    known_suffixes = pixels.suffixes()
    files = sorted(
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in known_suffixes
        and p.is_file()
        and not pixels.hidden(p.relative_to(folder))
    )
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
    try:
        return pixels.read(image)
    except (OSError, ValueError) as error:
        raise ValueError(f"{image}: not an image that can be read ({error})") from None
