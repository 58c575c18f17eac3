"""Every knob there is, on one page: typed, range-checked, torch-free.

A configuration is a YAML file of sections plus dotted overrides (`--optim.lr 0.2`). A key works or
raises: unknown keys, wrong types and values out of range are ValueErrors that name the key, the value
and what would be valid. The defaults are the CIFAR-10 recipe of He et al. 2015 (section 4.2).
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional

import yaml


def knob(default: Any, comment: str) -> Any:
    """A dataclass field whose comment is also its `--help` text."""
    return dataclasses.field(default=default, metadata={"comment": comment})


def require(condition: bool, key: str, value: object, remedy: str) -> None:
    if not condition:
        raise ValueError(f"{key} = {value!r}: {remedy}")


def parse_length(key: str, text: str) -> tuple[float, Literal["steps", "epochs"]]:
    """'400 steps' -> (400.0, 'steps')."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) (step|epoch)s?", text)
    require(match is not None and float(match[1]) > 0, key, text, "write '400 steps' or '1.5 epochs', more than 0")
    require(match[2] == "epoch" or float(match[1]).is_integer(), key, text, "a number of steps is whole")
    return float(match[1]), f"{match[2]}s"


READ_BY_ONE = {"cifar": ("shortcut", "width", "block", "block_order", "bn"), "imagenet": ("stem",),
               "speedrun": ("channels", "activation", "whiten", "dirac", "logit_scale")}


@dataclass(frozen=True)
class Model:
    family: Literal["cifar", "imagenet", "speedrun"] = knob(
        "cifar", "cifar: the 6n+2 networks; imagenet: torchvision's; speedrun: a shallow one for short trainings")
    name: str = knob("resnet20", "resnet<depth>: depth 6n+2 (basic) or 9n+2 (bottleneck); 18, 34, 50, 101, 152 for imagenet; "
                     "3n+2 for speedrun")
    shortcut: Literal["A", "B"] = knob("A", "where the shape changes: A zero padding (the paper's), B 1x1 projection")
    width: int = knob(1, "widening factor k of Wide ResNets; the stages have 16k, 32k, 64k channels")
    block: Literal["basic", "bottleneck"] = knob("basic", "two 3x3 convolutions, or 1x1-3x3-1x1 with expansion 4")
    block_order: Literal["paper", "bn_after_add", "no_final_relu", "preact"] = knob(
        "paper", "paper: BN before the addition, ReLU after; the others move or drop them")
    bn: Literal["all", "first"] = knob("all", "batch normalisation on every convolution, or on the first of each block only")
    zero_init_last_gamma: bool = knob(False, "start every residual branch at zero (Goyal et al. 2017, section 5.1)")
    stem: Literal["imagenet", "cifar"] = knob("imagenet", "family imagenet: 7x7/2 and max-pool, or 3x3/1 for 32x32 input")
    channels: tuple[int, ...] = knob((64, 256, 256), "family speedrun: of its groups, each of which halves the image")
    activation: Literal["relu", "gelu", "silu"] = knob("relu", "family speedrun: the non-linearity")
    whiten: bool = knob(False, "family speedrun: fix the first convolution to what whitens 2x2 patches of the training images")
    dirac: bool = knob(False, "family speedrun: start 3x3 convolutions as identities of as many channels as come in")
    logit_scale: float = knob(1.0, "family speedrun: what the last layer's output is multiplied by")
    bn_momentum: float = knob(0.1, "part of a batch in BN's running statistics; short trainings want more")
    bn_scale: Literal["trained", "fixed"] = knob("trained", "BN's gamma; fixed: it stays 1")

    def __post_init__(self) -> None:
        match = re.fullmatch(r"resnet(\d+)", self.name)
        require(match is not None, "model.name", self.name, "write resnet<depth>, such as resnet110")
        require(self.width >= 1, "model.width", self.width, "must be at least 1")
        require(not (self.bn == "first" and self.block_order in ("bn_after_add", "preact")), "model.bn", self.bn,
                f"block_order {self.block_order} needs every BN; set --model.bn all or another block_order")
        require(0 < self.bn_momentum <= 1, "model.bn_momentum", self.bn_momentum, "must be in (0, 1]")
        require(not (self.bn_scale == "fixed" and self.zero_init_last_gamma), "model.bn_scale", self.bn_scale,
                "keeps gamma at 1, and model.zero_init_last_gamma wants it to start at 0")
        if self.family == "cifar":
            unit = 6 if self.block == "basic" else 9
            require((self.depth - 2) % unit == 0 and self.depth > 2, "model.name", self.name,
                    f"a CIFAR ResNet of {self.block} blocks has depth {unit}n+2; "
                    "for torchvision's networks set --model.family imagenet")
        elif self.family == "imagenet":
            require(self.depth in (18, 34, 50, 101, 152), "model.name", self.name,
                    "torchvision has resnet18, resnet34, resnet50, resnet101 and resnet152")
        else:
            groups = len(self.channels)
            require(groups >= 1 and min(self.channels) >= 12, "model.channels", list(self.channels), "needs at least one group, of 12 channels or more")
            require((self.depth - 2) % groups == 0 and self.depth >= 2 + 2 * groups, "model.name", self.name,
                    f"{groups} groups of n >= 2 convolutions, the first one and the last layer make a depth of {groups}n+2")
        for family, keys in READ_BY_ONE.items():
            for key in keys if family != self.family else ():
                default = Model.__dataclass_fields__[key].default
                require(getattr(self, key) == default, f"model.{key}", getattr(self, key),
                        f"is read by family {family} only; leave it at {default!r}")

    @property
    def depth(self) -> int:
        return int(self.name.removeprefix("resnet"))


