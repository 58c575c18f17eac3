"""The algorithm: fit, train_epoch, train_step."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from dist_resnet.config import Config
from dist_resnet.config.schedule import Plan
from dist_resnet.data import sampling
from dist_resnet.data.loader import Batch, DataLoader
from dist_resnet.data.streaming_loader import StreamingLoader
from dist_resnet.models.normalise import Normalise
from dist_resnet.runtime.distributed import World
from dist_resnet.runtime.signals import COMPLETED, Diverged
from dist_resnet.tracking.tracker import Tracker
from dist_resnet.training import optim
from dist_resnet.training.data_parallel import BucketedDDP, FlatAllReduce
from dist_resnet.training.evaluation import evaluate
from dist_resnet.training.metrics import Sums
from dist_resnet.training.optim import Ema, Lookahead
from dist_resnet.training.pace import Pace
from dist_resnet.training.progress import Progress
from dist_resnet.training.regularisation import Mixing, StochasticDepth
from dist_resnet.training.stop_vote import StopVote
from dist_resnet.weights.writer import Writer


@dataclass
class Training:
    """All that a training needs, built by worker.py."""

    config: Config
    plan: Plan
    world: World
    model: BucketedDDP | FlatAllReduce
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    lookahead: Lookahead
    ema: Ema
    mixing: Mixing
    depth: StochasticDepth
    normalise: Normalise
    train_data: DataLoader
    eval_data: DataLoader
    tracker: Tracker
    progress: Progress
    stop_vote: StopVote
    writer: Writer
    save: Callable[[], None]  # hands it a checkpoint of progress.step
    # what makes a step faster -> 'used' or 'refused: why', and where that was found
    fast_paths: dict[str, str] = field(default_factory=dict)
    devices: str = ""
    sums: Sums = field(init=False)
    pace: Pace = field(init=False)  # of fit: which network is trained is settled by then
    # with a batch; a CUDA graph may take its place
    update: Callable[[torch.Tensor, torch.Tensor], None] = field(init=False)

    def __post_init__(self) -> None:
        self.sums = Sums(self.world.device, self.plan.parts)
        self.update = partial(update, self)


def fit(run: Training) -> str:
    """Train from progress.step to the plan's last step. Returns 'completed', or what the stop vote
    came to."""
    run.pace = Pace(run.model, run.world)
    run.progress.clock.start("training")
    while run.progress.step < run.plan.last_step:
        for step in train_epoch(run):
            run.tracker.stepped(step)
            if run.plan.logs_at(step):
                log(run, step)
            if run.plan.evaluates_at(step):
                evaluate_and_log(run, step)
            requested = run.stop_vote.requested(step)
            if requested or run.plan.saves_at(step):
                require_finite_weights(run, step)
                began = time.monotonic()
                run.save()
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
    rank, size = run.world.rank, run.world.size
    ids = sampling.shard(order, plan.global_batch, rank, size, start, plan.parts)
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
        assert isinstance(run.train_data, StreamingLoader)
        return sampling.quasi_random_order(seed, epoch, run.train_data.pages, data.window_pages)
    return sampling.epoch_order(seed, epoch, run.plan.train_samples)


def train_step(run: Training, batch: Batch, lr: float) -> None:
    step = run.progress.step
    optim.set_lr(run.optimizer, lr, step)
    run.mixing.draw(step)
    run.depth.draw(step)
    run.update(*batch)
    for part in range(run.plan.parts):
        run.sums.count(run.plan.local_batch // run.plan.parts, part)
    run.lookahead.after(step + 1)
    run.ema.after(step + 1)


def update(run: Training, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Forward and backward for each of this rank's virtual workers, all-reduce, optimizer. Nothing
    here waits for the device."""
    run.optimizer.zero_grad(set_to_none=True)
    own = zip(images.chunk(run.plan.parts), labels.chunk(run.plan.parts))
    for part, share in enumerate(own):
        forward_and_backward(run, *share, part)
        run.model.collect()
    run.model.average_gradients()
    optim.clip(run.optimizer, run.scaler, run.config.optim.clip_norm)
    run.scaler.step(run.optimizer)
    run.scaler.update()


