"""Settings of the networks: one dataclass for each family, so that a key of another family is
unknown."""

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from dist_resnet.config.section import Section, setting


@dataclass(frozen=True)
class Model(Section):
    """What all families have."""

    section: ClassVar[str] = "model"
    family: str = setting(
        "cifar", "cifar: the 6n+2 networks; imagenet: torchvision's; speedrun: a shallow one"
    )
    name: str = setting("resnet20", "resnet<depth>")
    bn_momentum: float = setting(
        0.1, "part of a batch in BN's running statistics; short trainings want more"
    )
    bn_eps: float = setting(1e-5, "what BN adds to a variance before it divides by its root")
    bn_scale: Literal["trained", "fixed"] = setting("trained", "BN's gamma; fixed: it stays 1")

    def check(self) -> None:
        form = re.fullmatch(r"resnet\d+", self.name) is not None
        self.require(form, "name", "write resnet<depth>, such as resnet110")
        self.require(0 < self.bn_momentum <= 1, "bn_momentum", "must be in (0, 1]")
        self.require(self.bn_eps > 0, "bn_eps", "must be positive")

    @property
    def depth(self) -> int:
        return int(self.name.removeprefix("resnet"))


@dataclass(frozen=True)
class CifarModel(Model):
    """The 6n+2 networks of He et al. 2015, section 4.2, and their variants."""

    family: Literal["cifar"] = setting(
        "cifar", Model.__dataclass_fields__["family"].metadata["comment"]
    )
    name: str = setting(
        "resnet20", "resnet<depth>; the depth is 6n+2 (basic blocks) or 9n+2 (bottleneck)"
    )
    shortcut: Literal["A", "B", "C", "none"] = setting(
        "A",
        "where the shape changes: A zero padding (the paper's), B 1x1 projection; C: a projection "
        "in every block; none: a plain network, without any",
    )
    width: int = setting(
        1, "widening factor k of Wide ResNets; the stages have 16k, 32k, 64k channels"
    )
    block: Literal["basic", "bottleneck"] = setting(
        "basic", "two 3x3 convolutions, or 1x1-3x3-1x1 with expansion 4"
    )
    block_order: Literal["paper", "bn_after_add", "relu_before_add", "no_final_relu", "preact"] = (
        setting("paper", "paper: BN before the addition, ReLU after; the others move or drop them")
    )
    downsample: Literal["stride", "maxpool"] = setting(
        "stride", "how a stage halves the image: by its first convolution, or by 2x2 max-pooling"
    )
    stochastic_depth: float = setting(
        0.0,
        "probability that a step leaves out the last block's branch (Huang et al. 2016), falling "
        "linearly towards the first block; 0.5 is theirs",
    )
    squeeze_excite: bool = setting(
        False,
        "let a small network weigh the channels of every branch (Hu et al. 2018, reduction 16)",
    )
    bn: Literal["all", "first"] = setting(
        "all", "batch normalisation on every convolution, or on the first of each block only"
    )
    zero_init_last_gamma: bool = setting(
        False, "start every residual branch at zero (Goyal et al. 2017, section 5.1)"
    )

    def check(self) -> None:
        super().check()
        self.require(self.width >= 1, "width", "must be at least 1")
        every_bn = self.block_order in ("bn_after_add", "preact")
        self.require(
            not (self.bn == "first" and every_bn),
            "bn",
            f"block_order {self.block_order} needs every BN; set --model.bn all or another "
            "block_order",
        )
        plain = self.shortcut == "none"
        self.require(
            not plain or (self.block_order == "paper" and self.stochastic_depth == 0),
            "shortcut",
            "leaves no addition that model.block_order could move, and nothing in the place of a "
            "branch that model.stochastic_depth leaves out; leave them out, or use shortcut A",
        )
        self.require(
            not self.zero_init_last_gamma or not (plain or self.block_order == "relu_before_add"),
            "zero_init_last_gamma",
            "would pass no gradient through a ReLU that nothing is added to before; leave it out",
        )
        self.require(0 <= self.stochastic_depth < 1, "stochastic_depth", "must be in [0, 1)")
        _fixed_scale_is_free(self, self.zero_init_last_gamma)
        unit = 6 if self.block == "basic" else 9
        self.require(
            (self.depth - 2) % unit == 0 and self.depth > 2,
            "name",
            f"a CIFAR ResNet of {self.block} blocks has depth {unit}n+2; "
            "for torchvision's networks set --model.family imagenet",
        )


@dataclass(frozen=True)
class ImagenetModel(Model):
    """torchvision's ResNets."""

    family: Literal["imagenet"] = setting("imagenet", "")
    name: str = setting("resnet50", "resnet18, resnet34, resnet50, resnet101 or resnet152")
    stem: Literal["imagenet", "cifar"] = setting(
        "imagenet", "7x7/2 and max-pool, or 3x3/1 for 32x32 input"
    )
    blurpool: bool = setting(
        False, "blur what a convolution of stride 2 reads (Zhang 2019; as ffcv-imagenet does)"
    )
    zero_init_last_gamma: bool = setting(
        False, "start every residual branch at zero (Goyal et al. 2017, section 5.1)"
    )

    def check(self) -> None:
        super().check()
        self.require(
            self.depth in (18, 34, 50, 101, 152),
            "name",
            "torchvision has resnet18, resnet34, resnet50, resnet101 and resnet152",
        )
        _fixed_scale_is_free(self, self.zero_init_last_gamma)


@dataclass(frozen=True)
class SpeedrunModel(Model):
    """A shallow network for short trainings (Jordan 2024; Page 2019)."""

    family: Literal["speedrun"] = setting("speedrun", "")
    name: str = setting(
        "resnet8", "resnet<depth>; the depth is 2 and a multiple of the number of groups"
    )
    channels: tuple[int, ...] = setting(
        (64, 256, 256), "of its groups, each of which halves the image"
    )
    activation: Literal["relu", "gelu", "silu"] = setting("relu", "the non-linearity")
    whiten: bool = setting(
        False, "fix the first convolution to what whitens 2x2 patches of the training images"
    )
    whiten_bias_epochs: float = setting(
        0.0,
        "train the whitening convolution's bias for so many epochs, at the weights' learning rate "
        "and from 0, and then leave it; 0: throughout, as other biases",
    )
    dirac: bool = setting(
        False, "start 3x3 convolutions as identities of as many channels as come in"
    )
    logit_scale: float = setting(1.0, "what the last layer's output is multiplied by")

    def check(self) -> None:
        super().check()
        groups = len(self.channels)
        self.require(
            groups >= 1 and min(self.channels) >= 12,
            "channels",
            "needs at least one group, of 12 channels or more",
        )
        self.require(
            (self.depth - 2) % groups == 0 and self.depth >= 2 + 2 * groups,
            "name",
            f"{groups} groups of n >= 2 convolutions, the first one and the last layer make a "
            "depth of "
            f"{groups}n+2",
        )
        self.require(
            self.whiten_bias_epochs >= 0 and (self.whiten or self.whiten_bias_epochs == 0),
            "whiten_bias_epochs",
            "must be 0 or more, and needs --model.whiten true",
        )


def _fixed_scale_is_free(model: Model, zero_init_last_gamma: bool) -> None:
    model.require(
        not (model.bn_scale == "fixed" and zero_init_last_gamma),
        "bn_scale",
        "keeps gamma at 1, and model.zero_init_last_gamma wants it to start at 0",
    )


FAMILIES: dict[str, type[Model]] = {
    "cifar": CifarModel,
    "imagenet": ImagenetModel,
    "speedrun": SpeedrunModel,
}
