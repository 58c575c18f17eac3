"""Settings of the recipe: optimizer, schedule, how they scale with the batch; of the training
itself; of its tracking."""

from dataclasses import dataclass
from typing import ClassVar, Literal, Optional, Union

from dist_resnet.config.section import Section, parse_length, setting


@dataclass(frozen=True)
class Optim(Section):
    section: ClassVar[str] = "optim"
    name: Literal["sgd", "adam"] = setting("sgd", "optimizer")
    lr: float = setting(0.1, "peak learning rate at schedule.reference_batch")
    momentum: float = setting(0.9, "SGD's momentum; Adam's beta1")
    nesterov: bool = setting(False, "Nesterov momentum (SGD)")
    adam_beta2: float = setting(0.999, "Adam's beta2")
    weight_decay: float = setting(1e-4, "L2 penalty, added to the gradient")
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

    def check(self) -> None:
        self.require(self.lr > 0, "lr", "must be positive")
        self.require(0 <= self.momentum < 1, "momentum", "must be in [0, 1)")
        self.require(0 <= self.adam_beta2 < 1, "adam_beta2", "must be in [0, 1)")
        self.require(self.weight_decay >= 0, "weight_decay", "must be 0 or more")
        self.require(self.bias_lr > 0, "bias_lr", "must be positive")
        self.require(self.lookahead >= 0, "lookahead", "must be 0 or more steps")
        self.require(
            not (self.nesterov and (self.name != "sgd" or self.momentum == 0)),
            "nesterov",
            "needs optim.name sgd and a momentum above 0",
        )


