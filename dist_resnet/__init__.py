"""Trains CIFAR and ImageNet ResNets on FFCV betons under DDP.

From Python: `train` a `Config`, a dictionary or a YAML file, `load` a trained network. All else is
the command `dist-resnet`, or private."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dist_resnet.config import Config
    from dist_resnet.notebook import Run, train
    from dist_resnet.weights.classifier import Classifier

__version__ = "0.1.0"
__all__ = ["Config", "Run", "load", "train"]
HOMES = {"Config": "config", "Run": "notebook", "train": "notebook"}  # imported when asked for


def load(path: "Path | str", checkpoint: "str | None" = None) -> "Classifier":
    """A trained network, on the CPU and in evaluation mode.

    path: a RUN_DIR, a checkpoint of one, or a .safetensors or .pt file of `dist-resnet export`.
    checkpoint: latest (the default) or best, of a RUN_DIR.

    Returns an nn.Module that maps uint8 images (N, 3, H, W) to logits, float32 (N, classes), and
    does the normalisation itself. It has `classes` (names by the place of their logit), `mean` and
    `std` (of each colour, in [0, 1]), `network` (the bare nn.Module: float images, normalised, to
    logits), `card` (all else that is known), and `prepare`, which makes a uint8 (3, H, W) of an
    image of any size.

    Raises ValueError where there are no such weights, or they are not whole."""
    from dist_resnet.weights import classifier  # torch, which importing dist_resnet must not

    return classifier.load(path, checkpoint)


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in HOMES:
        return getattr(import_module(f"dist_resnet.{HOMES[name]}"), name)
    raise AttributeError(f"module 'dist_resnet' has no attribute {name!r}")
