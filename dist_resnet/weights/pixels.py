"""The pixels of an image file, the same for a preparation and a prediction, and which files of a
folder are images."""

import io
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePath

import numpy as np
from PIL import Image, ImageOps

# formats that Pillow opens by another program, or that are no pictures
NOT_PICTURES = {"EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5", "FITS"}
# made by systems, not by people, besides all that begins with a dot
SYSTEM = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin"}
WHOLE = {"1", "L", "RGB", "YCbCr", "HSV", "CMYK"}  # modes whose conversion loses nothing


def suffixes() -> tuple[str, ...]:
    """The endings of the files that can be read, in lower case."""
    Image.init()
    formats = Image.registered_extensions().items()
    known = {s for s, name in formats if name in Image.OPEN and name not in NOT_PICTURES}
    return tuple(sorted(known))


def hidden(path: PurePath) -> bool:
    """Whether some part of a relative path is hidden or a system's own."""
    return any(part.startswith(".") or part.lower() in SYSTEM for part in path.parts)


def left_out(paths: Iterable[PurePath]) -> str:
    """What these files are, by their endings: '2 .txt, 1 hidden'. Empty where there are none."""
    kinds = ("hidden" if hidden(path) else path.suffix.lower() or "no ending" for path in paths)
    return ", ".join(f"{count} {kind}" for kind, count in Counter(kinds).most_common())


def read(file: Path | str | io.BytesIO | Image.Image) -> np.ndarray:
    """uint8 (H, W, 3) in RGB, as an image viewer shows it: turned as its EXIF orientation says,
    16-bit greys scaled to 8 bits, what is transparent over white.

    Raises ValueError for a mode that has no such meaning, such as floating point; OSError for a
    file that is no image."""
    if not isinstance(file, Image.Image):
        with Image.open(file) as opened:
            return read(ImageOps.exif_transpose(opened))
    image = file
    if image.mode.startswith("I"):
        return _grey(image)
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    elif image.mode not in (*WHOLE, "P"):
        raise ValueError(f"its pixels are of mode {image.mode}, which has no colours: convert it")
    return np.asarray(image.convert("RGB"))


def _grey(image: Image.Image) -> np.ndarray:
    """Of integers of 16 bits; of 32 where they fit into 16."""
    values = np.asarray(image).astype(np.int64)
    if values.size and not 0 <= values.min() <= values.max() < 1 << 16:
        raise ValueError(f"its greys of mode {image.mode} are not within 16 bits: convert it")
    return np.repeat(((values + 128) // 257).astype(np.uint8)[..., None], 3, 2)