@dataclass(frozen=True)
class Data:
    dir: str = knob("data/cifar10", "directory that `dist-resnet prepare` wrote: betons and manifest.json")
    dataset: Optional[str] = knob(None, "the data set that must be found there (cifar10, shapes ...); null: any")
    residency: Literal["stream", "device", "auto"] = knob(
        "auto", "read the beton as it is needed, or hold it whole on the training device; auto: hold it where it fits well")
    stage: bool = knob(False, "copy the betons to $SLURM_TMPDIR or $TMPDIR of each node first, and read them there")
    evaluate_on: Literal["test", "val"] = knob("test", "split to evaluate on; val is held out of train by `prepare --val N`")
    pad: int = knob(4, "pad by this many pixels of the mean colour, crop back at random; 0: no crop")
    flip: Literal["none", "random", "alternating"] = knob(
        "random", "horizontal flip; alternating: random in epoch 0, then the other way round every epoch (airbench)")
    resolution: Optional[int] = knob(None, "random resized crops of this many pixels a side; null: images as they are, of one size")
    eval_resolution: Optional[int] = knob(None, "pixels a side of a central crop for evaluation; null: data.resolution")
    eval_share: float = knob(0.875, "part of the shorter side that the central crop takes (224 / 256)")
    crop_area: tuple[float, float] = knob((0.08, 1.0), "smallest and largest share of the image that a random crop takes")
    min_resolution: Optional[int] = knob(None, "progressive resizing: start with so many pixels a side, in steps of 32; null: none")
    ramp: tuple[float, float] = knob((0.0, 0.75), "parts of the training between which the resolution rises")
    order: Literal["random", "quasi_random"] = knob("random", "quasi_random: page after page, for files larger than the memory")
    window_pages: int = knob(64, "quasi_random: pages (8 MiB) whose samples are mixed with each other")
    loader_threads: Optional[int] = knob(None, "loader threads of one worker; null: the CPUs the worker may use")
    batches_ahead: int = knob(3, "batches that the loader prepares in advance")
    timeout_s: float = knob(120.0, "give up when the loader has delivered nothing for so many seconds")

    def __post_init__(self) -> None:
        require(self.pad >= 0, "data.pad", self.pad, "must be 0 or more pixels")
        require(self.loader_threads is None or self.loader_threads >= 1, "data.loader_threads", self.loader_threads,
                "must be at least 1, or null for the CPUs the worker may use")
        for name in ("resolution", "eval_resolution", "min_resolution"):
            value = getattr(self, name)
            require(value is None or value >= 8, f"data.{name}", value, "must be at least 8 pixels, or null")
            require(value is None or self.resolution is not None, f"data.{name}", value, "needs data.resolution")
        require(0 < self.crop_area[0] <= self.crop_area[1] <= 1, "data.crop_area", list(self.crop_area), "must rise within (0, 1]")
        require(0 < self.eval_share <= 1, "data.eval_share", self.eval_share, "must be in (0, 1]")
        require(0 <= self.ramp[0] < self.ramp[1] <= 1, "data.ramp", list(self.ramp), "must rise within [0, 1]")
        require(self.min_resolution is None or self.min_resolution <= self.resolution, "data.min_resolution", self.min_resolution,
                "must not exceed data.resolution")
        require(self.window_pages >= 1, "data.window_pages", self.window_pages, "must be at least 1")
        require(self.residency != "device" or (self.resolution is None and self.order == "random"), "data.residency", self.residency,
                "holds whole images in random order; with data.resolution or quasi_random set --data.residency stream")
        require(self.batches_ahead >= 1, "data.batches_ahead", self.batches_ahead, "must be at least 1")
        require(self.timeout_s > 0, "data.timeout_s", self.timeout_s, "must be positive")


