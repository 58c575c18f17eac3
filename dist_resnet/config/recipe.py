"""Settings of the recipe: optimizer, schedule, how they scale with the batch."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dist_resnet.config.section import Section, parse_length, setting


@dataclass(frozen=True)
class Optim(Section):
    section: ClassVar[str] = "optim"
    name: Literal["sgd", "adam", "adamw", "lars", "lamb", "muon"] = setting(
        "sgd",
        "optimizer; adam adds the L2 penalty to the gradient, adamw decays the weights apart from "
        "it (Loshchilov and Hutter 2019); lars (You et al. 2017; trust coefficient 0.001) and lamb "
        "(You et al. 2020): large batches; muon (Jordan 2024; lr as Adam's, which takes the "
        "vectors); these three are timm's: pip install 'dist-resnet[optimizers]'",
    )
    lr: float = setting(0.1, "peak learning rate at schedule.reference_batch")
    momentum: float = setting(0.9, "momentum of sgd, lars and muon; beta1 of adam, adamw and lamb")
    nesterov: bool = setting(False, "Nesterov momentum (sgd, lars, muon)")
    adam_beta2: float = setting(0.999, "beta2 of adam, adamw and lamb, and of muon's AdamW")
    weight_decay: float = setting(
        1e-4, "L2 penalty, added to the gradient; of adamw, lamb and muon: to the step"
    )
    decay_norm_and_bias: bool = setting(
        True, "apply weight decay to BN and biases too, as the paper does"
    )
    bias_lr: float = setting(
        1.0,
        "learning rate of biases, as a multiple of the weights'; divides their weight decay",
    )
    lookahead: int = setting(
        0,
        "every so many steps, set the weights to their moving average (Zhang et al. 2019); 0: "
        "never",
    )
    ema: float = setting(
        0.0,
        "evaluate a moving average of weights and BN statistics, of this decay a step (0.999, "
        "say); 0: the weights themselves",
    )
    clip_norm: float = setting(
        0.0,
        "scale a longer gradient down to this Euclidean norm (Pascanu et al. 2013, section 3.2); "
        "0: never",
    )

    def check(self) -> None:
        self.require(self.lr > 0, "lr", "must be positive")
        self.require(0 <= self.momentum < 1, "momentum", "must be in [0, 1)")
        self.require(0 <= self.adam_beta2 < 1, "adam_beta2", "must be in [0, 1)")
        self.require(self.weight_decay >= 0, "weight_decay", "must be 0 or more")
        self.require(self.bias_lr > 0, "bias_lr", "must be positive")
        self.require(self.lookahead >= 0, "lookahead", "must be 0 or more steps")
        self.require(
            not (self.nesterov and (self.name in ("adam", "adamw", "lamb") or self.momentum == 0)),
            "nesterov",
            "needs optim.name sgd, lars or muon, and a momentum above 0",
        )
        self.require(0 <= self.ema < 1, "ema", "must be in [0, 1)")
        self.require(self.clip_norm >= 0, "clip_norm", "must be 0 or more")


@dataclass(frozen=True)
class Schedule(Section):
    section: ClassVar[str] = "schedule"
    reference_batch: int = setting(128, "global batch at which this recipe is written")
    steps: int = setting(64000, "last step of the recipe at the reference batch")
    decay: Literal["milestones", "linear", "cosine"] = setting(
        "milestones", "how the learning rate falls; linear and cosine end at final_lr"
    )
    milestones: tuple[int, ...] = setting(
        (32000, 48000), "steps at which the learning rate is multiplied by gamma"
    )
    gamma: float = setting(0.1, "factor at every milestone")
    final_lr: float = setting(
        0.0, "learning rate at which decay linear and cosine end, at the reference batch"
    )
    warmup: Literal["auto", "none", "constant", "linear"] = setting(
        "auto",
        "constant: warmup_lr throughout (the paper's, for ResNet-110); linear: from warmup_lr up "
        "to lr; auto: where scaling.lr raises the learning rate, from lr up to that in 5 epochs, "
        "a tenth of the training at most (Goyal et al. 2017); else none",
    )
    warmup_length: str = setting("400 steps", "of the recipe: '400 steps' or '5 epochs'")
    warmup_lr: float = setting(
        0.01, "learning rate of the warmup, or from which it rises, at the reference batch"
    )

    def check(self) -> None:
        self.require(self.reference_batch >= 1, "reference_batch", "must be at least 1")
        self.require(self.steps >= 1, "steps", "must be at least 1")
        self.require(0 < self.gamma <= 1, "gamma", "must be in (0, 1]")
        self.require(self.warmup_lr > 0, "warmup_lr", "must be positive")
        parse_length("schedule.warmup_length", self.warmup_length)
        milestones = list(self.milestones)
        if self.decay != "milestones":
            self.require(
                not milestones,
                "milestones",
                f"decay {self.decay} has none; set --schedule.milestones [] or --schedule.decay "
                "milestones",
            )
        self.require(
            self.final_lr >= 0 and (self.decay != "milestones" or self.final_lr == 0),
            "final_lr",
            "must be 0 or more, and needs --schedule.decay linear or cosine",
        )
        self.require(
            milestones == sorted(set(milestones)) and all(m > 0 for m in milestones),
            "milestones",
            "must be positive and rise",
        )
        self.require(
            all(m < self.steps for m in milestones),
            "milestones",
            f"every milestone must come before the last step, schedule.steps = {self.steps}; "
            "lower the milestone or raise schedule.steps",
        )


@dataclass(frozen=True)
class Scaling(Section):
    section: ClassVar[str] = "scaling"
    lr: Literal["linear", "sqrt", "none"] = setting(
        "linear",
        "learning rate at k times the reference batch: times k (Goyal et al.), times sqrt(k), "
        "unchanged",
    )
    milestones: Literal["steps", "samples"] = setting(
        "steps",
        "at any batch keep milestones and last step at the same step (Hoffer et al.) or number of "
        "images (Goyal et al.)",
    )
