"""What runs inside one worker process: CIFAR and ImageNet ResNets, trained on FFCV betons under
DDP. And `load`: a trained network, to be used."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dist_resnet.weights.classifier import Classifier

__version__ = "0.1.0"


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
