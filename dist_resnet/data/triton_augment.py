"""Crop, flip and cutout on a GPU: gathered, cropped and flipped by one kernel, with the draws of
sampling.py.

The same in torch's operations (sampling.augment) is 65 of them a batch.
"""

import torch
import triton
import triton.language as tl

from dist_resnet.data import sampling
from dist_resnet.data.sampling import DX_SHIFT, DY_SHIFT, FIELD, MIX_1, MIX_2, Augment

BLOCK = 1024  # values of the output that one program writes
_MIX_1, _MIX_2, _DX, _DY, _FIELD = (
    tl.constexpr(v) for v in (MIX_1, MIX_2, DX_SHIFT, DY_SHIFT, FIELD)
)


@triton.jit
def mix(x):
    """sampling.mix, on uint64."""
    x = (x ^ (x >> 30)) * _MIX_1
    x = (x ^ (x >> 27)) * _MIX_2
    return x ^ (x >> 31)


@triton.jit(do_not_specialize=["crop_key", "flip_key", "turned", "hole_key"])
def kernel(
    images,
    ids,
    out,
    table,
    crop_key,
    flip_key,
    turned,
    hole_key,
    red,
    green,
    blue,
    height,
    width,
    pad: tl.constexpr,
    flips: tl.constexpr,
    cutout: tl.constexpr,
    normalises: tl.constexpr,
    block: tl.constexpr,
):
    """Program (i, j) writes values j * block ... of image i; out[y, x] as in data/augment.py."""
    sample = tl.load(ids + tl.program_id(0)).to(tl.int64)
    hashed = mix(sample.to(tl.uint64))
    crop = mix(hashed ^ crop_key.to(tl.uint64))
    dy = ((crop >> _DY) & _FIELD).to(tl.int32) % (2 * pad + 1) - pad
    dx = ((crop >> _DX) & _FIELD).to(tl.int32) % (2 * pad + 1) - pad
    size = height * width * 3
    k = tl.program_id(1) * block + tl.arange(0, block)
    colour, column, row = k % 3, k // 3 % width, k // (3 * width)
    seen = k < size
    if cutout:
        hole = mix(hashed ^ hole_key.to(tl.uint64))
        y = row - (((hole >> _DY) & _FIELD).to(tl.int32) % height - cutout // 2)
        x = column - (((hole >> _DX) & _FIELD).to(tl.int32) % width - cutout // 2)
        seen &= (y < 0) | (y >= cutout) | (x < 0) | (x >= cutout)
    row += dy
    if flips:
        flipped = ((mix(hashed ^ flip_key.to(tl.uint64)) & 1).to(tl.int32) ^ turned) != 0
        column = tl.where(flipped, width - 1 - column, column)
    column += dx
    seen &= (row >= 0) & (row < height) & (column >= 0) & (column < width)
    pixels = tl.load(
        images + sample * size + (row * width + column) * 3 + colour, mask=seen, other=0
    )
    fill = tl.where(colour == 0, red, tl.where(colour == 1, green, blue)).to(tl.uint8)
    values = tl.where(seen, pixels, fill)
    if normalises:
        values = tl.load(table + values.to(tl.int32) * 3 + colour)
    tl.store(out + tl.program_id(0).to(tl.int64) * size + k, values, mask=k < size)


def crop_flip(
    images: torch.Tensor,
    ids: torch.Tensor,
    epoch: int,
    how: Augment,
    table: torch.Tensor | None = None,
) -> torch.Tensor:
    """What sampling.augment answers: uint8 (N, H, W, 3) of images, uint8 (samples, H, W, 3), and
    ids, int64 (N,), on one GPU. With a `table` (256, 3), each value of each colour as it is there
    (Normalise.table)."""
    _, height, width, _ = images.shape
    dtype = torch.uint8 if table is None else table.dtype
    out = torch.empty((len(ids), *images.shape[1:]), dtype=dtype, device=images.device)
    crop_key, flip_key, turned, hole_key = (
        sampling.signed(int(value)) for value in how.keys(epoch)
    )
    kernel[(len(ids), triton.cdiv(height * width * 3, BLOCK))](
        images,
        ids,
        out,
        images if table is None else table,
        crop_key,
        flip_key,
        turned,
        hole_key,
        *how.fill,
        height,
        width,
        how.pad,
        how.flip != "none",
        how.cutout,
        table is not None,
        BLOCK,
    )
    return out
