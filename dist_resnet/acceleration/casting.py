"""All weights cast to half precision together, where autocast casts them one after the other."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def cast_together(model: nn.Module, dtype: torch.dtype) -> Callable[[], None]:
    """From now on a call of `model` starts with one cast of its convolutions' and linear layers'
    weights, and its backward pass ends with one of their gradients. The weights stay float32, and
    every bit is what autocast computes.

    On a GPU that is a few kernels in place of one for each weight and one for each gradient (225 a
    step for ResNet-110). All gradients then arrive together, so that DDP has nothing to reduce
    meanwhile. Returns what takes it back."""
    places = [
        (layer, name)
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
        for name, weight in layer.named_parameters()
        if weight.requires_grad
    ]

    def shadow(module: nn.Module, inputs: Any) -> None:
        for (layer, name), half in zip(
            places, _Cast.apply(dtype, *(layer.get_parameter(name) for layer, name in places))
        ):
            vars(layer)[name] = half  # found before the parameter of that name

    def uncover(module: nn.Module, inputs: Any, output: Any) -> None:
        for layer, name in places:
            vars(layer).pop(name, None)

    handles = [
        model.register_forward_pre_hook(shadow),
        model.register_forward_hook(uncover, always_call=True),
    ]

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return _copies(weights, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, *_copies(gradients, torch.float32)


def _copies(tensors: tuple[torch.Tensor, ...], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    copies = [torch.empty_like(t, dtype=dtype) for t in tensors]
    torch._foreach_copy_(copies, list(tensors))
    return tuple(copies)
