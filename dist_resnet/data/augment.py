"""Crop, flip and cutout in compiled code, with the draws of sampling.py: no generator, one copy of
every pixel.

The same code reads images from memory, from a mapped beton, and from FFCV's buffers. numba keeps it
compiled on disk."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numba
import numpy as np

from dist_resnet.data import sampling
from dist_resnet.data.ffcv import AllocationQuery, Operation, SimpleRGBImageDecoder, State
from dist_resnet.data.sampling import DX_SHIFT, DY_SHIFT, FIELD, Augment

mix = numba.njit(cache=True)(sampling.mix)
_ONE, _DY, _DX, _FIELD = (np.uint64(v) for v in (1, DY_SHIFT, DX_SHIFT, FIELD))
AS_IS = Augment(0, 0, "none", (0, 0, 0))


@numba.njit(cache=True)
def _paint(out, first, last, colour):
    """Pixels first..last - 1 of out, uint8 (3 * pixels,)."""
    red, green, blue = colour[0], colour[1], colour[2]
    for k in range(np.uint64(3 * first), np.uint64(3 * last), np.uint64(3)):
        out[k], out[k + np.uint64(1)], out[k + np.uint64(2)] = red, green, blue


@numba.njit(cache=True)
def _cut_out(out, draw, side, colour):
    """Fills the part that is inside the image of a square whose middle is drawn."""
    height, width, _ = out.shape
    top = np.int64(((draw >> _DY) & _FIELD) % np.uint64(height)) - side // 2
    left = np.int64(((draw >> _DX) & _FIELD) % np.uint64(width)) - side // 2
    first, last = max(0, left), min(width, left + side)
    for y in range(max(0, top), min(height, top + side)):
        _paint(out.reshape(out.size), y * width + first, y * width + last, colour)


@numba.njit(cache=True)
def _crop_flip(content, start, out, sample, keys, pad, flips, fill, cutout):
    """out[y, x] = image[y + dy, (x or its mirror) + dx], or the fill colour where that lies outside
    or in the hole; the image is at content[start:].

    Indices are unsigned: numba asks of a signed one whether it is negative, and its loops then take
    four times as long."""
    hashed = mix(np.uint64(sample))
    crop, span = mix(hashed ^ keys[0]), np.uint64(2 * pad + 1)
    dy = np.int64(((crop >> _DY) & _FIELD) % span) - pad
    dx = np.int64(((crop >> _DX) & _FIELD) % span) - pad
    flipped = flips and ((mix(hashed ^ keys[1]) & _ONE) ^ keys[2]) != 0
    height, width, _ = out.shape
    target, seen = (
        out.reshape(out.size),
        max(0, width - abs(dx)),
    )  # columns of the image that are seen
    first = min(width, max(0, dx if flipped else -dx))  # where they go
    column = width - 1 - max(0, -dx) if flipped else max(0, dx)  # which of them goes first
    for y in range(height):
        row, begin = y + dy, y * width
        if row < 0 or row >= height:
            _paint(target, begin, begin + width, fill)
            continue
        _paint(target, begin, begin + first, fill)
        _paint(target, begin + first + seen, begin + width, fill)
        to, source = np.uint64(3 * (begin + first)), np.uint64(start + 3 * (row * width + column))
        if flipped:
            for k in range(np.uint64(0), np.uint64(3 * seen), np.uint64(3)):
                for colour in range(np.uint64(3)):
                    target[to + k + colour] = content[source - k + colour]
        else:
            for k in range(np.uint64(3 * seen)):
                target[to + k] = content[source + k]
    if cutout:
        _cut_out(out, mix(hashed ^ keys[3]), cutout, fill)


@numba.njit(parallel=True, nogil=True, cache=True)
def _crop_flip_all(content, starts, out, samples, keys, pad, flips, fill, cutout):
    for i in numba.prange(len(out)):
        _crop_flip(content, starts[i], out[i], samples[i], keys, pad, flips, fill, cutout)


def crop_flip(
    content: np.ndarray,
    starts: np.ndarray,
    samples: np.ndarray,
    out: np.ndarray,
    how: Augment,
    epoch: int,
) -> None:
    """out[i] = the image of sample samples[i], which lies at content[starts[i]:], cropped, flipped
    and with a hole in it.

    content: uint8 (bytes,); starts, samples: int64 (N,); out: uint8 (N, H, W, 3). As many threads
    as numba is set to."""
    _crop_flip_all(
        content,
        starts,
        out,
        samples,
        how.keys(epoch),
        how.pad,
        how.flip != "none",
        np.array(how.fill, np.uint8),
        how.cutout,
    )


class CropFlip(Operation):
    """The same as an FFCV operation, on decoded images, uint8 (N, H, W, 3). `set_epoch` must be
    called before an iterator is made."""

    def __init__(self, how: Augment) -> None:
        super().__init__()
        self.how = how
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def generate_code(self) -> Callable:
        def run(images, destination, samples):
            starts = np.arange(len(samples)) * images[0].size
            crop_flip(
                images.reshape(-1),
                starts,
                samples.view(np.int64),
                destination,
                self.how,
                self.epoch,
            )
            return destination

        run.with_indices = True  # type: ignore[attr-defined]
        return run

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        return replace(previous_state, jit_mode=False), AllocationQuery(
            previous_state.shape, previous_state.dtype
        )


class PassthroughDecoder(SimpleRGBImageDecoder):
    """Leaves images in the file, for what follows: FFCV wants a decoder first, and compiles it.
    There is next to nothing to compile."""

    def generate_code(self) -> Callable:
        return lambda samples, destination, metadata, storage_state: samples


class ReadCropFlip(CropFlip):
    """Reads raw images of one size out of a mapped beton, cropped and flipped, in one pass. After
    PassthroughDecoder."""

    def __init__(self, path: Path, how: Augment) -> None:
        super().__init__(how)
        self.content = np.memmap(path, np.uint8, mode="r")

    def generate_code(self) -> Callable:
        starts = self.metadata["data_ptr"].astype(np.int64)

        def run(samples, destination):
            crop_flip(
                self.content,
                starts[samples],
                samples.view(np.int64),
                destination,
                self.how,
                self.epoch,
            )
            return destination

        return run
