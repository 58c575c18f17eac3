"""A trained network as one uses it: images in, logits out."""

from pathlib import Path

import torch
from PIL import Image
from torch import nn

from dist_resnet import models
from dist_resnet.models.normalise import Normalise
from dist_resnet.models.tta import answer
from dist_resnet.weights import files, transfer
from dist_resnet.weights.files import Weights


class Classifier(nn.Module):
    """uint8 images (N, 3, H, W) -> logits, float32 (N, classes), as an evaluation computes them in
    float32: normalised, and averaged over the views that the training was evaluated on.

    `network` takes images that are normalised already; `card` holds what else is known."""

    offset: torch.Tensor
    scale: torch.Tensor

    def __init__(self, weights: Weights) -> None:
        """Raises ValueError where the weights are not those of the card's network."""
        super().__init__()
        self.card = weights.known()
        self.network = models.build(self.card.settings(), len(self.card.classes))
        transfer.fill(self.network, weights.tensors, weights.path)
        self.network.to(memory_format=torch.channels_last)
        cpu = torch.device("cpu")
        normalise = Normalise.of(self.card.mean, self.card.std, torch.float32, cpu)
        self.register_buffer("offset", normalise.mean, persistent=False)
        self.register_buffer("scale", normalise.scale, persistent=False)

    @property
    def classes(self) -> list[str]:
        """Names, by the place of their logit."""
        return self.card.classes

    @property
    def mean(self) -> list[float]:
        """Of each colour of the training images, in [0, 1]; `std` likewise."""
        return self.card.mean

    @property
    def std(self) -> list[float]:
        return self.card.std

    def prepare(self, image: Path | str | Image.Image) -> torch.Tensor:
        """An image of any size, or a file of one -> uint8 (3, H, W), cut out and resized as for an
        evaluation. Raises ValueError for a file that is no image."""
        from dist_resnet.weights import images  # FFCV takes seconds to import

        return torch.from_numpy(images.prepare(image, self.card))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        inputs = Normalise(self.offset, self.scale, torch.float32)(images)
        return answer(self.network, inputs, self.card.tta)


def load(path: Path | str, checkpoint: str | None = None) -> Classifier:
    """The Classifier of a RUN_DIR (checkpoint: latest or best), a checkpoint or an export, on the
    CPU and in evaluation mode."""
    return Classifier(files.read(Path(path), checkpoint)).eval()
