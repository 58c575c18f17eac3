"""Decoders for images of any size: a random resized crop with the draws of sampling.py, and a
central crop. Of a JPEG only what the crop needs is decoded (jpeg.py)."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numba
import numpy as np

from dist_resnet.data import jpeg, sampling
from dist_resnet.data.augment import PassthroughDecoder, mix
from dist_resnet.data.ffcv import (
    IMAGE_MODES,
    AllocationQuery,
    Operation,
    State,
    imdecode,
    read,
    resize,
)

ATTEMPTS = 10
RATIO = (3 / 4, 4 / 3)
JPG = IMAGE_MODES["jpg"]
_GAMMA = np.uint64(0x9E3779B97F4A7C15)


@numba.njit(cache=True)
def _fraction(bits: int, shift: int) -> float:
    """24 of the bits, as a number in [0, 1)."""
    return np.float64((bits >> np.uint64(shift)) & np.uint64(0xFFFFFF)) / 16777216.0


@numba.njit(cache=True)
def crop_box(height, width, draw, smallest, largest):
    """(top, left, height, width) of a crop whose area is a uniform share of the image's in
    [smallest, largest] and whose aspect ratio is log-uniform in [3/4, 4/3]; after ten attempts that
    do not fit, the largest central one.

    draw: uint64, the sample's hash of this epoch. Szegedy et al. 2014, section 6; as in
    torchvision's RandomResizedCrop."""
    for _ in range(ATTEMPTS):
        draw = mix(draw + _GAMMA)
        area = height * width * (smallest + (largest - smallest) * _fraction(draw, 40))
        ratio = math.exp(
            math.log(RATIO[0]) + (math.log(RATIO[1]) - math.log(RATIO[0])) * _fraction(draw, 8)
        )
        w, h = int(round(math.sqrt(area * ratio))), int(round(math.sqrt(area / ratio)))
        if 0 < w <= width and 0 < h <= height:
            place = mix(draw)
            return (
                int(_fraction(place, 40) * (height - h + 1)),
                int(_fraction(place, 8) * (width - w + 1)),
                h,
                w,
            )
    h, w = min(height, int(round(width / RATIO[0]))), min(width, int(round(height * RATIO[1])))
    return (height - h) // 2, (width - w) // 2, h, w


@numba.njit(nogil=True, cache=True)
def _overlaps(size: int, out: int) -> tuple[np.ndarray, np.ndarray]:
    """Shrinking `size` pixels to `out`: which one each new pixel begins in, uint64 (out,), and the
    shares of that one and of those that follow, in 16384ths, int32 (out, most)."""
    scale = size / out
    first = np.empty(out, np.uint64)
    shares = np.zeros((out, int(math.ceil(scale)) + 1), np.int32)
    for x in range(out):
        begin, end = x * scale, min((x + 1) * scale, size)
        pixel = int(begin + 1e-6)  # rounding must not add a pixel of which it is next to nothing
        first[x] = pixel
        before = 0
        for k in range(shares.shape[1]):  # rounded so that they add up
            covered = max(0.0, min(end, pixel + k + 1) - begin)
            upto = int(round(16384 * covered / (end - begin)))
            shares[x, k], before = upto - before, upto
    return first, shares


