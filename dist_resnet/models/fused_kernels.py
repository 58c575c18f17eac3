"""The compiled loops of fused_norm.py, over a channels_last activation as it lies: float32 (n,), or
bfloat16 kept as its bits, uint16 (n,). The arithmetic is float32.

An activation is taken as rows of some 512 numbers, whole pixels each, and its rows in blocks, so
that long sums are added in float64, and blocks can be shared among threads: what is computed does
not depend on their number. numba keeps the code compiled on disk."""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from dist_resnet.models.torch_threads import shared

WIDE = 512  # numbers of a row at least, so that the loops are vectorised, and long
ROWS = 16  # rows of a block


def width(pixels: int, channels: int) -> int:
    """Numbers of a row: whole pixels, such that the rows are of one length."""
    together = min(-(-WIDE // channels), pixels)
    while pixels % together:
        together -= 1
    return together * channels


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
def _rounded(value):
    """The bits of the nearest bfloat16, ties to even."""
    bits = _as_bits(value)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))


def _load(stored):
    """A number of an activation, as float32."""


@overload(_load, inline="always")
def _load_of(stored):
    if stored == types.uint16:
        return lambda stored: _as_float(np.uint32(stored) << np.uint32(16))
    return lambda stored: stored


def _stored(value, to):
    """A float32 as the array `to` keeps it."""


@overload(_stored, inline="always")
def _stored_of(value, to):
    if to.dtype == types.uint16:
        return lambda value, to: _rounded(value)
    return lambda value, to: value


def _positive(stored):
    """Whether a number is over 0; NaN is."""


@overload(_positive, inline="always")
def _positive_of(stored):
    if stored == types.uint16:
        return lambda stored: np.int16(stored) > 0
    return lambda stored: not stored <= 0


