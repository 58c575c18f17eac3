"""The algorithm: fit, train_epoch, train_step, evaluate."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dist_resnet import optim, stream
from dist_resnet.config import Config
from dist_resnet.data.loading import DataLoader
from dist_resnet.data.streaming import Batch
from dist_resnet.distributed import World
from dist_resnet.metrics import Means, Sums
from dist_resnet.optim import Lookahead
from dist_resnet.parallel import Buckets, Flat
from dist_resnet.progress import Progress
from dist_resnet.schedule import Plan
from dist_resnet.signals import COMPLETED, PREEMPTED, TERMINATED, StopSignal
from dist_resnet.tracking import Tracker

PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


DIVERGED = "the last good checkpoint is kept: lower --optim.lr, lengthen the warmup, or use --train.precision fp32"
VOTE_SECONDS = 1.0


@dataclass(frozen=True)
class Normalise:
    """uint8 images -> (x / 255 - mean) / std in the training dtype, on the device they are on."""

    mean: torch.Tensor  # float32 (1, 3, 1, 1), in units of uint8
    scale: torch.Tensor
    dtype: torch.dtype

    @classmethod
    def of(cls, mean: list[float], std: list[float], dtype: torch.dtype, device: torch.device) -> "Normalise":
        mean_, std_ = (255 * torch.tensor(v, dtype=torch.float32, device=device).view(1, 3, 1, 1) for v in (mean, std))
        return cls(mean_, 1 / std_, dtype)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return ((images.float() - self.mean) * self.scale).to(self.dtype)


@dataclass
class Training:
    """All that a training needs, built by worker.py."""

    config: Config
    plan: Plan
    world: World
    model: Buckets | Flat
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    lookahead: Lookahead
    normalise: Normalise
    train_data: DataLoader
    eval_data: DataLoader
    tracker: Tracker
    progress: Progress
    ballot: "Ballot"
    save: Callable[[], bool]  # writes a checkpoint of progress.step; whether that went well
    saved: bool = False  # what the last call of it returned
    sums: Sums = field(init=False)
    update: Callable[[torch.Tensor, torch.Tensor], None] = field(init=False)  # with a batch; a CUDA graph may take its place

    def __post_init__(self) -> None:
        self.sums = Sums(self.world.device)
        self.update = partial(update, self)


class Ballot:
    """All ranks agree whether to stop, every second or so, however long their steps take.

    A signal may reach some ranks before others, or only some; they must leave after the same step. The next step at
    which they ask follows from the time of a step that they measured, which is part of what they exchange."""

    def __init__(self, stop: StopSignal, world: World) -> None:
        self.stop, self.world = stop, world
        self.last: tuple[int, float] | None = None  # step and time of the last vote
        self.seconds_per_step, self.due, self.gap = 0.0, 0, 1

    def requested(self, step: int) -> str | None:
        """Called after every step, by every rank. One small all-reduce where a vote is due."""
        if step < self.due:
            return None
        mine = self.stop.requested
        preempted, terminated, seconds = self.world.sum(torch.tensor(
            [mine == PREEMPTED, mine == TERMINATED, self.seconds_per_step], dtype=torch.float64, device=self.world.device)).tolist()
        now = time.monotonic()
        if self.last is not None:
            self.seconds_per_step = (now - self.last[1]) / (step - self.last[0])
        affordable = int(VOTE_SECONDS * self.world.size / seconds) if seconds else 1
        self.gap = max(1, min(affordable, 2 * self.gap))
        self.last, self.due = (step, now), step + self.gap
        return TERMINATED if terminated else PREEMPTED if preempted else None


def fit(run: Training) -> str:
    """Train from progress.step to the plan's last step. Returns 'completed', 'preempted' or 'terminated'."""
    run.progress.clock.start("training")
    while run.progress.step < run.plan.last_step:
        for step in train_epoch(run):
            if run.plan.logs_at(step):
                log(run, step)
            if run.plan.evaluates_at(step):
                evaluate_and_log(run, step)
            requested = run.ballot.requested(step)
            if requested or run.plan.saves_at(step):
                require_finite_weights(run, step)
                began = time.monotonic()
                run.saved = run.save()
                run.progress.clock.move(time.monotonic() - began, "saving")
            if step == run.plan.last_step:
                break
            if requested:
                return requested
    return COMPLETED


def train_epoch(run: Training) -> Iterator[int]:
    """Train on what is left of the current epoch; yields the number of steps done after each."""
    plan, progress = run.plan, run.progress
    epoch, start = divmod(progress.step, plan.steps_per_epoch)
    order = epoch_order(run, epoch)
    ids = stream.shard(order, plan.global_batch, run.world.rank, plan.world_size, start)
    batches = run.train_data.batches(ids, epoch)
    try:
        run.model.train()
        for batch in progress.clock.waiting(batches):
            train_step(run, batch, plan.lr_at(progress.step))
            progress.step += 1
            yield progress.step
    finally:
        batches.close()


def epoch_order(run: Training, epoch: int) -> np.ndarray:
    seed, data = run.config.train.seed, run.config.data
    if data.order == "quasi_random":
        return stream.quasi_random_order(seed, epoch, run.train_data.pages, data.window_pages)
    return stream.epoch_order(seed, epoch, run.plan.train_samples)


def train_step(run: Training, batch: Batch, lr: float) -> None:
    optim.set_lr(run.optimizer, lr)
    run.update(*batch)
    run.lookahead.after(run.progress.step + 1)


