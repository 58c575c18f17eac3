"""Decoders for images of any size: a random resized crop with the draws of sampling.py, and a
central crop. Of a JPEG only what the crop needs is decoded (jpeg.py)."""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace

import numba
import numpy as np
from numba import carray

from dist_resnet.data import jpeg, sampling
from dist_resnet.data.augment import mix
from dist_resnet.data.ffcv import (
    IMAGE_MODES,
    AllocationQuery,
    Compiler,
    SimpleRGBImageDecoder,
    State,
    cast_int_to_byte_ptr,
    imdecode,
    resize_crop,
)

ATTEMPTS = 10
RATIO = (3 / 4, 4 / 3)
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


class ResizedCrop(SimpleRGBImageDecoder):
    """Decodes, crops, resizes to size x size."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.output_size = (size, size)

    @abstractmethod
    def box(self) -> Callable:
        """(height, width, sample) -> (top, left, height, width) of the crop, to be compiled."""

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        shape, dtype = (*self.output_size, 3), np.dtype(np.uint8)
        state = replace(previous_state, jit_mode=True, shape=shape, dtype=dtype)
        return state, AllocationQuery(shape, dtype)

    def generate_code(self) -> Callable:
        jpg, mem_read, my_range = IMAGE_MODES["jpg"], self.memory_read, Compiler.get_iterator()
        imdecode_c, resize_c, box = (
            Compiler.compile(f) for f in (imdecode, resize_crop, self.box())
        )
        cut, shrink_c = jpeg.cut, shrink

        def decode(batch_indices, destination, metadata, storage_state):
            for k in my_range(len(batch_indices)):
                field = metadata[batch_indices[k]]
                content = mem_read(field["data_ptr"], storage_state)
                height, width = np.int64(field["height"]), np.int64(field["width"])
                top, left, h, w = box(height, width, np.uint64(batch_indices[k]))
                if field["mode"] == jpg:
                    part, y, x, rows, columns = cut(content, height, width, top, left, h, w)
                    image = np.empty((rows, columns, 3), np.uint8)
                    imdecode_c(part, image, rows, columns, rows, columns, 0, 0, 1, 1, False, False)
                    top, left = top - y, left - x
                else:
                    image = content.reshape(height, width, 3)
                out = destination[k]
                if h >= out.shape[0] and w >= out.shape[1]:
                    shrink_c(image, top, left, h, w, out)
                else:
                    resize_c(image, top, top + h, left, left + w, out)
            return destination[: len(batch_indices)]

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode


class RandomResizedCrop(ResizedCrop):
    """The box depends on (seed, epoch, sample id) alone.

    `set_epoch` must be called before an epoch's iterator is made, with the size of that epoch's
    images."""

    def __init__(self, seed: int, size: int, area: tuple[float, float]) -> None:
        super().__init__(size)
        self.seed, self.area = seed, area
        self.key = np.zeros(
            1, np.uint64
        )  # read by the compiled code through its address: a closure would be frozen
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.key[0] = sampling.key(self.seed, epoch, sampling.RESIZED_CROP)

    def box(self) -> Callable:
        address, (smallest, largest) = self.key.ctypes.data, self.area
        draw, mixed = crop_box, mix

        def box(height, width, sample):
            key = carray(cast_int_to_byte_ptr(address), (8,)).view(np.uint64)
            return draw(height, width, mixed(mixed(sample) ^ key[0]), smallest, largest)

        return box


class CenterCrop(ResizedCrop):
    """The central square of `share` of the shorter side."""

    def __init__(self, size: int, share: float) -> None:
        super().__init__(size)
        self.share = share

    def box(self) -> Callable:
        share = self.share

        def box(height, width, sample):
            side = max(1, int(share * min(height, width)))
            return (height - side) // 2, (width - side) // 2, side, side

        return box