@dataclass(frozen=True)
class Schedule(Section):
    section: ClassVar[str] = "schedule"
    reference_batch: int = setting(128, "global batch at which this recipe is written")
    steps: int = setting(64000, "last step of the recipe at the reference batch")
    decay: Literal["milestones", "linear", "cosine"] = setting(
        "milestones", "how the learning rate falls; linear and cosine end at 0"
    )
    milestones: tuple[int, ...] = setting(
        (32000, 48000), "steps at which the learning rate is multiplied by gamma"
    )
    gamma: float = setting(0.1, "factor at every milestone")
    warmup: Literal["none", "constant", "linear"] = setting(
        "none",
        "constant: warmup_lr throughout (the paper's, for ResNet-110); linear: from warmup_lr up "
        "to lr",
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


@dataclass(frozen=True)
class Train(Section):
    section: ClassVar[str] = "train"
    seed: int = setting(0, "initial weights, order of the samples, crops and flips")
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "auto: a GPU per worker where there are any"
    )
    precision: Literal["bf16", "fp16", "fp32"] = setting(
        "bf16", "autocast type; fp16 comes with a gradient scaler"
    )
    compile: Literal["none", "default", "max-autotune"] = setting(
        "none",
        "torch.compile of the network: fuses BN, ReLU and addition; on two CPU cores under 10 % "
        "faster for ResNet-20, slower for wide ones",
    )
    cast: Literal["auto", "each", "together"] = setting(
        "auto",
        "weights to half precision: one by one (autocast), or all in a few kernels, with the same "
        "bits; auto: together on a GPU, with all_reduce flat or ordered",
    )
    activation_checkpointing: bool = setting(
        False,
        "family cifar: keep activations between blocks only, and compute the rest again: "
        "less memory, one more forward pass",
    )
    cuda_graph: Union[bool, Literal["auto"]] = setting(
        "auto",
        "one CUDA graph of the whole step: forward, backward, all-reduce, update; "
        "auto: on a GPU with all_reduce flat, SGD and images of one size; not measured yet",
    )
    all_reduce: Literal["auto", "buckets", "flat", "ordered"] = setting(
        "auto",
        "of the gradients: DDP's buckets, during the backward pass; flat: all in one, after it; "
        "ordered: likewise, added in the order of the virtual workers' numbers, whatever the world "
        "size; auto: ordered with batch.virtual_workers, flat on a GPU for 32x32 images' networks, "
        "else buckets",
    )
    fast_paths: Literal["check", "require", "trust"] = setting(
        "check",
        "before step 0, what makes a step faster (cast, compile, cuda_graph ...) is compared with "
        "the plain way; check: on a GPU, and what differs is left out; require: on any device, and "
        "what differs is an error; trust: never",
    )
    bucket_mib: float = setting(25.0, "size of DDP's buckets")
    static_graph: bool = setting(
        False,
        "tell DDP that every step uses the same parameters; on two CPU cores no faster beyond "
        "noise",
    )
    gradient_type: Literal["fp32", "bf16"] = setting(
        "fp32",
        "in which gradients travel; bf16: half the bytes, rounded; no faster on two CPU cores",
    )
    threads: Optional[int] = setting(
        None,
        "CPU threads of a worker's arithmetic, on which results depend; "
        "null: its CPUs, or 1 with batch.virtual_workers",
    )
    deterministic: bool = setting(
        False, "GPU: only algorithms that give the same bits every time; slower"
    )
    label_smoothing: float = setting(0.0, "of the training loss")
    final_split: Optional[Literal["test", "val"]] = setting(
        None, "evaluate once more at the end, on this split, beside data.evaluate_on"
    )
    max_steps: Optional[int] = setting(
        None, "stop here, with the schedule unchanged; null: at its end"
    )
    log_every: str = setting("50 steps", "'N steps' or 'N epochs'")
    evaluate_every: str = setting(
        "1 epochs", "'N steps' or 'N epochs'; the last step is always evaluated"
    )
    checkpoint_every: str = setting(
        "1 epochs", "'N steps' or 'N epochs'; every evaluation and the last step save too"
    )
    keep_checkpoints: int = setting(
        2, "so many of the last checkpoints stay in RUN_DIR, besides the best"
    )
    eval_batch: int = setting(500, "samples per worker and step of an evaluation")
    eval_mirrored: bool = setting(False, "answer with the mean over an image and its mirror image")
    timeout_s: float = setting(
        600.0, "end the run when a collective has waited so many seconds for a lost worker"
    )

    def check(self) -> None:
        self.require(0 <= self.seed < 2**32, "seed", "must be in [0, 2**32)")
        self.require(0 <= self.label_smoothing < 1, "label_smoothing", "must be in [0, 1)")
        self.require(
            self.max_steps is None or self.max_steps >= 1,
            "max_steps",
            "must be at least 1, or null",
        )
        self.require(self.eval_batch >= 1, "eval_batch", "must be at least 1")
        self.require(self.keep_checkpoints >= 1, "keep_checkpoints", "must be at least 1")
        self.require(
            self.threads is None or self.threads >= 1, "threads", "must be at least 1, or null"
        )
        self.require(self.bucket_mib > 0, "bucket_mib", "must be positive")
        self.require(
            self.cast != "together"
            or (
                self.precision != "fp32"
                and self.compile == "none"
                and not self.activation_checkpointing
            ),
            "cast",
            "needs half precision, and no train.compile (which joins the casts itself) or "
            "train.activation_checkpointing",
        )
        self.require(
            self.compile == "none" or not self.activation_checkpointing,
            "compile",
            "cannot be had with train.activation_checkpointing",
        )
        self.require(
            self.compile != "max-autotune" or self.cuda_graph is not True,
            "compile",
            "makes CUDA graphs of its own; with train.cuda_graph use --train.compile default",
        )
        self.require(
            not self.static_graph or self.all_reduce in ("auto", "buckets"),
            "static_graph",
            "is DDP's; needs --train.all_reduce buckets",
        )
        self.require(
            self.cuda_graph is not True
            or (self.all_reduce in ("auto", "flat") and self.device != "cpu"),
            "cuda_graph",
            "needs --train.all_reduce flat or auto, and a GPU",
        )
        self.require(self.timeout_s > 0, "timeout_s", "must be positive")
        for key in ("log_every", "evaluate_every", "checkpoint_every"):
            parse_length(f"train.{key}", getattr(self, key))


@dataclass(frozen=True)
class Tracking(Section):
    section: ClassVar[str] = "tracking"
    wandb: Literal["online", "offline", "disabled"] = setting(
        "offline", "Weights & Biases; offline runs are sent later by `wandb sync`"
    )
    project: str = setting("dist_resnet", "W&B project")
    entity: Optional[str] = setting(None, "W&B user or team; null: your default")
    group: Optional[str] = setting(
        None, "W&B group of runs that belong to one experiment; a sweep sets its name"
    )
    tags: tuple[str, ...] = setting((), "W&B tags, besides model, data set and cluster")
    grad_norm: bool = setting(False, "log the norm of the gradient of each logged step")
    top_losses: int = setting(
        24, "keep so many of the worst answered images, with their answers; 0: none"
    )
    artifact: bool = setting(False, "send the last checkpoint to W&B at the end")

    def check(self) -> None:
        self.require(self.top_losses >= 0, "top_losses", "must be 0 or more")
