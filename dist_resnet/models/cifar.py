"""The 6n+2 ResNets for 32x32 images: He et al. 2015, "Deep Residual Learning", section 4.2.

Pre-activation blocks, and BN or ReLU elsewhere: He et al. 2016, "Identity Mappings", figure 4.
Widening: Zagoruyko and Komodakis 2016. Stochastic depth: Huang et al. 2016, section 3.
Squeeze-and-excitation: Hu et al. 2018, section 3, at the end of the branch."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from dist_resnet.config import CifarModel
from dist_resnet.models.fused_norm import norm_add_relu, two_ways


class Shortcut(nn.Module):
    """Option A: every second pixel, and zeros for the channels that are new. No parameters."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 2, 3, 1)  # as it lies, so that the gradient of the slice lies so, too
        x = F.pad(x[:, :: self.stride, :: self.stride], (0, self.new_channels))
        return x.permute(0, 3, 1, 2)


class NoShortcut(nn.Module):
    """In a plain network: nothing to add to the convolutions' output."""

    def forward(self, x: torch.Tensor) -> None:
        return None


class Block(nn.Module):
    """A residual block: convolutions of the given (kernel, channels), the first 3x3 with the
    stride."""

    def __init__(
        self, config: CifarModel, inputs: int, layers: list[tuple[int, int]], stride: int
    ) -> None:
        super().__init__()
        self.order = config.block_order
        outputs, strided = layers[-1][1], [kernel for kernel, _ in layers].index(3)
        self.pools = stride > 1 and config.downsample == "maxpool"
        stride = 1 if self.pools else stride
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        channels = inputs
        for i, (kernel, width) in enumerate(layers):
            normed = config.bn == "all" or i == 0
            self.convs.append(
                nn.Conv2d(
                    channels,
                    width,
                    kernel,
                    stride if i == strided else 1,
                    kernel // 2,
                    bias=not normed,
                )
            )
            features = channels if self.order == "preact" else width
            self.norms.append(nn.BatchNorm2d(features) if normed else nn.Identity())
            channels = width
        self.shortcut = _shortcut(config, inputs, outputs, stride)
        self.excite = _squeeze_excite(outputs) if config.squeeze_excite else None
        self.survival = 1.0  # probability that a step keeps the branch
        self.dropped = False  # whether this one leaves it out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(x, 2) if self.pools else x
        if self.order == "preact":
            return self._forward_preact(x)
        x, beside = two_ways(x)
        skip = self.shortcut(beside)
        if self.dropped and self.training:
            return self._without_branch(skip)
        for conv, norm in zip(self.convs[:-1], self.norms[:-1]):
            x = norm_add_relu(norm, conv(x))
        x, norm = self.convs[-1](x), self.norms[-1]
        if self.order == "bn_after_add":
            return norm_add_relu(norm, self._weighed(x) + skip)
        if self.order == "relu_before_add":
            return self._weighed(norm_add_relu(norm, x)) + skip
        if self.excite or (self.survival < 1 and not self.training):
            x, norm = self._weighed(norm(x)), nn.Identity()
        return norm_add_relu(norm, x, skip, relu=self.order != "no_final_relu")

    def _forward_preact(self, x: torch.Tensor) -> torch.Tensor:
        projects, dropped = isinstance(self.shortcut, nn.Conv2d), self.dropped and self.training
        if dropped and not projects:
            return self.shortcut(x)
        if projects:
            y, beside = two_ways(norm_add_relu(self.norms[0], x))
        else:
            x, beside = two_ways(x)
            y = norm_add_relu(self.norms[0], x)
        skip = self.shortcut(beside)
        if dropped:
            return skip
        for conv, norm in zip(self.convs[:-1], self.norms[1:]):
            y = norm_add_relu(norm, conv(y))
        return self._weighed(self.convs[-1](y)) + skip

    def _without_branch(self, skip: torch.Tensor) -> torch.Tensor:
        if self.order == "bn_after_add":
            return norm_add_relu(self.norms[-1], skip)
        return F.relu(skip) if self.order == "paper" else skip

    def _weighed(self, branch: torch.Tensor) -> torch.Tensor:
        """By its channels' importance, where that is asked for; in evaluation also by how often
        training keeps it (Huang et al. 2016, equation 5)."""
        branch = self.excite(branch) if self.excite else branch
        return branch if self.training or self.survival == 1 else self.survival * branch


