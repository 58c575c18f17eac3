"""Crop and flip as one FFCV operation, with the draws of stream.py: no generator, one copy of every pixel."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numba import carray

from dist_resnet import stream
from dist_resnet.data.ffcv import AllocationQuery, Compiler, Operation, State, cast_int_to_byte_ptr


class CropFlip(Operation):
    """Pads uint8 (N, H, W, C) images with `fill`, crops them back at random, flips some.

    The same pixels as `stream.augment`. `set_epoch` must be called before an epoch's iterator is made."""

    def __init__(self, seed: int, pad: int, flip: str, fill: np.ndarray) -> None:
        super().__init__()
        self.seed, self.pad, self.flip, self.fill = seed, pad, flip, fill.astype(np.uint8)
        self.keys = np.zeros(3, np.uint64)  # read by the compiled code through its address: a closure would be frozen
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.keys[:] = stream.key(self.seed, epoch, stream.CROP), *stream.flip_key(self.seed, epoch, self.flip)

    def generate_code(self) -> Callable:
        my_range, mix, copy = Compiler.get_iterator(), Compiler.compile(stream.mix), Compiler.compile(_copy)
        address, fill, flips = self.keys.ctypes.data, self.fill, np.uint64(self.flip != "none")
        pad, span = self.pad, np.uint64(2 * self.pad + 1)
        dy_shift, dx_shift, field, one = (np.uint64(v) for v in (stream.DY_SHIFT, stream.DX_SHIFT, stream.FIELD, 1))

        def crop_flip(images, destination, indices):
            keys = carray(cast_int_to_byte_ptr(address), (24,)).view(np.uint64)
            for i in my_range(len(indices)):
                hashed = mix(np.uint64(indices[i]))
                crop = mix(hashed ^ keys[0])
                dy = np.int64(((crop >> dy_shift) & field) % span) - pad
                dx = np.int64(((crop >> dx_shift) & field) % span) - pad
                copy(images[i], destination[i], dy, dx, ((mix(hashed ^ keys[1]) & one) ^ keys[2]) & flips, fill)
            return destination[: len(indices)]

        crop_flip.is_parallel = True
        crop_flip.with_indices = True
        return crop_flip

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        return replace(previous_state, jit_mode=True), AllocationQuery(previous_state.shape, previous_state.dtype)


def _copy(image, out, dy, dx, flipped, fill):
    """out[y, x] = image[y + dy, (x or its mirror) + dx], or the fill colour where that lies outside."""
    height, width, channels = image.shape
    for y in range(height):
        row = y + dy
        inside = 0 <= row < height
        for x in range(width):
            column = (width - 1 - x if flipped else x) + dx
            for c in range(channels):
                out[y, x, c] = image[row, column, c] if inside and 0 <= column < width else fill[c]
