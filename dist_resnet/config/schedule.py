"""The Plan: everything that follows from the recipe, the world size and the number of samples,
derived once.

Sources: He et al. 2015, section 4.2 (milestones, the constant warmup of ResNet-110); Goyal et al.
2017, sections 2.1-2.2 (linear scaling, gradual warmup, the same number of images at any batch);
Hoffer et al. 2017, section 5 (the same number of updates at any batch)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from dist_resnet.config import Config, SpeedrunModel, parse_length

WARMUP_EPOCHS = 5  # Goyal et al. 2017, section 2.2


@dataclass(frozen=True)
class Plan:
    """Steps count from 0: `lr_at(s)` is the learning rate of the update that makes step s into s +
    1."""

    world_size: int
    virtual_workers: int  # the world size, unless batch.virtual_workers says otherwise
    fixed_shares: bool  # whether a worker's, which BN sees, do not depend on the world size
    local_batch: int  # samples of one worker and step
    global_batch: int
    k: float  # global batch / reference batch
    train_samples: int
    recipe_images: int  # of the whole recipe at its reference batch
    steps_per_epoch: (
        int  # an incomplete last batch is left out; every epoch has an order of its own
    )
    schedule_steps: int  # where the recipe ends at this batch
    last_step: int  # where this run ends: the same, or train.max_steps
    peak_lr: float
    decay: str
    milestones: tuple[int, ...]
    gamma: float
    final_lr: float
    warmup: str
    warmup_steps: int
    warmup_lr: float
    log_every: int
    evaluate_every: int
    checkpoint_every: int
    resolution: int | None = None
    min_resolution: int | None = None
    ramp: tuple[float, float] = (0.0, 1.0)
    whiten_bias_steps: float = math.inf  # after which that bias stays as it is

    @property
    def parts(self) -> int:
        """Virtual workers that each worker runs, one after the other."""
        return self.virtual_workers // self.world_size

    def lr_at(self, step: int) -> float:
        if step < self.warmup_steps:
            if self.warmup == "constant":
                return self.warmup_lr
            return self.warmup_lr + (self.peak_lr - self.warmup_lr) * (step + 1) / self.warmup_steps
        fall = self.peak_lr - self.final_lr
        return self.final_lr + fall * DECAYS[self.decay].factor(self, step)

    def _beside_the_recipe(self) -> str:
        images = self.schedule_steps * self.global_batch
        times = images / self.recipe_images
        if abs(times - 1) < 0.01:
            return ""
        return (
            f"; {images:,} images in all, {times:.3g} times the recipe's {self.recipe_images:,} "
            "(as many: --scaling.milestones samples)"
        )

    def part(self, step: int) -> float:
        """How much of the way from the warmup's end to the recipe's is done, 0 to 1."""
        return (step - self.warmup_steps) / max(1, self.schedule_steps - self.warmup_steps)

    def resolution_at(self, epoch: int) -> int:
        """Pixels a side of an epoch's training images: rising linearly over the ramp, in steps of
        32 (as in ffcv-imagenet)."""
        assert self.resolution is not None
        if self.min_resolution is None:
            return self.resolution
        done = epoch * self.steps_per_epoch / self.schedule_steps
        begin, end = self.ramp
        part = min(1.0, max(0.0, (done - begin) / (end - begin)))
        if part == 1:
            return self.resolution
        rise = 32 * round(part * (self.resolution - self.min_resolution) / 32)
        return min(self.resolution, self.min_resolution + rise)

    def logs_at(self, step: int) -> bool:
        """Whether sums are reduced once `step` updates are done. Holds at every evaluation and
        checkpoint of the plan too; one that a signal asks for may come in between, and keeps what
        is pending."""
        return step % self.log_every == 0 or self.evaluates_at(step) or self.saves_at(step)

    def evaluates_at(self, step: int) -> bool:
        return step % self.evaluate_every == 0 or step == self.last_step

    def saves_at(self, step: int) -> bool:
        return step % self.checkpoint_every == 0 or self.evaluates_at(step)

    def rows(self) -> list[tuple[str, str]]:
        """The short table that is printed at the start."""
        falls = DECAYS[self.decay].words(self)
        warmup = {
            "none": "none",
            "constant": f"{self.warmup_lr:g} for {self.warmup_steps:,} steps",
            "linear": f"{self.warmup_lr:g} to {self.peak_lr:g} in {self.warmup_steps:,} steps",
        }[self.warmup]
        share = self.local_batch // self.parts
        shares = f"{self.parts} virtual ones x {share:,} = " if self.parts > 1 else ""
        if self.warmup == "constant" and self.k > 1:
            warmup += " (at k > 1 Goyal et al. found --schedule.warmup linear better)"
        if self.warmup != "none" and self.warmup_lr > self.peak_lr:
            warmup += " (above the learning rate: lower --schedule.warmup_lr)"
        return [
            (
                "global batch",
                f"{self.global_batch:,} = {self.world_size} workers x "
                f"{shares}{self.local_batch:,}; "
                f"k = {self.k:g}",
            ),
            (
                "BN's share",
                f"{share:,} images"
                + (
                    ""
                    if self.fixed_shares
                    else "; others with another number of workers, and so other results "
                    "(--batch.virtual_workers keeps them)"
                ),
            ),
            ("learning rate", f"{self.peak_lr:g}, {falls}"),
            ("warmup", warmup),
            (
                "steps",
                f"{self.last_step:,} of the recipe's {self.schedule_steps:,}; "
                f"{self.steps_per_epoch:,} per epoch",
            ),
            (
                "epochs",
                f"{self.last_step / self.steps_per_epoch:.1f} of {self.train_samples:,} samples"
                + self._beside_the_recipe(),
            ),
            (
                "every",
                f"log {self.log_every:,}, evaluate {self.evaluate_every:,}, checkpoint "
                f"{self.checkpoint_every:,} steps",
            ),
        ]


@dataclass(frozen=True)
class Decay:
    """How the learning rate falls: how much of the way from final_lr to the peak it still has at a
    step, and what is printed."""

    factor: Callable[[Plan, int], float]
    words: Callable[[Plan], str]


def _milestones_passed(plan: Plan, step: int) -> float:
    return plan.gamma ** sum(step >= m for m in plan.milestones)


def _milestones_named(plan: Plan) -> str:
    named = ", ".join(f"{m:,}" for m in plan.milestones) or "no step"
    return f"x {plan.gamma:g} at {named}"


DECAYS = {
    "milestones": Decay(_milestones_passed, _milestones_named),
    "linear": Decay(
        lambda plan, step: 1 - plan.part(step), lambda plan: f"linearly to {plan.final_lr:g}"
    ),
    "cosine": Decay(
        lambda plan, step: (1 + math.cos(math.pi * plan.part(step))) / 2,
        lambda plan: f"along a cosine to {plan.final_lr:g}",
    ),
}


def plan(config: Config, world_size: int, train_samples: int) -> Plan:
    """Derive the Plan. Raises ValueError where batch, world size and data set do not fit
    together."""
    workers, global_batch = _workers_and_batch(config, world_size, train_samples)
    recipe, k = config.schedule, global_batch / config.schedule.reference_batch
    lr_factor = {"linear": k, "sqrt": math.sqrt(k), "none": 1.0}[config.scaling.lr]
    steps_per_epoch = train_samples // global_batch

    def at_this_batch(recipe_steps: float) -> int:
        return round(recipe_steps if config.scaling.milestones == "steps" else recipe_steps / k)

    def period(key: str) -> int:
        count, unit = parse_length(f"train.{key}", getattr(config.train, key))
        return max(1, round(count * (steps_per_epoch if unit == "epochs" else 1)))

    schedule_steps = max(1, at_this_batch(recipe.steps))
    warmup, warmup_steps, warmup_lr = recipe.warmup, 0, recipe.warmup_lr * lr_factor
    if warmup == "auto":
        warmup, warmup_lr = "linear" if lr_factor > 1 else "none", config.optim.lr
        warmup_steps = min(WARMUP_EPOCHS * steps_per_epoch, schedule_steps // 10)
    elif warmup != "none":
        length, unit = parse_length("schedule.warmup_length", recipe.warmup_length)
        of_epochs = train_samples / recipe.reference_batch if unit == "epochs" else 1
        warmup_steps = at_this_batch(length * of_epochs)
        if warmup_steps >= schedule_steps:
            raise ValueError(
                f"schedule.warmup_length = {recipe.warmup_length!r} is {warmup_steps} of "
                f"{schedule_steps} steps: shorten it, or raise schedule.steps"
            )
    return Plan(
        world_size=world_size,
        virtual_workers=workers,
        fixed_shares=bool(config.batch.virtual_workers or config.batch.per_worker),
        local_batch=global_batch // world_size,
        global_batch=global_batch,
        k=k,
        train_samples=train_samples,
        recipe_images=recipe.steps * recipe.reference_batch,
        steps_per_epoch=steps_per_epoch,
        schedule_steps=schedule_steps,
        last_step=min(schedule_steps, config.train.max_steps or schedule_steps),
        peak_lr=config.optim.lr * lr_factor,
        decay=recipe.decay,
        milestones=tuple(at_this_batch(m) for m in recipe.milestones),
        gamma=recipe.gamma,
        final_lr=recipe.final_lr * lr_factor,
        warmup=warmup,
        warmup_steps=0 if warmup == "none" else warmup_steps,
        warmup_lr=warmup_lr,
        log_every=period("log_every"),
        evaluate_every=period("evaluate_every"),
        checkpoint_every=period("checkpoint_every"),
        resolution=config.data.resolution,
        min_resolution=config.data.min_resolution,
        ramp=config.data.ramp,
        whiten_bias_steps=_whiten_bias_steps(config, steps_per_epoch),
    )


def _whiten_bias_steps(config: Config, steps_per_epoch: int) -> float:
    model = config.model
    if not isinstance(model, SpeedrunModel) or model.whiten_bias_epochs == 0:
        return math.inf
    return round(model.whiten_bias_epochs * steps_per_epoch)


def _workers_and_batch(config: Config, world_size: int, train_samples: int) -> tuple[int, int]:
    """(virtual workers, global batch)."""
    workers = config.batch.virtual_workers or world_size
    if workers % world_size:
        fitting = ", ".join(str(w) for w in range(1, workers + 1) if workers % w == 0)
        raise ValueError(
            f"batch.virtual_workers = {workers} cannot be run by {world_size} workers: "
            f"their number must divide it ({fitting})"
        )
    global_batch = config.batch.global_ or (config.batch.per_worker or 0) * workers
    if global_batch % workers:
        near = max(1, round(global_batch / workers)) * workers
        raise ValueError(
            f"batch.global = {global_batch} does not divide by {workers} workers: "
            f"set --batch.global {near}, or another number of workers"
        )
    if global_batch > train_samples:
        raise ValueError(
            f"the global batch of {global_batch} is larger than the {train_samples} training "
            "samples: lower batch.per_worker or batch.global, or use fewer workers"
        )
    return workers, global_batch