@numba.njit(cache=True, inline="always")
def _blocks(x, width):
    return -(-len(x) // (ROWS * width))


@numba.njit(cache=True, inline="always")
def _rows(begin, end, count):
    """The rows of these blocks, of `count` in all."""
    return range(begin * ROWS, min(end * ROWS, count))


@numba.njit(cache=True, inline="always")
def _positive_part(y):
    """NaN stays NaN."""
    return np.float32(0) if y < 0 else y


@numba.njit(cache=True, nogil=True)
def _moments(x, sums, begin, end):
    """sums, zeros (blocks, 2, width): of x and of its square."""
    width = sums.shape[2]
    for i in _rows(begin, end, len(x) // width):
        total, squares, row = sums[i // ROWS, 0], sums[i // ROWS, 1], x[i * width : (i + 1) * width]
        for j in range(width):
            value = _load(row[j])
            total[j] += value
            squares[j] += value * value


@numba.njit(cache=True, nogil=True)
def _gradient_sums(dy, x, out, relu, g, sums, begin, end):
    """g = dy where out > 0, with relu; without, g is dy already. sums, zeros (blocks, 2, width): of
    g and of g x."""
    width = sums.shape[2]
    for i in _rows(begin, end, len(x) // width):
        first, last = i * width, (i + 1) * width
        total, products = sums[i // ROWS, 0], sums[i // ROWS, 1]
        ours, passed = x[first:last], g[first:last]
        if relu:
            theirs, after = dy[first:last], out[first:last]
            for j in range(width):
                passed[j] = theirs[j] if _positive(after[j]) else passed.dtype.type(0)
        for j in range(width):
            value = _load(passed[j])
            total[j] += value
            products[j] += value * _load(ours[j])


@numba.njit(cache=True, nogil=True)
def _apply(x, scale, shift, skip, relu, out, begin, end):
    """out = scale x + shift (+ skip, where it is not empty), and its positive part with relu; scale
    and shift (width,)."""
    width = len(scale)
    for i in _rows(begin, end, len(x) // width):
        row, to = x[i * width : (i + 1) * width], out[i * width : (i + 1) * width]
        if len(skip):
            other = skip[i * width : (i + 1) * width]
            for j in range(width):
                y = _load(row[j]) * scale[j] + shift[j] + _load(other[j])
                to[j] = _stored(_positive_part(y) if relu else y, to)
        else:
            for j in range(width):
                y = _load(row[j]) * scale[j] + shift[j]
                to[j] = _stored(_positive_part(y) if relu else y, to)


@numba.njit(cache=True, nogil=True)
def _gradient(g, x, a, b, c, dx, begin, end):
    """dx = a g + b x + c; a, b, c (width,). dx may be g."""
    width, line = len(a), np.empty(len(a), np.float32)
    for i in _rows(begin, end, len(x) // width):
        first, last = i * width, (i + 1) * width
        theirs, ours, to = g[first:last], x[first:last], dx[first:last]
        for j in range(width):  # what is read and written in one loop is not vectorised
            line[j] = a[j] * _load(theirs[j]) + b[j] * _load(ours[j]) + c[j]
        for j in range(width):
            to[j] = _stored(line[j], to)


@numba.njit(cache=True, nogil=True)
def _folded(sums, channels):
    """All blocks' sums of each channel, float64 (2, C)."""
    blocks, _, width = sums.shape
    rows, total = np.zeros((2, width)), np.zeros((2, channels))
    for k in range(2):
        for i in range(blocks):
            row = sums[i, k]
            for j in range(width):
                rows[k, j] += row[j]
        for j in range(width):
            total[k, j % channels] += rows[k, j]
    return total


@numba.njit(cache=True, nogil=True)
def _row(values, width):
    """What belongs to each channel, float64 (C,), repeated over a row, float32 (width,)."""
    row = np.empty(width, np.float32)
    for j in range(width):
        row[j] = values[j % len(values)]
    return row


@numba.njit(cache=True, nogil=True)
def forward(
    x, skip, gamma, beta, running_mean, running_var, momentum, eps, of_batch, relu, width, out,
    threads,
):  # fmt: skip
    """out = relu(gamma (x - mean) / std + beta + skip), without what is empty or not asked for.
    of_batch: with the batch's mean and variance, to which the running ones move; else with those.
    Returns mean and std, float64 (C,)."""
    channels, blocks = len(gamma), _blocks(x, width)
    mean, variance = running_mean.astype(np.float64), running_var.astype(np.float64)
    if of_batch:
        count = len(x) // channels
        sums = np.zeros((blocks, 2, width), np.float32)
        shared(_moments, (x, sums), blocks, threads)
        total = _folded(sums, channels) / count
        mean, variance = total[0], np.maximum(total[1] - total[0] ** 2, 0.0)
        running_mean += momentum * (mean - running_mean)
        running_var += momentum * (variance * count / max(1, count - 1) - running_var)
    std = np.sqrt(variance + eps)
    scale = gamma / std
    rows = _row(scale, width), _row(beta - mean * scale, width)
    shared(_apply, (x, rows[0], rows[1], skip, relu, out), blocks, threads)
    return mean, std


@numba.njit(cache=True, nogil=True)
def backward(dy, x, out, gamma, mean, std, of_batch, relu, width, dx, dskip, threads):
    """dx, and skip's gradient where dskip is not empty. Returns dgamma and dbeta, float64 (C,)."""
    channels, blocks = len(gamma), _blocks(x, width)
    sums = np.zeros((blocks, 2, width), np.float32)
    g = (dskip if len(dskip) else dx) if relu else dy
    shared(_gradient_sums, (dy, x, out, relu, g, sums), blocks, threads)
    total = _folded(sums, channels)
    dbeta, count = total[0], len(x) // channels
    dgamma = (total[1] - mean * dbeta) / std
    a = gamma / std
    b = -a * dgamma / (std * count) * of_batch
    c = -a * dbeta / count * of_batch - b * mean
    rows = _row(a, width), _row(b, width), _row(c, width)
    shared(_gradient, (g, x, rows[0], rows[1], rows[2], dx), blocks, threads)
    return dgamma, dbeta


@numba.njit(cache=True, nogil=True)
def _add(one, other, width, out, begin, end):
    for i in _rows(begin, end, len(out) // width):
        first, last = i * width, (i + 1) * width
        left, right, to = one[first:last], other[first:last], out[first:last]
        for j in range(width):
            to[j] = _stored(_load(left[j]) + _load(right[j]), to)


@numba.njit(cache=True, nogil=True)
def add(one, other, width, out, threads):
    """out = one + other, in rows of `width` numbers."""
    shared(_add, (one, other, width, out), _blocks(out, width), threads)