@dataclass(frozen=True)
class Batch:
    per_worker: Optional[int] = knob(None, "samples per step on each worker; the global batch grows with the world size")
    global_: Optional[int] = knob(None, "samples per step over all workers; must divide by the world size")

    def __post_init__(self) -> None:
        for key, value in (("batch.per_worker", self.per_worker), ("batch.global", self.global_)):
            require(value is None or value >= 1, key, value, "must be at least 1")
        if self.per_worker is not None and self.global_ is not None:
            raise ValueError(f"batch.per_worker = {self.per_worker} and batch.global = {self.global_} are both set: "
                             "set one and make the other null (--batch.per_worker null)")
        require(self.per_worker is not None or self.global_ is not None, "batch.per_worker", None,
                "neither it nor batch.global is set; set one (--batch.per_worker 128)")


@dataclass(frozen=True)
class Optim:
    name: Literal["sgd", "adam"] = knob("sgd", "optimizer")
    lr: float = knob(0.1, "peak learning rate at schedule.reference_batch")
    momentum: float = knob(0.9, "SGD's momentum; Adam's beta1")
    nesterov: bool = knob(False, "Nesterov momentum (SGD)")
    adam_beta2: float = knob(0.999, "Adam's beta2")
    weight_decay: float = knob(1e-4, "L2 penalty, added to the gradient")
    decay_norm_and_bias: bool = knob(True, "apply weight decay to BN and biases too, as the paper does")
    bias_lr: float = knob(1.0, "learning rate of biases, as a multiple of the weights'; their weight decay is divided by it")
    lookahead: int = knob(0, "every so many steps, set the weights to their moving average (Zhang et al. 2019); 0: never")

    def __post_init__(self) -> None:
        require(self.lr > 0, "optim.lr", self.lr, "must be positive")
        require(0 <= self.momentum < 1, "optim.momentum", self.momentum, "must be in [0, 1)")
        require(0 <= self.adam_beta2 < 1, "optim.adam_beta2", self.adam_beta2, "must be in [0, 1)")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "must be 0 or more")
        require(self.bias_lr > 0, "optim.bias_lr", self.bias_lr, "must be positive")
        require(self.lookahead >= 0, "optim.lookahead", self.lookahead, "must be 0 or more steps")
        require(not (self.nesterov and (self.name != "sgd" or self.momentum == 0)), "optim.nesterov", self.nesterov,
                "needs optim.name sgd and a momentum above 0")


