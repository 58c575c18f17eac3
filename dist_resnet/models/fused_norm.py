"""BN, addition and ReLU together, on the CPU, in bfloat16.

A step on a CPU is half a matter of memory, and torch's BN, addition and ReLU pass over an
activation far more often than they must. Forward: y = relu(gamma (x - mean) / std + beta + skip).
Backward: g = dy where y > 0 is skip's gradient, and x's is a g + b x + c, with a, b, c for each
channel as in Ioffe and Szegedy 2015, section 3. Where a block begins, the gradients of its branch
and of its shortcut are added. For workers of one thread: numba's threads and
torch's, each waiting for work by spinning, would keep the cores from each other."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from dist_resnet.models import fused_kernels as kernels

NOTHING = np.empty(0, np.uint16)


def norm_add_relu(
    norm: nn.Module, x: torch.Tensor, skip: torch.Tensor | None = None, relu: bool = True
) -> torch.Tensor:
    """relu(norm(x) + skip), of x and skip (N, C, H, W). Fused where that can be, else torch's
    operations, which are the same up to rounding; or a norm's own `add_relu` (take_add_relu)."""
    if isinstance(norm, nn.BatchNorm2d) and _can_be_fused(x):
        return _Fused.apply(x, norm.weight, norm.bias, skip, relu, norm)
    y = norm(x)
    if skip is not None and relu and "add_relu" in vars(norm):
        return vars(norm)["add_relu"](y, skip)
    if skip is not None:
        y = y + skip
    return F.relu(y) if relu else y


def two_ways(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x, (N, C, H, W), twice: for a block's branch and for its shortcut. Where the gradients of
    both can be added by our own loop, in a third of torch's time for bfloat16, they are: to the
    same bits."""
    return _TwoWays.apply(x) if _can_be_fused(x) else (x, x)


def take_add_relu(model: nn.Module, add_relu: Callable | None) -> None:
    """What adds and cuts off after BN in place of torch's two operations; None: those again."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            vars(norm).pop("add_relu", None)
            if add_relu is not None:
                vars(norm)["add_relu"] = add_relu


def _can_be_fused(x: torch.Tensor) -> bool:
    bf16_on_cpu = x.device.type == "cpu" and x.dtype == torch.bfloat16
    return bf16_on_cpu and torch.get_num_threads() == 1 and not torch.compiler.is_compiling()


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        gamma: torch.Tensor,
        beta: torch.Tensor,
        skip: torch.Tensor | None,
        relu: bool,
        norm: nn.BatchNorm2d,
    ) -> torch.Tensor:
        x = _channels_last(x)
        skip = None if skip is None else _channels_last(skip)
        mean, variance = _moments(x, norm) if norm.training else _running(norm)
        std = np.sqrt(variance + norm.eps)
        scale = _floats(gamma) / std
        out = torch.empty_like(x)
        kernels.apply(
            _bits(x), _row(scale, x),
            _row(_floats(beta) - mean * scale, x), _bits(skip), relu, _bits(out),
        )  # fmt: skip
        ctx.save_for_backward(x, out, gamma)
        ctx.mean, ctx.std, ctx.of_batch = mean, std, norm.training
        ctx.relu, ctx.skips = relu, skip is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x, out, gamma), dy = ctx.saved_tensors, _channels_last(dy)
        sums, (count, _) = _zeros(x), _size(x)
        kernels.gradient_sums(_bits(dy), _bits(x), _bits(out), ctx.relu, sums)
        dbeta, products = _folded(sums, x)
        dgamma = (products - ctx.mean * dbeta) / ctx.std
        a = _floats(gamma) / ctx.std
        b = -a * dgamma / (ctx.std * count) * ctx.of_batch
        c = -a * dbeta / count * ctx.of_batch - b * ctx.mean
        dx = torch.empty_like(x)
        dskip = torch.empty_like(x) if ctx.skips and ctx.relu else None
        kernels.gradient(
            _bits(dy), _bits(x), _bits(out), ctx.relu,
            _row(a, x), _row(b, x), _row(c, x), _bits(dx), _bits(dskip),
        )  # fmt: skip
        vectors = (torch.from_numpy(v.astype(np.float32)) for v in (dgamma, dbeta))
        passed_on = dy if ctx.skips and not ctx.relu else dskip
        return dx, *vectors, passed_on, None, None


class _TwoWays(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.set_materialize_grads(False)
        return x.view_as(x), x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, one: torch.Tensor | None, other: torch.Tensor | None
    ) -> torch.Tensor | None:
        if one is None or other is None:  # of a plain network, or where a branch is left out
            return other if one is None else one
        one, other = _channels_last(one), _channels_last(other)
        total = torch.empty_like(one)
        kernels.add(_bits(one), _bits(other), kernels.width(*_size(one)), _bits(total))
        return total


def _moments(x: torch.Tensor, norm: nn.BatchNorm2d) -> tuple[np.ndarray, np.ndarray]:
    """(mean, biased variance) of the batch, float64 (C,); the running ones move."""
    sums, (count, _) = _zeros(x), _size(x)
    kernels.moments(_bits(x), sums)
    mean, squares = _folded(sums, x) / count
    variance = np.maximum(squares - mean**2, 0)
    for running, value in zip(_running(norm), (mean, variance * count / max(1, count - 1))):
        running += norm.momentum * (value - running)
    return mean, variance


def _running(norm: nn.BatchNorm2d) -> tuple[np.ndarray, np.ndarray]:
    assert norm.running_mean is not None and norm.running_var is not None
    return _floats(norm.running_mean), _floats(norm.running_var)


def _zeros(x: torch.Tensor) -> np.ndarray:
    """Room for two sums of each block."""
    return np.zeros((kernels.blocks(*_size(x)), 2, kernels.width(*_size(x))), np.float32)


def _size(x: torch.Tensor) -> tuple[int, int]:
    """(pixels, channels)."""
    return x.numel() // x.shape[1], x.shape[1]


def _folded(sums: np.ndarray, x: torch.Tensor) -> np.ndarray:
    """All blocks' sums of each channel, float64 (2, C)."""
    return sums.sum(0, dtype=np.float64).reshape(2, -1, x.shape[1]).sum(1)


def _row(values: np.ndarray, x: torch.Tensor) -> np.ndarray:
    """What belongs to each channel, repeated over a row."""
    return np.tile(values.astype(np.float32), kernels.width(*_size(x)) // len(values))


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _bits(x: torch.Tensor | None) -> np.ndarray:
    """Of a bfloat16 (N, C, H, W) in channels_last, as they lie: uint16 (N * H * W * C,)."""
    if x is None:
        return NOTHING
    return x.detach().permute(0, 2, 3, 1).view(torch.uint16).view(-1).numpy()


def _floats(x: torch.Tensor) -> np.ndarray:
    return x.detach().numpy()