def forward_and_backward(
    run: Training, images: torch.Tensor, labels: torch.Tensor, part: int
) -> None:
    train, dtype = run.config.train, run.normalise.dtype
    inputs, targets = run.mixing(run.normalise(images), labels)
    with torch.autocast(run.world.device.type, dtype, enabled=train.precision != "fp32"):
        logits = run.model(inputs)
    loss = F.cross_entropy(logits.float(), targets, label_smoothing=train.label_smoothing)
    run.scaler.scale(loss).backward()
    run.sums.add(logits.detach(), labels, loss.detach(), part)


def log(run: Training, step: int) -> None:
    """Reduce the sums of the steps since the last time, and record their means."""
    means = run.sums.reduce(run.world)
    seconds, waited = run.progress.clock.lap()
    lr = run.plan.lr_at(step - 1)
    if means.bad_steps:
        first = step - math.ceil(means.bad_steps) + 1
        lr = run.plan.lr_at(first - 1)
        told = f"the loss is not finite since step {first} (learning rate {lr:g})"
        raise Diverged(f"{told}; {advice(run, first)}")
    figures = {
        **means.figures("train"),
        "lr": lr,
        "epoch": step / run.plan.steps_per_epoch,
        "samples": step * run.plan.global_batch,
        "images_per_second": means.samples / seconds,
        "data_wait": waited / seconds,
        "hours": run.progress.clock.total() / 3600,
    }
    if run.config.tracking.grad_norm:
        figures["grad_norm"] = gradient_norm(run)
    if run.world.device.type == "cuda":
        # a CUDA graph's activations are reserved, and allocated only while it is captured
        figures["gpu_memory_gib"] = torch.cuda.max_memory_reserved(run.world.device) / 2**30
    run.tracker.log(step, figures)
    if slowest := run.pace.slowest(waited, seconds):
        run.tracker.say(slowest)


def gradient_norm(run: Training) -> float:
    """The Euclidean norm of the last step's gradient, averaged over the ranks and clipped; it has
    been divided by the scaler's factor."""
    gradients = [p.grad for p in run.model.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients).item()


def require_finite_weights(run: Training, step: int) -> None:
    """The loss of a step speaks of the weights before its update; a checkpoint holds those after
    it."""
    if not torch.stack([p.detach().isfinite().all() for p in run.model.parameters()]).all():
        lr = run.plan.lr_at(step - 1)
        told = f"weights are not finite after step {step} (learning rate {lr:g})"
        raise Diverged(f"{told}; {advice(run, step)}")


def advice(run: Training, step: int) -> str:
    """For a training that has diverged at this step: what there is, and what may help here."""
    kept = (run.writer.directory / "LATEST").exists()
    have = "the last good checkpoint is kept" if kept else "there is no checkpoint yet"
    other = "" if run.config.train.precision == "fp32" else ", or use --train.precision fp32"
    images = f" (or are mean and std in {run.config.data.dir}/manifest.json unsound?)"
    return f"{have}: lower --optim.lr, lengthen the warmup{other}{images if step == 1 else ''}"


def evaluate_and_log(run: Training, step: int) -> None:
    run.progress.clock.start("evaluation")
    split = run.config.data.evaluate_on
    tta = run.config.train.eval_tta
    with run.ema.in_place():
        means = evaluate(
            run.model.module, run.eval_data, run.normalise, run.world, run.plan.parts, tta
        )
    seconds, _ = run.progress.clock.lap()
    run.progress.note_evaluation(step, means)
    figures = {
        **means.figures(split),
        "samples": step * run.plan.global_batch,
        f"{split}/images_per_second": means.samples / seconds,
    }
    run.tracker.log(step, figures)
    run.progress.clock.start("training")