@dataclass(frozen=True)
class Schedule:
    reference_batch: int = knob(128, "global batch at which this recipe is written")
    steps: int = knob(64000, "last step of the recipe at the reference batch")
    decay: Literal["milestones", "linear", "cosine"] = knob("milestones", "how the learning rate falls; linear and cosine end at 0")
    milestones: tuple[int, ...] = knob((32000, 48000), "steps at which the learning rate is multiplied by gamma")
    gamma: float = knob(0.1, "factor at every milestone")
    warmup: Literal["none", "constant", "linear"] = knob(
        "none", "constant: warmup_lr throughout (the paper's, for ResNet-110); linear: from warmup_lr up to lr")
    warmup_length: str = knob("400 steps", "of the recipe: '400 steps' or '5 epochs'")
    warmup_lr: float = knob(0.01, "learning rate of the warmup, or from which it rises, at the reference batch")

    def __post_init__(self) -> None:
        require(self.reference_batch >= 1, "schedule.reference_batch", self.reference_batch, "must be at least 1")
        require(self.steps >= 1, "schedule.steps", self.steps, "must be at least 1")
        require(0 < self.gamma <= 1, "schedule.gamma", self.gamma, "must be in (0, 1]")
        require(self.warmup_lr > 0, "schedule.warmup_lr", self.warmup_lr, "must be positive")
        parse_length("schedule.warmup_length", self.warmup_length)
        milestones = list(self.milestones)
        if self.decay != "milestones":
            require(not milestones, "schedule.milestones", milestones,
                    f"decay {self.decay} has none; set --schedule.milestones [] or --schedule.decay milestones")
        require(milestones == sorted(set(milestones)) and all(m > 0 for m in milestones), "schedule.milestones",
                milestones, "must be positive and rise")
        require(all(m < self.steps for m in milestones), "schedule.milestones", milestones,
                f"every milestone must come before the last step, schedule.steps = {self.steps}; "
                "lower the milestone or raise schedule.steps")


@dataclass(frozen=True)
class Scaling:
    lr: Literal["linear", "sqrt", "none"] = knob(
        "linear", "learning rate at k times the reference batch: times k (Goyal et al.), times sqrt(k), unchanged")
    milestones: Literal["steps", "samples"] = knob(
        "steps", "at any batch keep milestones and last step at the same step (Hoffer et al.) or number of images (Goyal et al.)")


@dataclass(frozen=True)
class Train:
    seed: int = knob(0, "initial weights, order of the samples, crops and flips")
    device: Literal["auto", "cpu", "cuda"] = knob("auto", "auto: a GPU per worker where there are any")
    precision: Literal["bf16", "fp16", "fp32"] = knob("bf16", "autocast type; fp16 comes with a gradient scaler")
    compile: Literal["none", "default", "max-autotune"] = knob(
        "none", "torch.compile of the network: fuses BN, ReLU and addition; on two CPU cores under 10 % faster for ResNet-20, slower for wide ones")
    cast: Literal["each", "together"] = knob(
        "each", "weights to half precision: one by one (autocast), or all in a few kernels, with the same bits; on a CPU no faster beyond noise")
    activation_checkpointing: bool = knob(False, "family cifar: keep activations between blocks only, and compute the rest again: "
                                          "less memory, one more forward pass")
    cuda_graph: bool = knob(False, "one CUDA graph of the whole step: forward, backward, all-reduce, update; "
                           "needs train.all_reduce flat; not measured yet")
    all_reduce: Literal["buckets", "flat"] = knob(
        "buckets", "of the gradients: DDP's buckets, during the backward pass; flat: all in one, after it; no faster on two CPU cores")
    bucket_mib: float = knob(25.0, "size of DDP's buckets")
    static_graph: bool = knob(False, "tell DDP that every step uses the same parameters; on two CPU cores no faster beyond noise")
    gradient_type: Literal["fp32", "bf16"] = knob("fp32", "in which gradients travel; bf16: half the bytes, rounded; no faster on two CPU cores")
    label_smoothing: float = knob(0.0, "of the training loss")
    max_steps: Optional[int] = knob(None, "stop here, with the schedule unchanged; null: at its end")
    log_every: str = knob("50 steps", "'N steps' or 'N epochs'")
    evaluate_every: str = knob("1 epochs", "'N steps' or 'N epochs'; the last step is always evaluated")
    checkpoint_every: str = knob("1 epochs", "'N steps' or 'N epochs'; every evaluation and the last step save too")
    eval_batch: int = knob(500, "samples per worker and step of an evaluation")
    eval_mirrored: bool = knob(False, "answer with the mean over an image and its mirror image")
    timeout_s: float = knob(600.0, "end the run when a collective has waited so many seconds for a lost worker")

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**32, "train.seed", self.seed, "must be in [0, 2**32)")
        require(0 <= self.label_smoothing < 1, "train.label_smoothing", self.label_smoothing, "must be in [0, 1)")
        require(self.max_steps is None or self.max_steps >= 1, "train.max_steps", self.max_steps, "must be at least 1, or null")
        require(self.eval_batch >= 1, "train.eval_batch", self.eval_batch, "must be at least 1")
        require(self.bucket_mib > 0, "train.bucket_mib", self.bucket_mib, "must be positive")
        require(self.cast == "each" or (self.precision != "fp32" and self.compile == "none" and not self.activation_checkpointing), "train.cast",
                self.cast, "needs half precision, and no train.compile (which joins the casts itself) or train.activation_checkpointing")
        require(self.compile == "none" or not self.activation_checkpointing, "train.compile", self.compile, "cannot be had with train.activation_checkpointing")
        require(self.compile != "max-autotune" or not self.cuda_graph, "train.compile", self.compile,
                "makes CUDA graphs of its own; with train.cuda_graph use --train.compile default")
        require(not self.static_graph or self.all_reduce == "buckets", "train.static_graph", True, "is DDP's; needs --train.all_reduce buckets")
        require(not self.cuda_graph or (self.all_reduce == "flat" and self.device != "cpu"), "train.cuda_graph", True,
                "needs --train.all_reduce flat, and a GPU")
        require(self.timeout_s > 0, "train.timeout_s", self.timeout_s, "must be positive")
        for key in ("log_every", "evaluate_every", "checkpoint_every"):
            parse_length(f"train.{key}", getattr(self, key))


