"""What a step draws beside its samples, as a pure function of (seed, step), for all workers alike:
mixup or CutMix, and which blocks it leaves out."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dist_resnet.config import Data
from dist_resnet.data import sampling
from dist_resnet.models.cifar import Block, ResNet


class Mixing:
    """mixup (Zhang et al. 2018, section 2) or CutMix (Yun et al. 2019, section 3.1) of a virtual
    worker's share of a batch: every image with the one after it, which is any other, since every
    epoch has an order of its own.

    One weight and one rectangle a step, for all workers; without virtual workers the pairs are
    those of the world size. The draws lie on the device, where a CUDA graph reads them."""

    def __init__(self, config: Data, seed: int, classes: int, device: torch.device) -> None:
        self.config, self.seed, self.classes = config, seed, classes
        # of the image itself; the rectangle's middle and sides, as parts of the image's
        self.weight, *self.rectangle = torch.ones(4, device=device).unbind()

    def draw(self, step: int) -> None:
        """To be called before each step: counted from 0."""
        if self.config.mix == "none":
            return
        key, alpha = sampling.key(self.seed, step, sampling.MIX), self.config.mix_alpha
        generator = np.random.Generator(np.random.Philox(key=key))
        mixes, y, x = generator.random(3)
        weight = generator.beta(alpha, alpha) if mixes < self.config.mix_share else 1.0
        side = math.sqrt(1 - weight)
        for tensor, value in zip((self.weight, *self.rectangle), (weight, y, x, side)):
            tensor.fill_(float(value))

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """images: float (N, 3, H, W); labels: int64 (N,). Returns mixed images, and targets:
        probabilities float32 (N, classes), or the labels where nothing is mixed."""
        if self.config.mix == "none":
            return images, labels
        others = torch.cat([images[-1:], images[:-1]])
        if self.config.mix == "mixup":
            own = self.weight
            mixed = torch.lerp(others.float(), images.float(), own).to(images.dtype)
        else:
            pasted = self._pasted(images)
            own = 1 - pasted.float().mean()
            mixed = torch.where(pasted, others, images)
        targets = F.one_hot(labels, self.classes).float()
        return mixed, torch.lerp(targets.roll(1, 0), targets, own)

    def _pasted(self, images: torch.Tensor) -> torch.Tensor:
        """bool (H, W): the pixels of the rectangle, as much of it as lies in the image."""
        *middle, side = self.rectangle
        within = []
        for size, at in zip(images.shape[2:], middle):
            half = ((size * side).floor() / 2).floor()
            pixels = torch.arange(size, device=images.device) - (size * at).floor()
            within.append((-half <= pixels) & (pixels < half))
        return within[0][:, None] & within[1]


class StochasticDepth:
    """Leaves out branches of a whole step, forward and backward, each with its own probability
    (Huang et al. 2016, section 3): at their rate of one half, a quarter of all blocks' work."""

    def __init__(self, network: nn.Module, seed: int) -> None:
        blocks = [*network.blocks] if isinstance(network, ResNet) else []
        self.blocks = [b for b in blocks if isinstance(b, Block) and b.survival < 1]
        self.seed = seed

    def draw(self, step: int) -> None:
        """To be called before each step: counted from 0."""
        if not self.blocks:
            return
        draws = sampling.uniform(self.seed, step, sampling.DEPTH, len(self.blocks))
        for block, draw in zip(self.blocks, draws):
            block.dropped = bool(draw >= block.survival)
