"""Crop and flip in compiled code, with the draws of stream.py: no generator, one copy of every pixel.

Once as an FFCV operation, for betons that are streamed; once over images that lie in memory.
"""

from collections.abc import Callable
from dataclasses import replace
from types import FunctionType

import numba
import numpy as np
from numba import carray

from dist_resnet import stream
from dist_resnet.data.ffcv import AllocationQuery, Compiler, Operation, State, cast_int_to_byte_ptr
from dist_resnet.stream import DX_SHIFT, DY_SHIFT, FIELD, Augment

_mix = numba.njit(cache=True)(stream.mix)
_ONE, _DY, _DX, _FIELD = (np.uint64(v) for v in (1, DY_SHIFT, DX_SHIFT, FIELD))


@numba.njit(cache=True)
def _crop_flip(image, out, sample, keys, pad, flips, fill):
    """out[y, x] = image[y + dy, (x or its mirror) + dx], or the fill colour where that lies outside."""
    hashed = _mix(np.uint64(sample))
    crop, span = _mix(hashed ^ keys[0]), np.uint64(2 * pad + 1)
    dy = np.int64(((crop >> _DY) & _FIELD) % span) - pad
    dx = np.int64(((crop >> _DX) & _FIELD) % span) - pad
    flipped = flips and ((_mix(hashed ^ keys[1]) & _ONE) ^ keys[2]) != 0
    height, width, channels = image.shape
    source, target = image.reshape(height, width * channels), out.reshape(height, width * channels)
    left, right = max(0, dx), min(width, width + dx)  # source columns that are seen
    for y in range(height):
        row = y + dy
        if row < 0 or row >= height:
            for x in range(width):
                for c in range(channels):
                    out[y, x, c] = fill[c]
            continue
        if flipped:
            for x in range(left, right):  # x - dx, mirrored, is where this column goes
                for c in range(channels):
                    out[y, width - 1 - (x - dx), c] = image[row, x, c]
        else:
            shift = dx * channels
            for k in range(left * channels, right * channels):
                target[y, k - shift] = source[row, k]
        for x in range(left - dx):
            for c in range(channels):
                out[y, width - 1 - x if flipped else x, c] = fill[c]
        for x in range(right - dx, width):
            for c in range(channels):
                out[y, width - 1 - x if flipped else x, c] = fill[c]


@numba.njit(parallel=True, nogil=True, cache=True)
def crop_flip_from(images, ids, out, keys, pad, flips, fill):
    """out[i] = sample ids[i] of images, cropped and flipped. uint8 (samples, H, W, C), int64 (N,), uint8 (N, H, W, C)."""
    for i in numba.prange(len(ids)):
        _crop_flip(images[ids[i]], out[i], ids[i], keys, pad, flips, fill)


def _compiled_apart() -> Callable:
    """_crop_flip once more: numba (0.68) fails with a KeyError where FFCV's code calls a function that it has just cached."""
    return Compiler.compile(FunctionType(_crop_flip.py_func.__code__, {**globals(), "_mix": Compiler.compile(stream.mix)}))


class CropFlip(Operation):
    """The same as an FFCV operation on uint8 (N, H, W, C). `set_epoch` must be called before an epoch's iterator is made."""

    def __init__(self, how: Augment) -> None:
        super().__init__()
        self.how = how
        self.keys = np.zeros(3, np.uint64)  # read by the compiled code through its address: a closure would be frozen
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.keys[:] = self.how.keys(epoch)

    def generate_code(self) -> Callable:
        my_range, one = Compiler.get_iterator(), _compiled_apart()
        address, fill = self.keys.ctypes.data, np.array(self.how.fill, np.uint8)
        pad, flips = self.how.pad, self.how.flip != "none"

        def crop_flip(images, destination, indices):
            keys = carray(cast_int_to_byte_ptr(address), (24,)).view(np.uint64)
            for i in my_range(len(indices)):
                one(images[i], destination[i], indices[i], keys, pad, flips, fill)
            return destination[: len(indices)]

        crop_flip.is_parallel = True
        crop_flip.with_indices = True
        return crop_flip

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        return replace(previous_state, jit_mode=True), AllocationQuery(previous_state.shape, previous_state.dtype)