@dataclass(frozen=True)
class Tracking:
    wandb: Literal["online", "offline", "disabled"] = knob("offline", "Weights & Biases; offline runs are sent later by `wandb sync`")
    project: str = knob("dist_resnet", "W&B project")
    entity: Optional[str] = knob(None, "W&B user or team; null: your default")
    group: Optional[str] = knob(None, "W&B group of runs that belong to one experiment; a sweep sets its name")
    tags: tuple[str, ...] = knob((), "W&B tags, besides model, data set and cluster")
    grad_norm: bool = knob(False, "log the norm of the gradient of each logged step")
    mistakes: int = knob(24, "keep so many of the worst answered images, with their answers; 0: none")
    artifact: bool = knob(False, "send the last checkpoint to W&B at the end")

    def __post_init__(self) -> None:
        require(self.mistakes >= 0, "tracking.mistakes", self.mistakes, "must be 0 or more")


@dataclass(frozen=True)
class Config:
    model: Model = Model()
    data: Data = Data()
    batch: Batch = Batch(per_worker=128)
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    scaling: Scaling = Scaling()
    train: Train = Train()
    tracking: Tracking = Tracking()

    def __post_init__(self) -> None:
        require(not self.train.activation_checkpointing or self.model.family == "cifar", "train.activation_checkpointing", True,
                "is for family cifar only; leave it out")
        require(not self.train.cuda_graph or (self.optim.name == "sgd" and self.data.min_resolution is None), "train.cuda_graph", True,
                "needs optim.name sgd and images of one size throughout (no data.min_resolution)")

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain nested values, as the YAML file has them."""
        nested: dict[str, dict[str, Any]] = {}
        for section, field in knobs():
            value = getattr(getattr(self, section), field.name)
            nested.setdefault(section, {})[key_of(field)] = list(value) if isinstance(value, tuple) else value
        return nested

    def digest(self) -> str:
        """Sixteen hex digits that differ for any two configurations that differ."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        path.write_text(yaml.safe_dump(self.to_dict(), sort_keys=False))


def key_of(field: dataclasses.Field) -> str:
    return field.name.rstrip("_")  # `global` is a word of Python's own


def knobs() -> Iterator[tuple[str, dataclasses.Field]]:
    """(section, field) of every knob, in the order of this file."""
    for section in dataclasses.fields(Config):
        for field in dataclasses.fields(section.type):
            yield section.name, field


def differences(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (value in a, value in b), where they differ."""
    left, right = a.to_dict(), b.to_dict()
    return {f"{section}.{key}": (value, right[section][key])
            for section, values in left.items() for key, value in values.items() if value != right[section][key]}
