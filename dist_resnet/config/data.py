"""Settings of the data and of the batch."""

from dataclasses import dataclass
from typing import ClassVar, Literal, Optional

from dist_resnet.config.section import Section, run_setting, setting


@dataclass(frozen=True)
class Data(Section):
    section: ClassVar[str] = "data"
    dir: str = run_setting(
        "data/cifar10", "directory that `dist-resnet prepare` wrote: betons and manifest.json"
    )
    dataset: Optional[str] = setting(
        None, "the data set that must be found there (cifar10, shapes ...); null: any"
    )
    residency: Literal["stream", "device", "auto"] = run_setting(
        "auto",
        "read the beton as it is needed, or hold it whole on the training device; "
        "auto: hold it where it fits well",
    )
    stage: bool = run_setting(
        False, "copy the betons to $SLURM_TMPDIR or $TMPDIR of each node first, and read them there"
    )
    evaluate_on: Literal["test", "val"] = setting(
        "test", "split to evaluate on; val is held out of train by `prepare --val N`"
    )
    pad: int = setting(
        4, "pad by this many pixels of the mean colour, crop back at random; 0: no crop"
    )
    flip: Literal["none", "random", "alternating"] = setting(
        "random",
        "horizontal flip; alternating: random in epoch 0, then the other way round every epoch "
        "(airbench)",
    )
    cutout: int = setting(
        0,
        "cover a square of this many pixels a side with the mean colour (DeVries and Taylor 2017); "
        "0: none",
    )
    mix: Literal["none", "mixup", "cutmix"] = setting(
        "none",
        "each image with another of its worker's share of the batch: weighted (Zhang et al. 2018), "
        "or a rectangle of it pasted in (Yun et al. 2019); labels likewise, but for the training's "
        "accuracy",
    )
    mix_alpha: float = setting(1.0, "weights of images are drawn from Beta(alpha, alpha)")
    mix_share: float = setting(1.0, "part of the steps that mix")
    resolution: Optional[int] = setting(
        None,
        "random resized crops of this many pixels a side; null: images as they are, of one size",
    )
    eval_resolution: Optional[int] = setting(
        None, "pixels a side of a central crop for evaluation; null: data.resolution"
    )
    eval_share: float = setting(
        0.875, "part of the shorter side that the central crop takes (224 / 256)"
    )
    crop_area: tuple[float, float] = setting(
        (0.08, 1.0), "smallest and largest share of the image that a random crop takes"
    )
    min_resolution: Optional[int] = setting(
        None, "progressive resizing: start with so many pixels a side, in steps of 32; null: none"
    )
    ramp: tuple[float, float] = setting(
        (0.0, 0.75), "parts of the training between which the resolution rises"
    )
    order: Literal["random", "quasi_random"] = setting(
        "random", "quasi_random: page after page, for files larger than the memory"
    )
    window_pages: int = setting(
        64, "quasi_random: pages (8 MiB) whose samples are mixed with each other"
    )
    loader_threads: Optional[int] = run_setting(
        None, "loader threads of one worker; null: the CPUs the worker may use"
    )
    batches_ahead: int = run_setting(3, "batches that the loader prepares in advance")
    timeout_s: float = run_setting(
        120.0, "give up when the loader has delivered nothing for so many seconds"
    )

    def check(self) -> None:
        self.require(self.pad >= 0, "pad", "must be 0 or more pixels")
        self.require(self.cutout >= 0, "cutout", "must be 0 or more pixels")
        self.require(self.mix_alpha > 0, "mix_alpha", "must be positive")
        self.require(0 < self.mix_share <= 1, "mix_share", "must be in (0, 1]")
        self.require(
            self.loader_threads is None or self.loader_threads >= 1,
            "loader_threads",
            "must be at least 1, or null for the CPUs the worker may use",
        )
        for name in ("resolution", "eval_resolution", "min_resolution"):
            value = getattr(self, name)
            self.require(value is None or value >= 8, name, "must be at least 8 pixels, or null")
            self.require(
                value is None or self.resolution is not None, name, "needs data.resolution"
            )
        smallest, largest = self.crop_area
        self.require(0 < smallest <= largest <= 1, "crop_area", "must rise within (0, 1]")
        self.require(0 < self.eval_share <= 1, "eval_share", "must be in (0, 1]")
        self.require(0 <= self.ramp[0] < self.ramp[1] <= 1, "ramp", "must rise within [0, 1]")
        self.require(
            self.min_resolution is None or self.min_resolution <= (self.resolution or 0),
            "min_resolution",
            "must not exceed data.resolution",
        )
        self.require(self.window_pages >= 1, "window_pages", "must be at least 1")
        self.require(
            self.residency != "device" or (self.resolution is None and self.order == "random"),
            "residency",
            "holds whole images in random order; with data.resolution or quasi_random set "
            "--data.residency stream",
        )
        self.require(self.batches_ahead >= 1, "batches_ahead", "must be at least 1")
        self.require(self.timeout_s > 0, "timeout_s", "must be positive")


@dataclass(frozen=True)
class Batch(Section):
    section: ClassVar[str] = "batch"
    per_worker: Optional[int] = setting(
        None, "samples per step on each (virtual) worker; the global batch grows with their number"
    )
    global_: Optional[int] = setting(
        None, "samples per step over all workers; must divide by their number"
    )
    virtual_workers: Optional[int] = setting(
        None,
        "the number of workers that the recipe is for, run by any number of workers that divides "
        "it, "
        "one after the other: the result does not depend on the world size; null: the world size",
    )

    def check(self) -> None:
        for name in ("per_worker", "global_", "virtual_workers"):
            value = getattr(self, name)
            self.require(value is None or value >= 1, name, "must be at least 1")
        if self.per_worker is not None and self.global_ is not None:
            raise ValueError(
                f"batch.per_worker = {self.per_worker} and batch.global = {self.global_} are both "
                "set: set one and make the other null (--batch.per_worker null)"
            )
        self.require(
            self.per_worker is not None or self.global_ is not None,
            "per_worker",
            "neither it nor batch.global is set; set one (--batch.per_worker 128)",
        )
