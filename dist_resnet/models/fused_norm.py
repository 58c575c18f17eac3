"""BN, addition and ReLU together, on the CPU, in bfloat16 or float32.

A step on a CPU is half a matter of memory, and torch's BN, addition and ReLU pass over an
activation far more often than they must. Forward: y = relu(gamma (x - mean) / std + beta + skip).
Backward: g = dy where y > 0 is skip's gradient, and x's is a g + b x + c, with a, b, c for each
channel as in Ioffe and Szegedy 2015, section 3. Where a block begins, the gradients of its branch
and of its shortcut are added."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from dist_resnet.models import fused_kernels as kernels, torch_threads

TYPES = (torch.bfloat16, torch.float32)


def norm_add_relu(
    norm: nn.Module, x: torch.Tensor, skip: torch.Tensor | None = None, relu: bool = True
) -> torch.Tensor:
    """relu(norm(x) + skip), of x and skip (N, C, H, W). Fused where that can be, else torch's
    operations, which are the same up to rounding; or a norm's own `add_relu` (take_add_relu)."""
    if isinstance(norm, nn.BatchNorm2d) and norm.weight.dtype == torch.float32 and _can_be_fused(x):
        return _Fused.apply(x, norm.weight, norm.bias, skip, relu, norm)
    y = norm(x)
    if skip is not None and relu and "add_relu" in vars(norm):
        return vars(norm)["add_relu"](y, skip)
    if skip is not None:
        y = y + skip
    return F.relu(y) if relu else y


def two_ways(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x, (N, C, H, W), twice: for a block's branch and for its shortcut. The gradients of both are
    added by our own loop where they are bfloat16, in a third of torch's time, to the same bits."""
    ours = x.dtype == torch.bfloat16 and _can_be_fused(x)
    return _TwoWays.apply(x) if ours else (x, x)


def take_add_relu(model: nn.Module, add_relu: Callable | None) -> None:
    """What adds and cuts off after BN in place of torch's two operations; None: those again."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            vars(norm).pop("add_relu", None)
            if add_relu is not None:
                vars(norm)["add_relu"] = add_relu


def _can_be_fused(x: torch.Tensor) -> bool:
    ours = x.device.type == "cpu" and x.dtype in TYPES and x.numel() > 0
    threads = torch_threads.FOUND or torch.get_num_threads() == 1
    return ours and threads and not torch.compiler.is_compiling()


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
        out, of_batch = torch.empty_like(x), norm.training
        assert norm.running_mean is not None and norm.running_var is not None
        ctx.mean, ctx.std = kernels.forward(
            _flat(x), _flat(x[:0] if skip is None else skip), _floats(gamma), _floats(beta),
            _floats(norm.running_mean), _floats(norm.running_var), norm.momentum, norm.eps,
            of_batch, relu, _width(x), _flat(out), torch.get_num_threads(),
        )  # fmt: skip
        ctx.save_for_backward(x, out, gamma)
        ctx.of_batch, ctx.relu, ctx.skips = of_batch, relu, skip is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x, out, gamma), dy = ctx.saved_tensors, _channels_last(dy)
        dx = torch.empty_like(x)
        dskip = torch.empty_like(x) if ctx.skips and ctx.relu else None
        found = kernels.backward(
            _flat(dy), _flat(x), _flat(out), _floats(gamma), ctx.mean, ctx.std, ctx.of_batch,
            ctx.relu, _width(x), _flat(dx), _flat(x[:0] if dskip is None else dskip),
            torch.get_num_threads(),
        )  # fmt: skip
        dgamma, dbeta = (torch.from_numpy(v.astype(np.float32)) for v in found)
        return dx, dgamma, dbeta, dy if ctx.skips and not ctx.relu else dskip, None, None


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
        threads = torch.get_num_threads()
        kernels.add(_flat(one), _flat(other), _width(one), _flat(total), threads)
        return total


def _width(x: torch.Tensor) -> int:
    return kernels.width(x.numel() // x.shape[1], x.shape[1])


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _flat(x: torch.Tensor) -> np.ndarray:
    """An activation (N, C, H, W) in channels_last as it lies, (N * H * W * C,): float32, or the
    bits of bfloat16 as uint16."""
    x = x.detach().permute(0, 2, 3, 1)
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).view(-1).numpy()


def _floats(x: torch.Tensor) -> np.ndarray:
    return x.detach().numpy()
