"""A shallow residual network for short trainings on 32x32 images.

A whitening 2x2 convolution, groups that each halve the image, maximum, linear. The ingredients are
those of Jordan 2024 ("94% on CIFAR-10 in 3.29 seconds", section 3) and of Page 2019 ("How to train
your ResNet"); the residual branch is the latter's."""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from dist_resnet.config import SpeedrunModel

WHITENED = 24  # + and - of the 12 eigenvectors of 2x2 patches of three colours
WHITENING_BIAS = "conv.bias"
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
}


class Group(nn.Module):
    """A 3x3 convolution and 2x2 max-pooling, then a residual branch of `depth` 3x3 convolutions."""

    def __init__(self, config: SpeedrunModel, inputs: int, outputs: int, depth: int) -> None:
        super().__init__()
        channels = [inputs, *[outputs] * (depth + 1)]
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in pairwise(channels)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _ in self.convs)
        self.activation = ACTIVATIONS[config.activation]
        if config.dirac:
            for conv in self.convs:
                assert isinstance(conv, nn.Conv2d)
                nn.init.dirac_(conv.weight[: conv.in_channels])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.activation(self.norms[0](F.max_pool2d(self.convs[0](x), 2)))
        y = x
        for conv, norm in zip(self.convs[1:], self.norms[1:]):
            y = self.activation(norm(conv(y)))
        return x + y


class SpeedrunResNet(nn.Module):
    """The first convolution, the groups, the last layer: see the head of this file."""

    def __init__(self, config: SpeedrunModel, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, WHITENED, 2)
        if config.whiten_bias_epochs:
            assert self.conv.bias is not None
            nn.init.zeros_(self.conv.bias)
        channels, depth = (
            [WHITENED, *config.channels],
            (config.depth - 2) // len(config.channels) - 1,
        )
        self.groups = nn.Sequential(*(Group(config, i, o, depth) for i, o in pairwise(channels)))
        self.fc = nn.Linear(channels[-1], num_classes, bias=False)
        self.activation, self.logit_scale = ACTIVATIONS[config.activation], config.logit_scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, 3, 32, 32) -> logits (N, num_classes)."""
        x = self.groups(self.activation(self.conv(x)))
        return self.fc(x.amax((2, 3))) * self.logit_scale

    @torch.no_grad()
    def whiten(self, images: torch.Tensor, epsilon: float = 5e-4) -> None:
        """Fix the first convolution's weights to the directions in which 2x2 patches of these
        images vary, each scaled to unit variance, and their negatives. images: float (N, 3, H, W),
        normalised. Its bias stays trainable."""
        size = self.conv.kernel_size[0]
        patches = F.unfold(images.float(), size).transpose(1, 2).reshape(-1, 3 * size * size)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / (values + epsilon).sqrt()).T.reshape(-1, 3, size, size)
        self.conv.weight.copy_(torch.cat([filters, -filters]))
        self.conv.weight.requires_grad = False
