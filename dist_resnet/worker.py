"""The composition root: one worker process of a training, from RUN_DIR and the six environment variables on.

Started by launch/, by `srun`, or by hand: `torchrun --nproc-per-node 2 -m dist_resnet.worker RUN_DIR`. The same call on
the same RUN_DIR resumes.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dist_resnet import casting, checkpoint, config_file, distributed, graph, lock, models, optim, parallel, schedule, train
from dist_resnet.config import Config
from dist_resnet.data import loading, manifest
from dist_resnet.data.manifest import Manifest
from dist_resnet.distributed import World
from dist_resnet.metrics import Means
from dist_resnet.optim import Lookahead
from dist_resnet.progress import THRESHOLDS, Progress
from dist_resnet.signals import COMPLETED, PREEMPTED, StopSignal
from dist_resnet.tracking import Tracker
from dist_resnet.train import Ballot, Normalise, Training

WHITENING_IMAGES = 5000  # as in airbench


def main(run_dir: Path | str, stop: StopSignal | None = None) -> str:
    """Train the run of RUN_DIR/config.yaml to its end, or until a signal asks to stop.

    Returns 'completed', 'preempted' (start it again) or 'terminated'. On every rank alike."""
    run_dir, stop, progress = Path(run_dir), stop or StopSignal(), Progress()
    config = config_file.load(run_dir / "config.yaml")
    with (distributed.connect(config.train.device, config.train.timeout_s) as world, locked(run_dir, world),
          loading.betons_of(config, run_dir, world) as (data_dir, betons)):
        run = build(config, run_dir, data_dir, betons, world, stop, progress)
        resume(run, run_dir, betons)
        try:
            graph.warm_up(run)
            outcome = train.fit(run)
            if outcome == COMPLETED:
                finish(run, run_dir, betons)
            else:
                saved = f"saved at step {progress.step}" if run.saved else f"step {progress.step} could not be saved"
                run.tracker.say(f"{outcome}: {saved}; the same command goes on from the last checkpoint")
                run.tracker.finish(preempted=outcome == PREEMPTED)
        finally:
            run.tracker.finish()
            graph.release(run)
        world.barrier()  # all leave together, so that a launcher sees a missing worker for what it is
    return outcome


def build(config: Config, run_dir: Path, data_dir: Path, betons: Manifest, world: World, stop: StopSignal, progress: Progress) -> Training:
    plan = schedule.plan(config, world.size, betons.splits["train"].samples)
    tracker = Tracker(run_dir, plan.last_step, writes=world.rank == 0)
    torch.backends.cudnn.benchmark = True  # nearly all batches of a run have one shape
    torch.manual_seed(config.train.seed)
    model = models.build(config.model, len(betons.classes)).to(world.device, memory_format=torch.channels_last)
    normalise = Normalise.of(betons.mean, betons.std, train.PRECISION[config.train.precision], world.device)
    train_data = loading.loader(config, data_dir, betons, "train", plan.local_batch, world, plan)
    if config.model.whiten:
        some = np.arange(min(WHITENING_IMAGES, train_data.num_samples))
        model.whiten(torch.cat([normalise(images) for images, _ in train_data.batches(some)]))
    model = parallel.data_parallel(model, config.train, world)
    if config.train.activation_checkpointing:
        model.module.recompute = True
    if config.train.cast == "together":
        casting.cast_together(model.module, normalise.dtype)
    if config.train.compile != "none":  # after DDP has settled its buckets, and in place: the parameters keep their names
        model.module.compile(mode=None if config.train.compile == "default" else config.train.compile)
    run = Training(
        config=config, plan=plan, world=world, model=model, optimizer=optim.build(config.optim, model),
        scaler=optim.scaler(config.train.precision, world.device),
        lookahead=Lookahead(model.module, config.optim.lookahead, plan.last_step), normalise=normalise, train_data=train_data,
        eval_data=loading.loader(config, data_dir, betons, config.data.evaluate_on, config.train.eval_batch, world),
        tracker=tracker, progress=progress, ballot=Ballot(stop, world), save=lambda: save(run, run_dir, betons))
    announce(run, betons)
    return run


def announce(run: Training, betons: Manifest) -> None:
    """Print what will be done: the Plan, and what might surprise."""
    say, parameters = run.tracker.say, sum(p.numel() for p in run.model.parameters())
    say(f"{run.config.model.name} ({parameters:,} parameters) on {betons.dataset}, {run.world.size} x {run.world.device.type}, "
        f"{run.config.train.precision}")
    for name, value in run.plan.rows():
        say(f"  {name:<14} {value}")
    if "val" in betons.splits and run.config.data.evaluate_on != "val":
        say(f"  note: {betons.splits['val'].samples:,} training images are held out and not used; to train on them too, "
            f"prepare with --val 0")


def save(run: Training, run_dir: Path, betons: Manifest) -> bool:
    """Write a checkpoint. Returns whether that went well: a full disk costs a checkpoint, not the training.

    After the last step there is no next time: it is tried again for half of train.timeout_s, then OSError is raised."""
    state = {
        "model": run.model.module.state_dict(), "optimizer": run.optimizer.state_dict(), "scaler": run.scaler.state_dict(),
        "lookahead": run.lookahead.slow,
        "progress": run.progress.state(), "sums": run.sums.total(run.world), "config": run.config.to_dict(),
        "wandb_id": run.tracker.wandb.id, "data": betons.digest(), "world_size": run.world.size, "global_batch": run.plan.global_batch,
    }
    best, step = run.progress.best_step == run.progress.step, run.progress.step
    deadline = time.monotonic() + run.config.train.timeout_s / 2
    while True:
        try:
            checkpoint.save(run_dir / "checkpoints", state, step, best, run.world)
            return True
        except OSError as error:
            last = step == run.plan.last_step
            run.tracker.say(f"warning: the checkpoint of step {step} could not be written ({error}); "
                            + ("trying again" if last else "training goes on, the next one is tried"))
            if not last:
                return False
            if time.monotonic() > deadline:
                raise
            time.sleep(5)


def resume(run: Training, run_dir: Path, betons: Manifest) -> None:
    """Take up the latest whole checkpoint, if there is one, and open the tracker there."""
    state = checkpoint.load_latest(run_dir / "checkpoints", run.world)
    if state is not None:
        require_same_betons(state, betons, run_dir)
        if state["global_batch"] != run.plan.global_batch:
            raise ValueError(f"RUN_DIR {run_dir} was trained with a global batch of {state['global_batch']} ({state['world_size']} workers), "
                             f"and {run.world.size} workers make {run.plan.global_batch}: use {state['world_size']} workers again (to be free "
                             "in their number, set --batch.global from the start), or give another --run-dir")
        run.model.module.load_state_dict(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.scaler.load_state_dict(state["scaler"])
        run.lookahead.restore(state["lookahead"])
        run.progress.restore(state["progress"])
        run.sums.restore(state["sums"], run.world)
        run.tracker.say(f"resuming at step {run.progress.step}"
                        + (f" (world size {state['world_size']} before)" if state["world_size"] != run.world.size else ""))
    where = os.environ.get("SLURM_CLUSTER_NAME", "local")
    run.tracker.start(run.config.tracking, run.config.to_dict(), run.progress.step, state["wandb_id"] if state else "",
                      tags=(run.config.model.name, betons.dataset, where))


def require_same_betons(state: dict[str, Any], betons: Manifest, run_dir: Path) -> None:
    if state["data"] != betons.digest():
        raise ValueError(f"RUN_DIR {run_dir} was trained on other betons (digest {state['data']}) than data.dir holds now "
                         f"({betons.digest()}): restore them, or give another --run-dir")


def finish(run: Training, run_dir: Path, betons: Manifest) -> None:
    """summary.json, curves.png, mistakes.png, and the last words to W&B; on rank 0."""
    run.progress.clock.start("evaluation")
    worst = train.mistakes(run, run.config.tracking.mistakes)
    if run.world.rank != 0:
        return
    from dist_resnet import figures  # matplotlib takes half a second to import

    result = summary(run, betons)
    picture = figures.draw_curves([run_dir], run_dir / "curves.png", run.plan.milestones)
    rows = [{"sample": id_, "image": image, "label": betons.classes[label], "answer": betons.classes[answer], "probability of the label": right}
            for right, id_, label, answer, image in worst]
    if rows:
        figures.draw_images(rows, run_dir / "mistakes.png")
    checkpoints = run_dir / "checkpoints"
    run.tracker.finish(result, picture, rows, checkpoint.named(checkpoints, "LATEST") if run.config.tracking.artifact else None)
    aside = run_dir / "summary.json.partial"
    aside.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(aside, run_dir / "summary.json")


def summary(run: Training, betons: Manifest) -> dict[str, Any]:
    progress, seconds = run.progress, run.progress.clock.booked()
    samples = progress.step * run.plan.global_batch
    return {
        "config_digest": run.config.digest(), "dataset": betons.dataset,
        "model": run.config.model.name, "world_size": run.world.size, "device": run.world.device.type,
        "parameters": sum(p.numel() for p in run.model.parameters()), "steps": progress.step, "samples": samples,
        "evaluated_on": run.config.data.evaluate_on,
        "test_loss": progress.test["loss"], "test_top1": progress.test["top1"], "test_top5": progress.test["top5"],
        "best_test_top1": progress.best_top1, "best_step": progress.best_step,
        "images_per_second": samples / seconds["training"], "seconds": seconds,
        "seconds_to_top1": {str(p): progress.seconds_to_top1.get(str(p)) for p in THRESHOLDS},
        "versions": {"python": platform.python_version(), **{p: version(p) for p in ("dist-resnet", "torch", "ffcv", "numpy", "wandb")}},
        "git_commit": git_commit(),
    }


def evaluate(run_dir: Path | str, which: str) -> Means:
    """Evaluate a run's LATEST or BEST checkpoint over its evaluation split."""
    run_dir = Path(run_dir)
    config = config_file.load(run_dir / "config.yaml")
    state = checkpoint.load(checkpoint.named(run_dir / "checkpoints", which))
    with distributed.connect(config.train.device, config.train.timeout_s) as world:
        data_dir = Path(config.data.dir)
        betons = manifest.load(data_dir, config.data.dataset)
        require_same_betons(state, betons, run_dir)
        model = models.build(config.model, len(betons.classes)).to(world.device, memory_format=torch.channels_last)
        model.load_state_dict(state["model"])
        normalise = Normalise.of(betons.mean, betons.std, train.PRECISION[config.train.precision], world.device)
        return train.evaluate(model, loading.loader(config, data_dir, betons, config.data.evaluate_on, config.train.eval_batch, world), normalise, world,
                              config.train.eval_mirrored)


@contextmanager
def locked(run_dir: Path, world: World, patience_s: float = 10.0) -> Iterator[None]:
    """Hold RUN_DIR/lock on rank 0, so that two trainings never write one RUN_DIR. Freed by the end of the process."""
    with open(run_dir / "lock", "a") as file:
        if not world.from_rank0(lock.acquire(file, patience_s) if world.rank == 0 else None):
            raise ValueError(f"RUN_DIR {run_dir} is in use by another training: wait for its end, stop it, or give another --run-dir")
        yield


def git_commit() -> str | None:
    """The commit of this checkout, with '+' where files differ from it; None outside one."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed else "")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: torchrun --nproc-per-node N -m dist_resnet.worker RUN_DIR")
    sys.exit(0 if main(sys.argv[1]) == COMPLETED else 75)  # EX_TEMPFAIL: the same call goes on
