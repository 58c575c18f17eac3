"""The compiled loops of fused_norm.py, over bfloat16 kept as its bits, uint16 (n,): a channels_last
activation as it lies. The arithmetic is float32.

An activation is taken as rows of some 64 numbers, whole pixels each, and its rows in blocks, so
that long sums are added in float64. numba keeps the code compiled on disk."""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

WIDE = 64  # numbers of a row at least, so that the loops are vectorised
ROWS = 128  # rows of a block


def width(pixels: int, channels: int) -> int:
    """Numbers of a row: whole pixels, such that the rows are of one length."""
    together = -(-WIDE // channels)
    while pixels % together:
        together -= 1
    return together * channels


def blocks(pixels: int, channels: int) -> int:
    return -(-pixels * channels // (ROWS * width(pixels, channels)))


def _bitcast(source: Any, target: Any, llvm: ir.Type) -> Callable:
    @intrinsic
    def cast(typing_context, x):
        def generate(context, builder, signature, arguments):
            return builder.bitcast(arguments[0], llvm)

        return target(source), generate

    return cast


_as_float = _bitcast(types.uint32, types.float32, ir.FloatType())
_as_bits = _bitcast(types.float32, types.uint32, ir.IntType(32))


@numba.njit(cache=True, inline="always")
def _load(bits):
    return _as_float(np.uint32(bits) << np.uint32(16))


@numba.njit(cache=True, inline="always")
def _round(value):
    """To bfloat16, to the nearest, ties to even."""
    bits = _as_bits(value)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))


@numba.njit(cache=True, inline="always")
def _positive_part(y):
    """NaN stays NaN."""
    return np.float32(0) if y < 0 else y


@numba.njit(cache=True, inline="always")
def _passed(dy, out, relu):
    """The gradient before the ReLU; positive bfloat16 have positive bits."""
    return _load(dy) if not relu or np.int16(out) > 0 else np.float32(0)


@numba.njit(cache=True)
def moments(x, sums):
    """sums, zeros (blocks, 2, width): of x and of its square."""
    width = sums.shape[2]
    for i in range(len(x) // width):
        total, squares, row = sums[i // ROWS, 0], sums[i // ROWS, 1], x[i * width : (i + 1) * width]
        for j in range(width):
            value = _load(row[j])
            total[j] += value
            squares[j] += value * value


@numba.njit(cache=True)
def gradient_sums(dy, x, out, relu, sums):
    """sums, zeros (blocks, 2, width): of g, which is dy or, with relu, dy where out > 0, and of
    g x."""
    width = sums.shape[2]
    for i in range(len(x) // width):
        total, products = sums[i // ROWS, 0], sums[i // ROWS, 1]
        begin, end = i * width, (i + 1) * width
        theirs, ours, after = dy[begin:end], x[begin:end], out[begin:end]
        for j in range(width):
            g = _passed(theirs[j], after[j], relu)
            total[j] += g
            products[j] += g * _load(ours[j])


@numba.njit(cache=True)
def apply(x, scale, shift, skip, relu, out):
    """out = scale x + shift (+ skip, where it is not empty), and its positive part with relu; scale
    and shift (width,)."""
    width = len(scale)
    for i in range(len(x) // width):
        begin, end = i * width, (i + 1) * width
        row, to = x[begin:end], out[begin:end]
        if len(skip):
            other = skip[begin:end]
            for j in range(width):
                y = _load(row[j]) * scale[j] + shift[j] + _load(other[j])
                to[j] = _round(_positive_part(y) if relu else y)
        else:
            for j in range(width):
                y = _load(row[j]) * scale[j] + shift[j]
                to[j] = _round(_positive_part(y) if relu else y)


@numba.njit(cache=True)
def add(one, other, width, out):
    """out = one + other, in rows of `width` numbers."""
    for i in range(len(out) // width):
        begin, end = i * width, (i + 1) * width
        left, right, to = one[begin:end], other[begin:end], out[begin:end]
        for j in range(width):
            to[j] = _round(_load(left[j]) + _load(right[j]))


@numba.njit(cache=True)
def gradient(dy, x, out, relu, a, b, c, dx, dskip):
    """dx = a g + b x + c, and dskip = g where it is not empty; a, b, c (width,)."""
    width = len(a)
    for i in range(len(x) // width):
        begin, end = i * width, (i + 1) * width
        theirs, ours, after, to = dy[begin:end], x[begin:end], out[begin:end], dx[begin:end]
        for j in range(width):
            g = _passed(theirs[j], after[j], relu)
            to[j] = _round(a[j] * g + b[j] * _load(ours[j]) + c[j])
        if len(dskip):
            rest = dskip[begin:end]
            for j in range(width):
                rest[j] = theirs[j] if np.int16(after[j]) > 0 else np.uint16(0)