def _squeeze_excite(channels: int, reduction: int = 16) -> nn.Module:
    from torchvision.ops import SqueezeExcitation  # torchvision takes two seconds to import

    return SqueezeExcitation(channels, max(1, channels // reduction))


def _shortcut(config: CifarModel, inputs: int, outputs: int, stride: int) -> nn.Module:
    """He et al. 2015, section 4.1: options A, B and C, and plain networks."""
    if config.shortcut == "none":
        return NoShortcut()
    changes = stride > 1 or inputs != outputs
    if config.shortcut != "C" and not changes:
        return nn.Identity()
    if config.shortcut == "A":
        return Shortcut(outputs - inputs, stride)
    projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
    if config.block_order == "preact":
        return projection
    return nn.Sequential(projection, nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """A 3x3 convolution, three stages of n blocks with 16k, 32k, 64k channels at 32, 16, 8 pixels,
    mean, linear."""

    def __init__(self, config: CifarModel, num_classes: int) -> None:
        super().__init__()
        n = (config.depth - 2) // (6 if config.block == "basic" else 9)
        preact = config.block_order == "preact"
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.Identity() if preact else nn.BatchNorm2d(16)
        blocks, channels = [], 16
        for stage in range(3):
            width = 16 * config.width * 2**stage
            layers = (
                [(3, width)] * 2
                if config.block == "basic"
                else [(1, width), (3, width), (1, 4 * width)]
            )
            for i in range(n):
                blocks.append(Block(config, channels, layers, stride=2 if stage and i == 0 else 1))
                channels = layers[-1][1]
        for number, block in enumerate(blocks, 1):
            block.survival = 1 - number / len(blocks) * config.stochastic_depth  # equation 4
        self.blocks = nn.Sequential(*blocks)
        self.last_norm = nn.BatchNorm2d(channels) if preact else nn.Identity()
        self.fc = nn.Linear(channels, num_classes)
        self.preact = preact
        self.recompute = (
            False  # activations inside of blocks, in the backward pass, in place of keeping them
        )
        self._initialise(config.zero_init_last_gamma)

    def _initialise(self, zero_last_gamma: bool) -> None:
        """He et al. 2015, "Delving Deep into Rectifiers", equation 14 (fan-out form)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.fc.bias)
        if zero_last_gamma:
            for block in self.blocks:
                assert isinstance(block, Block)
                norm, conv = block.norms[-1], block.convs[-1]
                normed = isinstance(norm, nn.BatchNorm2d)
                closes_branch = block.order in ("paper", "no_final_relu") and normed
                nn.init.zeros_((norm if closes_branch else conv).get_parameter("weight"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, 3, H, W) -> logits (N, num_classes)."""
        x = self.conv(x) if self.preact else norm_add_relu(self.norm, self.conv(x))
        for block in self.blocks:
            if self.recompute and self.training:
                x = checkpoint(
                    block,
                    x,
                    use_reentrant=False,
                    preserve_rng_state=False,
                    context_fn=partial(_recomputation, block),
                )
            else:
                x = block(x)
        if self.preact:
            x = norm_add_relu(self.last_norm, x)
        return self.fc(x.mean((2, 3)))


def _recomputation(block: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """What surrounds a block's first forward pass, and its second."""
    return nullcontext(), _statistics_kept(block)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """The second forward pass of a step must not move BN's running statistics a second time."""
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:  # torch leaves the second pass by an exception, once it has what it needs
        for norm, momentum in zip(norms, before):
            norm.momentum = momentum


def build(config: CifarModel, num_classes: int = 10) -> ResNet:
    return ResNet(config, num_classes)


def _paper(name: str, num_classes: int = 10) -> ResNet:
    """The paper's network: basic blocks, option A, BN before the addition."""
    return build(CifarModel(name=name), num_classes)


resnet20, resnet32, resnet44, resnet56, resnet110, resnet1202 = (
    partial(_paper, f"resnet{depth}") for depth in (20, 32, 44, 56, 110, 1202)
)
