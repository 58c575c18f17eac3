"""The life of a run: one worker process of a training, from RUN_DIR and the six environment
variables on.

Started by launch/, by `srun`, or by hand: `torchrun --nproc-per-node 2 -m dist_resnet.worker
RUN_DIR`. The same call on the same RUN_DIR resumes."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dist_resnet import models
from dist_resnet.acceleration import cuda_graph, fast_paths
from dist_resnet.config import Config, SpeedrunModel, config_file, for_device, schedule
from dist_resnet.data import loader, manifest
from dist_resnet.data.manifest import Manifest
from dist_resnet.diagnosis.hang import Watchdog
from dist_resnet.diagnosis.profile import profiled
from dist_resnet.models.cifar import ResNet as CifarResNet
from dist_resnet.models.normalise import Normalise
from dist_resnet.models.speedrun import SpeedrunResNet
from dist_resnet.reports.confusion import Confusion
from dist_resnet.runtime import distributed, gpus, memory, precision
from dist_resnet.runtime.distributed import World
from dist_resnet.runtime.gpus import Gpu
from dist_resnet.runtime.lock import RunLock
from dist_resnet.runtime.precision import DTYPES, Settled
from dist_resnet.runtime.signals import COMPLETED, FAILED, StopSignal
from dist_resnet.runtime.slurm_job import node
from dist_resnet.tracking import image_rows, starts
from dist_resnet.tracking.tracker import Tracker
from dist_resnet.training import data_parallel, evaluation, loop, optim, state, summary
from dist_resnet.training.loop import Training
from dist_resnet.training.metrics import Means
from dist_resnet.training.optim import Ema, Lookahead
from dist_resnet.training.progress import Clock, Progress
from dist_resnet.training.regularisation import Mixing, StochasticDepth
from dist_resnet.training.stop_vote import StopVote
from dist_resnet.weights import checkpoint, files, transfer
from dist_resnet.weights.writer import Writer

WHITENING_IMAGES = 5000  # as in airbench


def main(run_dir: Path | str, stop: StopSignal | None = None, began: float | None = None) -> str:
    """Train the run of RUN_DIR/config.yaml to its end, or until a signal asks to stop.

    began: where this process has done something else before, when this start did, by time.time().
    Returns 'completed', 'preempted' (start it again), 'terminated', or 'paused' (at stop.pause_at;
    whoever starts it again goes on from there). On every rank alike."""
    run_dir, stop, progress = Path(run_dir), stop or StopSignal(), Progress(clock=Clock(began))
    config = config_file.load(run_dir / "config.yaml")
    with (
        distributed.connect(config.train.device, config.train.timeout_s) as world,
        Watchdog(run_dir, world, progress, config.train.timeout_s),
        locked(run_dir, world),
        loader.betons_of(config, run_dir, world) as (data_dir, betons),
    ):
        return life(config, run_dir, data_dir, betons, world, stop, progress)


def life(
    config: Config,
    run_dir: Path,
    data_dir: Path,
    betons: Manifest,
    world: World,
    stop: StopSignal,
    progress: Progress,
) -> str:
    """From build to finish or leave. What it holds of the process group is let go with it."""
    saved = checkpoint.load_latest(run_dir / "checkpoints", world)
    config, settled = settle(config, betons, world, saved)
    run = build(config, run_dir, data_dir, betons, world, stop, progress)
    announce(run, betons, settled)
    resume(run, run_dir, betons, saved)
    start = starts.Start(run_dir, writes=world.rank == 0)
    start.begin(
        world.gather(node()),
        world.size,
        world.device.type,
        progress.step,
        betons.digest(),
        state.changes(saved, run),
    )
    outcome = FAILED
    try:
        fast_paths.engage(run, saved)
        with profiled(run, run_dir):
            ended = loop.fit(run)
        if ended == COMPLETED:
            finish(run, run_dir, data_dir, betons)
        else:
            leave(run, ended)
        outcome = ended
        start.end(outcome, progress.step)
    except BaseException as error:
        start.fail(error, progress.step)
        raise
    finally:
        run.tracker.finish(outcome=outcome)
        cuda_graph.release(run)
    world.barrier()  # all leave together, so that a launcher sees a missing worker for what it is
    return outcome


@contextmanager
def locked(run_dir: Path, world: World, patience_s: float = 10.0) -> Iterator[None]:
    """Hold RUN_DIR/lock on rank 0, so that two trainings never write one RUN_DIR."""
    lock = RunLock(run_dir) if world.rank == 0 else None
    holder = world.from_rank0(lock.acquire(patience_s) if lock else None)
    if holder is not None:
        raise ValueError(
            f"RUN_DIR {run_dir} is in use by another training ({holder}): wait for its end, stop "
            "it, or give another --run-dir"
        )
    try:
        yield
    finally:
        if lock:
            lock.release()


def settle(
    config: Config, betons: Manifest, world: World, saved: dict[str, Any] | None = None
) -> tuple[Config, Settled]:
    """The configuration with train.precision and data.residency as every rank has them, and why the
    precision is that. saved: the checkpoint that is resumed."""
    usable, kept = for_device.half_precisions(config), saved["precision"] if saved else None
    settled = precision.settle(config.train.precision, kept, usable, world, node())
    config = for_device.with_precision(config, settled.name)
    return loader.settle_residency(config, betons, world), settled


def build(
    config: Config,
    run_dir: Path,
    data_dir: Path,
    betons: Manifest,
    world: World,
    stop: StopSignal,
    progress: Progress,
) -> Training:
    """Everything that a training needs, as it is before step 0. config: of a settled precision and
    residency."""
    train = config.train
    if train.cuda_graph is True and world.device.type != "cuda":
        raise ValueError("train.cuda_graph = True: there is no GPU; leave it out")
    plan = schedule.plan(config, world.size, betons.splits["train"].samples)
    tracker = Tracker(run_dir, plan.last_step, writes=world.rank == 0)
    prepare_torch(config, world)
    network = models.build(config.model, len(betons.classes))
    network.to(world.device).to(memory_format=torch.channels_last)
    normalise = Normalise.of(betons.mean, betons.std, DTYPES[train.precision], world.device)
    train_data = loader.train_loader(config, data_dir, betons, world, plan)
    eval_data = loader.eval_loader(config, data_dir, betons, config.data.evaluate_on, world)
    if isinstance(config.model, SpeedrunModel) and config.model.whiten:
        some = np.arange(min(WHITENING_IMAGES, train_data.num_samples))
        assert isinstance(network, SpeedrunResNet)
        network.whiten(torch.cat([normalise(images) for images, _ in train_data.batches(some)]))
    model = data_parallel.data_parallel(
        network, for_device.settle(config, world.device.type), plan.parts, world
    )
    if train.activation_checkpointing:
        assert isinstance(network, CifarResNet)
        network.recompute = True
    run = Training(
        config=config,
        plan=plan,
        world=world,
        model=model,
        optimizer=optim.build(config.optim, model, plan.whiten_bias_steps),
        scaler=optim.scaler(train.precision, world.device),
        lookahead=Lookahead(network, config.optim.lookahead, plan.last_step),
        ema=Ema(network, config.optim.ema),
        mixing=Mixing(config.data, train.seed, len(betons.classes), world.device),
        depth=StochasticDepth(network, train.seed),
        normalise=normalise,
        train_data=train_data,
        eval_data=eval_data,
        tracker=tracker,
        progress=progress,
        stop_vote=StopVote(stop, world),
        writer=Writer(
            run_dir / "checkpoints",
            train.keep_checkpoints,
            train.timeout_s / 2,
            world,
            tracker.say,
        ),
        save=lambda: save(run, betons),
    )
    return run


def prepare_torch(config: Config, world: World) -> None:
    """Settings of the whole process: threads, memory, algorithms, and the seed."""
    train = config.train
    threads = train.threads or (1 if config.batch.virtual_workers else None)
    if threads and world.device.type == "cpu":
        torch.set_num_threads(threads)  # convolutions' and BN's sums depend on it
    if world.device.type == "cpu":
        memory.keep_freed_memory()
    torch.backends.cudnn.benchmark = not train.deterministic  # nearly all batches have one shape
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at cuBLAS's first call
        torch.use_deterministic_algorithms(True)
    torch.manual_seed(train.seed)


def announce(run: Training, betons: Manifest, settled: Settled) -> None:
    """Print what will be done: the Plan, and what might surprise."""
    say, parameters = run.tracker.say, sum(p.numel() for p in run.model.parameters())
    if run.world.device.type == "cuda":
        for line in run.world.gather(gpus.busy(Gpu.of(run.world.rank, run.world.device))):
            if line:
                say(f"warning: {line}")
    say(
        f"{run.config.model.name} ({parameters:,} parameters) on {betons.dataset}, "
        f"{run.world.size} x {run.world.device.type}, {settled}"
    )
    for line in settled.warnings:
        say(f"warning: {line}")
    for name, value in run.plan.rows():
        say(f"  {name:<14} {value}")
    if "val" in betons.splits and run.config.data.evaluate_on != "val":
        say(
            f"  note: {betons.splits['val'].samples:,} training images are held out and not used; "
            "to train on them too, "
            "prepare with --val 0"
        )


def resume(run: Training, run_dir: Path, betons: Manifest, saved: dict[str, Any] | None) -> None:
    """Take up the latest whole checkpoint, if there is one, and open the tracker there. Where there
    is none, the training begins: with train.init_from, from those weights."""
    if saved is not None:
        state.restore(run, saved, run_dir, betons)
        before = saved["world_size"]
        other = f" (world size {before} before)" if before != run.world.size else ""
        run.tracker.say(f"resuming at step {run.progress.step}{other}")
    elif run.config.train.init_from is not None:
        start_from(run, run.config.train.init_from, betons)
    where = os.environ.get("SLURM_CLUSTER_NAME", "local")
    run.tracker.start(
        run.config.tracking,
        run.config.to_dict(),
        run.progress.step,
        saved["wandb_id"] if saved else "",
        tags=(run.config.model.name, betons.dataset, where),
    )


def start_from(run: Training, source: str, betons: Manifest) -> None:
    """Take the weights of another training. All ranks read the file that rank 0 found."""
    world = run.world
    found = world.from_rank0(str(files.locate(Path(source))) if world.rank == 0 else None)
    weights = files.read(Path(found))
    run.tracker.say(transfer.start_from(run.model.module, weights, betons.classes))
    run.lookahead.restart()


def save(run: Training, betons: Manifest) -> None:
    """Hand a checkpoint to the writer. Every rank calls."""
    step = run.progress.step
    best, last = run.progress.best_step == step, step == run.plan.last_step
    run.writer.save(state.capture(run, betons), step, best=best, last=last)


def leave(run: Training, outcome: str) -> None:
    """The last words of a start that was asked to stop."""
    step = run.progress.step
    saved = f"saved at step {step}" if run.writer.wait() else f"step {step} could not be saved"
    run.tracker.say(f"{outcome}: {saved}; the same command goes on from the last checkpoint")
    run.tracker.finish(outcome=outcome)


def final_evaluation(run: Training, data_dir: Path, betons: Manifest) -> dict[str, float]:
    """The figures of train.final_split, as summary.json has them."""
    split = run.config.train.final_split
    if split is None:
        return {}
    data = loader.eval_loader(run.config, data_dir, betons, split, run.world)
    tta = run.config.train.eval_tta
    means = evaluation.evaluate(
        run.model.module, data, run.normalise, run.world, run.plan.parts, tta
    )
    run.tracker.say(f"final, {split}: loss {means.loss:.4f}, top-1 {means.top1:.2%}")
    return {f"{split}_loss": means.loss, f"{split}_top1": means.top1, f"{split}_top5": means.top5}


def finish(run: Training, run_dir: Path, data_dir: Path, betons: Manifest) -> None:
    """summary.json, curves.png, top_losses.png, and the last words to W&B; on rank 0."""
    run.progress.clock.start("evaluation")
    tta, count = run.config.train.eval_tta, run.config.tracking.top_losses
    with run.ema.in_place():
        final = final_evaluation(run, data_dir, betons)
        worst = evaluation.top_losses(
            run.model.module, run.eval_data, run.normalise, run.world, tta, count
        )
    run.progress.clock.start("saving")
    run.writer.wait()
    if run.world.rank != 0:
        return
    from dist_resnet.reports import figures  # matplotlib takes half a second to import

    result = {**summary.summary(run, betons.dataset), **final}
    picture = figures.draw_curves([run_dir], run_dir / "curves.png", run.plan.milestones)
    names = betons.classes
    rows = [asdict(w) | {"label": names[w.label], "prediction": names[w.prediction]} for w in worst]
    if rows:
        figures.draw_images(rows, run_dir / "top_losses.png")
        image_rows.write(rows, run_dir)
    last = (
        checkpoint.named(run_dir / "checkpoints", "LATEST")
        if run.config.tracking.artifact
        else None
    )
    run.tracker.finish(result, picture, rows, last)
    summary.write(run_dir, result)


def evaluate(
    run_dir: Path | str, which: str, split: str | None = None, per_class: bool = False
) -> tuple[str, Means, Confusion | None]:
    """Evaluate a run's LATEST or BEST checkpoint over a split, by default the one that its training
    evaluates on. Returns the split, its figures, and with per_class what is taken for what."""
    run_dir = Path(run_dir)
    config = config_file.load(run_dir / "config.yaml")
    saved = checkpoint.load(checkpoint.named(run_dir / "checkpoints", which))
    config = for_device.with_precision(config, saved["precision"])
    train, split = config.train, split or config.data.evaluate_on
    with distributed.connect(train.device, train.timeout_s) as world:
        data_dir = Path(config.data.dir)
        betons = manifest.load(data_dir, config.data.dataset)
        config = loader.settle_residency(config, betons, world)
        state.require_same_betons(saved, betons, run_dir)
        model = models.build(config.model, len(betons.classes))
        model.to(world.device).to(memory_format=torch.channels_last)
        model.load_state_dict(saved["model"])
        normalise = Normalise.of(betons.mean, betons.std, DTYPES[train.precision], world.device)
        data = loader.eval_loader(config, data_dir, betons, split, world)
        prepare_torch(config, world)
        parts = schedule.plan(config, world.size, betons.splits["train"].samples).parts
        tta = train.eval_tta
        means = evaluation.evaluate(model, data, normalise, world, parts, tta)
        if not per_class:
            return split, means, None
        found = evaluation.answers(model, data, normalise, world, tta)
        return split, means, Confusion.of(betons.classes, *found)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: torchrun --nproc-per-node N -m dist_resnet.worker RUN_DIR")
    sys.exit(0 if main(sys.argv[1]) == COMPLETED else 75)  # EX_TEMPFAIL: the same call goes on
