"""Settings of the training itself, and of its tracking."""

from dataclasses import dataclass
from typing import ClassVar, Literal, Optional, Union

from dist_resnet.config.section import Section, parse_length, run_setting, setting


@dataclass(frozen=True)
class Train(Section):
    section: ClassVar[str] = "train"
    seed: int = setting(0, "initial weights, order of the samples, crops and flips")
    init_from: Optional[str] = setting(
        None,
        "start from the weights of a RUN_DIR (its last; RUN_DIR/checkpoints/BEST: its best), a "
        "checkpoint, an export or torchvision's state dict, optimizer and step anew; the last "
        "layer is new where the classes are others; a resume does not read it",
    )
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "auto: a GPU per worker where there are any"
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = setting(
        "auto",
        "autocast type; fp16 comes with a gradient scaler; auto: bf16 where every worker's device "
        "multiplies it itself (AMX, AVX512_BF16, GPUs from sm_80), fp16 on GPUs that have only "
        "that, else fp32; a run keeps what its first start has settled",
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
        "auto: on a GPU with all_reduce flat, SGD and images of one size",
    )
    all_reduce: Literal["auto", "buckets", "flat", "ordered"] = setting(
        "auto",
        "of the gradients: DDP's buckets, during the backward pass; flat: all in one, after it; "
        "ordered: likewise, added in the order of the virtual workers' numbers, whatever the world "
        "size; auto: ordered with batch.virtual_workers, flat with model.stochastic_depth and "
        "on a GPU for 32x32 images' networks, else buckets",
    )
    fast_paths: Literal["check", "require", "trust"] = run_setting(
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
    final_split: Optional[Literal["test", "val"]] = run_setting(
        None, "evaluate once more at the end, on this split, beside data.evaluate_on"
    )
    max_steps: Optional[int] = run_setting(
        None, "stop here, with the schedule unchanged; null: at its end"
    )
    log_every: str = run_setting("50 steps", "'N steps' or 'N epochs'")
    evaluate_every: str = run_setting(
        "1 epochs", "'N steps' or 'N epochs'; the last step is always evaluated"
    )
    checkpoint_every: str = run_setting(
        "1 epochs", "'N steps' or 'N epochs'; every evaluation and the last step save too"
    )
    keep_checkpoints: int = run_setting(
        2, "so many of the last checkpoints stay in RUN_DIR, besides the best"
    )
    eval_batch: int = run_setting(500, "samples per worker and step of an evaluation")
    eval_tta: Literal["none", "mirror", "mirror_translate"] = setting(
        "none",
        "test-time augmentation: the mean answer to an image and its mirror image; "
        "mirror_translate: and, with the weight of these, to both moved by one pixel (airbench)",
    )
    profile: Optional[str] = run_setting(
        None, "'10 steps': trace so many on rank 0, after the first, into RUN_DIR/profile"
    )
    timeout_s: float = run_setting(
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
        in_steps = self.profile is None or parse_length("train.profile", self.profile)[1] == "steps"
        self.require(in_steps, "profile", "write '10 steps'")


@dataclass(frozen=True)
class Tracking(Section):
    section: ClassVar[str] = "tracking"
    wandb: Literal["online", "offline", "disabled"] = run_setting(
        "offline", "Weights & Biases; offline runs are sent later by `dist-resnet sync`"
    )
    project: str = run_setting("dist_resnet", "W&B project")
    entity: Optional[str] = run_setting(None, "W&B user or team; null: your default")
    group: Optional[str] = run_setting(
        None, "W&B group of runs that belong to one experiment; a sweep sets its name"
    )
    tags: tuple[str, ...] = run_setting((), "W&B tags, besides model, data set and cluster")
    grad_norm: bool = run_setting(False, "log the norm of the gradient of each logged step")
    top_losses: int = run_setting(
        24, "keep so many of the worst answered images, with their answers; 0: none"
    )
    artifact: bool = run_setting(False, "send the last checkpoint to W&B at the end")

    def check(self) -> None:
        self.require(self.top_losses >= 0, "top_losses", "must be 0 or more")