def update(run: Training, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Forward, backward, all-reduce, optimizer. Nothing here waits for the device."""
    with torch.autocast(run.world.device.type, run.normalise.dtype, enabled=run.config.train.precision != "fp32"):
        logits = run.model(run.normalise(images))
    loss = F.cross_entropy(logits.float(), labels, label_smoothing=run.config.train.label_smoothing)
    run.optimizer.zero_grad(set_to_none=True)
    run.scaler.scale(loss).backward()
    run.model.average_gradients()
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.sums.add(logits.detach(), labels, loss.detach())


def log(run: Training, step: int) -> None:
    """Reduce the sums of the steps since the last time, and record their means."""
    means = run.sums.reduce(run.world)
    seconds, waited = run.progress.clock.lap()
    lr = run.plan.lr_at(step - 1)
    if means.bad_steps:
        first = step - math.ceil(means.bad_steps) + 1
        raise ValueError(f"the loss is not finite since step {first} (learning rate {run.plan.lr_at(first - 1):g}); {DIVERGED}")
    figures = {**means.figures("train"), "lr": lr, "epoch": step / run.plan.steps_per_epoch, "samples": step * run.plan.global_batch,
               "images_per_second": means.samples / seconds, "data_wait": waited / seconds, "hours": run.progress.clock.total() / 3600}
    if run.config.tracking.grad_norm:
        figures["grad_norm"] = gradient_norm(run)
    if run.world.device.type == "cuda":
        figures["gpu_memory_gib"] = torch.cuda.max_memory_allocated(run.world.device) / 2**30
    run.tracker.log(step, figures)


def gradient_norm(run: Training) -> float:
    """The Euclidean norm of the last step's gradient, averaged over the ranks; the fused optimizers have divided it by the scaler's factor."""
    return torch.nn.utils.get_total_norm([p.grad for p in run.model.parameters() if p.grad is not None]).item()


def require_finite_weights(run: Training, step: int) -> None:
    """The loss of a step speaks of the weights before its update; a checkpoint holds those after it."""
    if not torch.stack([p.detach().isfinite().all() for p in run.model.parameters()]).all():
        raise ValueError(f"weights are not finite after step {step} (learning rate {run.plan.lr_at(step - 1):g}); {DIVERGED}")


def evaluate_and_log(run: Training, step: int) -> None:
    run.progress.clock.start("evaluation")
    means = evaluate(run.model.module, run.eval_data, run.normalise, run.world, run.config.train.eval_mirrored)
    seconds, _ = run.progress.clock.lap()
    run.progress.note_evaluation(step, means)
    run.tracker.log(step, {**means.figures("test"), "samples": step * run.plan.global_batch,
                           "test/images_per_second": means.samples / seconds})
    run.progress.clock.start("training")


@torch.inference_mode()
def evaluate(model: nn.Module, data: DataLoader, normalise: Normalise, world: World, mirrored: bool = False) -> Means:
    """Mean loss and accuracies over the whole set, each sample counted once, for any world size.

    All ranks answer with rank 0's running BN statistics. The ranks may have different numbers of batches: the one
    collective comes after the last."""
    world.broadcast([buffer for buffer in model.buffers() if buffer.is_floating_point()])
    model.eval()
    sums = Sums(world.device)
    for images, labels in data.batches(np.arange(data.num_samples)[world.rank :: world.size]):
        logits = answers(model, images, normalise, mirrored)
        sums.add(logits, labels, F.cross_entropy(logits, labels))
    means = sums.reduce(world)
    model.train()
    return means


def answers(model: nn.Module, images: torch.Tensor, normalise: Normalise, mirrored: bool) -> torch.Tensor:
    """Logits, float32 (N, classes); `mirrored`: the mean over the images and their mirror images."""
    inputs = normalise(images)
    with torch.autocast(images.device.type, normalise.dtype, enabled=normalise.dtype != torch.float32):
        logits = model.forward(inputs).float()  # past torch.compile, which would compile for every size of batch
        return (logits + model.forward(inputs.flip(3)).float()) / 2 if mirrored else logits


@torch.inference_mode()
def mistakes(run: Training, count: int) -> list[tuple[float, int, int, int, np.ndarray]]:
    """The evaluated images whose true class has the least probability, the worst first, over all ranks.

    (probability of the true class, sample id, label, answer, uint8 (H, W, 3)). Like evaluate, one collective at the end."""
    if count == 0:
        return []
    found: list[tuple[float, int, int, int, np.ndarray]] = []
    model, world = run.model.module.eval(), run.world
    ids = np.arange(run.eval_data.num_samples)[world.rank :: world.size]
    seen = 0
    for images, labels in run.eval_data.batches(ids):
        probabilities = answers(model, images, run.normalise, run.config.train.eval_mirrored).softmax(1)
        right = probabilities.gather(1, labels[:, None])[:, 0]
        for i in right.argsort()[:count].tolist():
            found.append((right[i].item(), int(ids[seen + i]), int(labels[i]), int(probabilities[i].argmax()),
                          images[i].permute(1, 2, 0).cpu().numpy().copy()))
        found = sorted(found, key=lambda row: row[:2])[:count]
        seen += len(labels)
    return sorted((row for rows in world.gather(found) for row in rows), key=lambda row: row[:2])[:count]