@numba.njit(nogil=True, cache=True)
def shrink(image, top, left, h, w, out):
    """The crop of an image, uint8 (H, W, 3), shrunk to out, uint8 (h' <= h, w' <= w, 3): every new
    pixel is the mean of the area that it covers, as OpenCV's INTER_AREA has it, in two fifths
    of its time. In whole numbers: sums of floats depend on the order that a compiler takes."""
    length, columns = 3 * w, out.shape[1]
    lines, target = image.reshape(len(image), -1), out.reshape(len(out), -1)
    first_row, row_shares = _overlaps(h, len(out))
    first, shares = _overlaps(w, columns)
    shares, most = shares.reshape(-1), np.uint64(shares.shape[1])
    row = np.zeros(length + 3 * most, np.int32)  # shares of 0 may lie beyond the crop
    result = np.empty(3 * columns, np.int32)
    one, two, three = np.uint64(1), np.uint64(2), np.uint64(3)
    for y in range(len(out)):
        row[:length] = 32  # half of what is cut off below
        for k in range(row_shares.shape[1]):
            share = row_shares[y, k]
            if share > 0:
                line = lines[top + first_row[y] + k, 3 * left : 3 * left + length]
                for i in range(length):
                    row[i] += share * np.int32(line[i])
        for i in range(length):
            row[i] >>= 6  # to 16 bits
        at = np.uint64(0)
        for x in range(np.uint64(columns)):
            i, red, green, blue = three * first[x], np.int32(0), np.int32(0), np.int32(0)
            for _ in range(most):
                share = shares[at]
                red += share * row[i]
                green += share * row[i + one]
                blue += share * row[i + two]
                at, i = at + one, i + three
            j = three * x
            result[j], result[j + one], result[j + two] = red, green, blue
        for i in range(len(result)):
            target[y, i] = np.uint8((result[i] + (1 << 21)) >> 22)


@numba.njit(cache=True)
def _box(height, width, sample, key, figures):
    """(top, left, height, width): a random crop where there is a key, uint64 (1,), with its
    smallest and largest shares; else the central square of a share of the shorter side."""
    if len(key):
        draw = mix(mix(sample) ^ key[0])
        return crop_box(height, width, draw, figures[0], figures[1])
    side = max(1, int(figures[0] * min(height, width)))
    return (height - side) // 2, (width - side) // 2, side, side


@numba.njit(parallel=True, nogil=True, cache=True)
def _decode(samples, out, fields, state, key, figures):
    """out[k] = the crop of the image of samples[k], resized."""
    for k in numba.prange(len(samples)):
        field, target = fields[samples[k]], out[k]
        content = read(field["data_ptr"], state)
        height, width = np.int64(field["height"]), np.int64(field["width"])
        top, left, h, w = _box(height, width, np.uint64(samples[k]), key, figures)
        if field["mode"] == JPG:
            part, y, x, rows, columns = jpeg.cut(content, height, width, top, left, h, w)
            image = np.empty((rows, columns, 3), np.uint8)
            imdecode(part, image)
            top, left = top - y, left - x
        else:
            image = content.reshape(height, width, 3)
        if h >= target.shape[0] and w >= target.shape[1]:
            shrink(image, top, left, h, w, target)
        else:
            resize(image, top, left, h, w, target)


class Undecoded(PassthroughDecoder):
    """Before a ResizedCrop, of images of any size."""

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        shape, dtype = (1, 1, 3), np.dtype(np.uint8)
        state = replace(previous_state, jit_mode=True, shape=shape, dtype=dtype)
        return state, AllocationQuery(shape, dtype)


class ResizedCrop(Operation):
    """Reads, decodes, crops, and resizes to size x size, in as many threads as numba is set to.
    What it runs is compiled once for all processes. After Undecoded.

    storage_state: what `read` wants, of the iterator that runs this."""

    key = np.zeros(0, np.uint64)
    storage_state: Any = None

    def __init__(self, size: int, *figures: float) -> None:
        super().__init__()
        self.size, self.figures = size, np.array(figures)

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        shape = (self.size, self.size, 3)
        state = replace(previous_state, jit_mode=False, shape=shape)
        return state, AllocationQuery(shape, np.dtype(np.uint8))

    def generate_code(self) -> Callable:
        def run(samples, destination):
            _decode(samples, destination, self.metadata, self.storage_state, self.key, self.figures)
            return destination

        return run


class RandomResizedCrop(ResizedCrop):
    """The box depends on (seed, epoch, sample id) alone.

    `set_epoch` must be called before an epoch's iterator is made, with the size of that epoch's
    images."""

    def __init__(self, seed: int, size: int, area: tuple[float, float]) -> None:
        super().__init__(size, *area)
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.key = np.array([sampling.key(self.seed, epoch, sampling.RESIZED_CROP)], np.uint64)


class CenterCrop(ResizedCrop):
    """The central square of `share` of the shorter side."""

    def __init__(self, size: int, share: float) -> None:
        super().__init__(size, share)
