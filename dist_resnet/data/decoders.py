"""Decoders for images of any size: a random resized crop with the draws of sampling.py, and a
central crop."""

import math
from collections.abc import Callable

import numba
import numpy as np
from numba import carray

from dist_resnet.data import sampling
from dist_resnet.data.ffcv import (
    IMAGE_MODES,
    CenterCropRGBImageDecoder,
    Compiler,
    ResizedCropRGBImageDecoder,
    cast_int_to_byte_ptr,
    imdecode,
    resize_crop,
)

ATTEMPTS = 10
RATIO = (3 / 4, 4 / 3)
_mix = numba.njit(sampling.mix)
_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _fraction(bits: int, shift: int) -> float:
    """24 of the bits, as a number in [0, 1)."""
    return np.float64((bits >> np.uint64(shift)) & np.uint64(0xFFFFFF)) / 16777216.0


_fraction = numba.njit(_fraction)


def crop_box(height, width, draw, smallest, largest):
    """(top, left, height, width) of a crop whose area is a uniform share of the image's in
    [smallest, largest] and whose aspect ratio is log-uniform in [3/4, 4/3]; after ten attempts that
    do not fit, the largest central one.

    draw: uint64, the sample's hash of this epoch. Szegedy et al. 2014, section 6; as in
    torchvision's RandomResizedCrop."""
    for _ in range(ATTEMPTS):
        draw = _mix(draw + _GAMMA)
        area = height * width * (smallest + (largest - smallest) * _fraction(draw, 40))
        ratio = math.exp(
            math.log(RATIO[0]) + (math.log(RATIO[1]) - math.log(RATIO[0])) * _fraction(draw, 8)
        )
        w, h = int(round(math.sqrt(area * ratio))), int(round(math.sqrt(area / ratio)))
        if 0 < w <= width and 0 < h <= height:
            place = _mix(draw)
            return (
                int(_fraction(place, 40) * (height - h + 1)),
                int(_fraction(place, 8) * (width - w + 1)),
                h,
                w,
            )
    h, w = min(height, int(round(width / RATIO[0]))), min(width, int(round(height * RATIO[1])))
    return (height - h) // 2, (width - w) // 2, h, w


class RandomResizedCrop(ResizedCropRGBImageDecoder):
    """Decodes, crops, resizes to size x size. The box depends on (seed, epoch, sample id) alone.

    `set_epoch` must be called before an epoch's iterator is made, with the size of that epoch's
    images."""

    def __init__(self, seed: int, size: int, area: tuple[float, float]) -> None:
        super().__init__((size, size))
        self.seed, self.area = seed, area
        self.key = np.zeros(
            1, np.uint64
        )  # read by the compiled code through its address: a closure would be frozen
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.key[0] = sampling.key(self.seed, epoch, sampling.RESIZED_CROP)

    @property
    def get_crop_generator(self) -> Callable:
        return crop_box

    def generate_code(self) -> Callable:
        jpg, mem_read, my_range = IMAGE_MODES["jpg"], self.memory_read, Compiler.get_iterator()
        imdecode_c, resize_c, box, mix = (
            Compiler.compile(f) for f in (imdecode, resize_crop, crop_box, sampling.mix)
        )
        address, smallest, largest = self.key.ctypes.data, self.area[0], self.area[1]

        def decode(batch_indices, storage, metadata, storage_state):
            destination, scratch = storage
            key = carray(cast_int_to_byte_ptr(address), (8,)).view(np.uint64)
            for k in my_range(len(batch_indices)):
                sample = batch_indices[k]
                field = metadata[sample]
                content = mem_read(field["data_ptr"], storage_state)
                height, width = np.uint32(field["height"]), np.uint32(field["width"])
                if field["mode"] == jpg:
                    pixels = scratch[k]
                    imdecode_c(
                        content, pixels, height, width, height, width, 0, 0, 1, 1, False, False
                    )
                    image = pixels.reshape(-1)[: 3 * height * width].reshape(height, width, 3)
                else:
                    image = content.reshape(height, width, 3)
                top, left, h, w = box(
                    np.int64(height),
                    np.int64(width),
                    mix(mix(np.uint64(sample)) ^ key[0]),
                    smallest,
                    largest,
                )
                resize_c(image, top, top + h, left, left + w, destination[k])
            return destination[: len(batch_indices)]

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode


def center_crop(size: int, share: float) -> CenterCropRGBImageDecoder:
    """The central square of `share` of the shorter side, resized to size x size."""
    return CenterCropRGBImageDecoder((size, size), share)
