"""Weights from a file into a network: all of them, or all but the last layer where the classes are
others."""

from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn

from dist_resnet.weights.files import Weights

LAST_LAYER = ("fc.weight", "fc.bias")  # in every family
UNREAD = "num_batches_tracked"  # BN's counter, which our networks go without
SHOWN = 4  # names in a message


@torch.no_grad()
def fill(
    network: nn.Module, tensors: dict[str, torch.Tensor], path: Path, new: Collection[str] = ()
) -> list[str]:
    """Copy tensors into a network of the same names and shapes, but for those that stay `new`;
    returns the names of those taken.

    Raises ValueError, with nothing copied, where a name or a shape does not fit."""
    mine = {name: t for name, t in network.state_dict().items() if name not in new}
    theirs = {n: t for n, t in tensors.items() if n not in new and not n.endswith(UNREAD)}
    misfits = {
        "missing": [name for name in mine if name not in theirs],
        "not in the network": [name for name in theirs if name not in mine],
        "of another shape": [
            f"{name} {list(theirs[name].shape)} for {list(tensor.shape)}"
            for name, tensor in mine.items()
            if name in theirs and theirs[name].shape != tensor.shape
        ],
    }
    if any(misfits.values()):
        told = "; ".join(f"{_listed(names)} {what}" for what, names in misfits.items() if names)
        raise ValueError(
            f"{path} holds the weights of another network ({told}): set the model's keys to those "
            "it was trained with, or take other weights"
        )
    for name, tensor in mine.items():
        tensor.copy_(theirs[name])
    return list(mine)


def start_from(network: nn.Module, weights: Weights, classes: list[str]) -> str:
    """Begin a training with the weights of another one. The last layer stays as it is where its
    classes are not these: by name, or where a file does not tell names, by number.

    Returns what was taken and what was not. Raises ValueError where anything else does not fit."""
    before, own = weights.card.classes if weights.card else None, network.state_dict()
    last = [name for name in LAST_LAYER if name in own]
    if before is not None:
        same = before == classes
    else:
        same = all(n in weights.tensors and weights.tensors[n].shape == own[n].shape for n in last)
    new = () if same else LAST_LAYER
    taken = fill(network, weights.tensors, weights.path, new)
    count = sum(own[name].numel() for name in taken)
    said = f"starts from {weights.path}: {len(taken)} tensors of {count:,} numbers taken"
    if same:
        return f"{said}, all there are"
    names = f"{len(before)} ({_listed(before)})" if before else "of another number"
    return (
        f"{said}; {' and '.join(last)} new: its classes were {names}, and are {len(classes)} "
        f"({_listed(classes)})"
    )


def _listed(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
