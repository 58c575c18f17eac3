"""What a network is made of, and what it costs: shapes, parameters, multiply-adds, and the memory
that its activations take until the backward pass. Counted on torch's meta device: nothing is
computed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dist_resnet import models
from dist_resnet.config import Model

BATCH = 2  # BN does not train on one value


@dataclass(frozen=True)
class Layer:
    """A layer or a block; the figures are of one image."""

    name: str
    kind: str
    output: tuple[int, ...]  # without the batch's dimension
    parameters: int
    multiply_adds: int  # of the forward pass
    activations: int  # bytes in float32 that the backward pass needs of it
    count: int = 1  # so many alike, one after the other


def describe(config: Model, classes: int, size: tuple[int, int], blocks: bool) -> list[Layer]:
    """The layers of a network in the order of their work, for images of (height, width).

    blocks: a residual block is one entry. torch's flop counter counts convolutions and matrix
    products, a multiplication and an addition as one, as He et al. 2015 do; what is saved for
    the backward pass is what autograd asks to save, each tensor once, at the layer that made it
    necessary."""
    with torch.device("meta"):
        network = models.build(config, classes)
        images = torch.empty(BATCH, 3, *size)
    units = dict(_units(network, "", blocks))
    outputs: dict[str, torch.Size] = {}
    with FlopCounterMode(display=False, depth=99) as flops, _saved_by(units, outputs) as saved:
        network(images)
    counted = flops.get_flop_counts()
    root = type(network).__name__
    return [
        Layer(
            name=name,
            kind=_kind(units[name]),
            output=tuple(shape[1:]),
            parameters=sum(p.numel() for p in units[name].parameters()),
            multiply_adds=sum(counted.get(f"{root}.{name}", {}).values()) // (2 * BATCH),
            activations=saved[name] // BATCH,
        )
        for name, shape in outputs.items()
    ]


def folded(layers: list[Layer]) -> list[Layer]:
    """Likewise, with neighbours that differ in nothing but their name as one entry."""
    found: list[Layer] = []
    for layer in layers:
        last = found[-1] if found else None
        if last and replace(layer, name=last.name, count=last.count) == last:
            found[-1] = replace(last, count=last.count + 1)
        else:
            found.append(layer)
    return found


def _units(module: nn.Module, prefix: str, blocks: bool) -> Iterator[tuple[str, nn.Module]]:
    """The parts that become entries. Sequences are opened, and where `blocks` is False everything
    is."""
    for name, child in module.named_children():
        opened = isinstance(child, nn.Sequential | nn.ModuleList) or not blocks
        if opened and any(True for _ in child.children()):
            yield from _units(child, f"{prefix}{name}.", blocks)
        elif not isinstance(child, nn.Identity):
            yield f"{prefix}{name}", child


@contextmanager
def _saved_by(
    units: dict[str, nn.Module], outputs: dict[str, torch.Size]
) -> Iterator[dict[str, int]]:
    """Bytes that each unit saves for the backward pass, filled in during a forward pass; `outputs`
    takes the shapes that come out. What is saved between units counts to the one before."""
    saved, kept, current = dict.fromkeys(units, 0), {}, [next(iter(units))]
    parameters = {id(p) for unit in units.values() for p in unit.parameters()}

    def enter(name: str) -> None:
        current[0] = name

    def leave(name: str, output: torch.Tensor | None) -> None:
        if output is not None:  # a plain network's shortcut
            outputs[name] = output.shape

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        of_images = tensor.ndim > 1 and tensor.shape[0] == BATCH and id(tensor) not in parameters
        if of_images and storage._cdata not in kept:
            kept[storage._cdata] = storage  # held: another would take its place, and its number
            saved[current[0]] += storage.nbytes()
        return tensor

    hooks = []
    for name, unit in units.items():
        hooks.append(unit.register_forward_pre_hook(lambda m, x, name=name: enter(name)))
        hooks.append(unit.register_forward_hook(lambda m, x, y, name=name: leave(name, y)))
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield saved
    finally:
        for hook in hooks:
            hook.remove()


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        (height, width), stride = module.kernel_size, module.stride[0]
        return f"convolution {height}x{width}" + (f" / {stride}" if stride > 1 else "")
    return type(module).__name__
