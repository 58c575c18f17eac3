"""Whole trainings: speedruns, ResNet-20, and the deepest network that fits into what is left."""

import json
import os
import signal
import statistics
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu import steps
from benchmarks.gpu.task import Task

STEPS, BATCH = 64_000, 128  # of the paper's recipe
START = 20.0  # seconds that a training takes besides its steps
# no evaluation and no line of the log that a short training could feel
QUIET = {
    "train.log_every": "500 steps",
    "train.evaluate_every": "4000 steps",
    "train.checkpoint_every": "4000 steps",
    "tracking.wandb": "disabled",
    "tracking.top_losses": 0,
}
LARGE = {  # the recipe at batch 1024: as many images, not as many steps
    "batch.per_worker": 1024,
    "scaling.milestones": "samples",
    "schedule.warmup": "linear",
    "schedule.warmup_length": "5 epochs",
    "train.evaluate_every": "500 steps",
    "train.checkpoint_every": "500 steps",
}
SMALL = {
    "model.name": "resnet8",
    "batch.global": 8,
    "batch.per_worker": "null",
    "data.dataset": "null",
    "train.max_steps": 4,
    "train.log_every": "1 steps",
    "train.checkpoint_every": "2 steps",
}


def words(settings: dict[str, Any]) -> list[str]:
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def data(task: Task) -> dict[str, Any]:
    return {"data.dir": task.shapes if task.small else task.data}


def speedrun(task: Task) -> None:
    """Mean top-1, its interval, and both clocks."""
    few = "five speedruns" in steps.cuts(task.seconds)
    runs = 1 if task.small else 5 if few else 10
    small = {"batch.global": 8, "batch.per_worker": "null", "train.max_steps": 2}
    small |= {"data.dataset": "null", "train.eval_batch": 50}
    overrides = words({**data(task), **(small if task.small else {})})
    path = task.keep / "runs/speedrun"
    where = ("--runs", runs, "--workers-per-node", 1, "--run-dir", path)
    task.command("launch", "repeat", "configs/speedrun.yaml", *where, *overrides, *task.settings())
    found = json.loads((path / "repeat.json").read_text())
    paths = json.loads((path / "seed0/summary.json").read_text())["fast_paths"]
    task.row(
        runs=runs,
        **{f"mean {key}": value for key, value in found["mean"].items()},
        **{f"± {key}": value for key, value in found["interval"].items()},
        fast_paths=paths,
    )


def resnet20(task: Task) -> None:
    whole(task, "ResNet-20", "configs/resnet20.yaml", "resnet20", QUIET)


def deep(task: Task) -> None:
    rates = {
        (row["network"], row["batch"]): row["images/s"]
        for row in task.found("rates")
        if row["way"] == "default" and "images/s" in row
    }
    name, network, more = choice(rates, task.left() - 5)
    settings = {**QUIET, **more, "model.name": network}
    whole(task, name, "configs/resnet110.yaml", "deep", settings)


def choice(rates: dict[tuple[str, int], float], left: float) -> tuple[str, str, dict[str, Any]]:
    """(what is told of it, network, settings) of the deepest whole training that fits into so many
    seconds, by measured images/s: ResNet-110, ResNet-56 (half its layers), ResNet-110 at batch
    1024; else ResNet-110 as far as it comes."""
    images = STEPS * BATCH
    one, large = rates.get(("resnet110", 128), 0.0), rates.get(("resnet110", 1024), 0.0)
    for name, network, rate, more in (
        ("ResNet-110", "resnet110", one, {}),
        ("ResNet-56", "resnet56", 110 / 56 * one, {}),
        ("ResNet-110 at batch 1024", "resnet110", large, LARGE),
    ):
        if rate and images / rate + START < left:
            return name, network, more
    return "ResNet-110, as far as it comes", "resnet110", {}


def whole(task: Task, name: str, config: str, folder: str, settings: dict[str, Any]) -> None:
    """A training in this process. When the time is over it saves and leaves, as a preempted one
    does: the same command goes on with it, on another machine too."""
    from dist_resnet import worker
    from dist_resnet.config import config_file
    from dist_resnet.runtime.signals import StopSignal
    from dist_resnet.tracking.tracker import read_metrics
    from launch.executors import run_dir
    from launch.jobs.task import single_worker

    path, began = task.keep / "runs" / folder, time.time()
    overrides = words({**settings, **data(task), **(SMALL if task.small else {})})
    run_dir.create(path, config_file.load(config, [*overrides, *task.settings()]))
    single_worker()
    stop = StopSignal()
    over = threading.Timer(max(task.left() - 8, 1), os.kill, (os.getpid(), signal.SIGUSR2))
    over.daemon = True
    over.start()
    outcome = worker.main(path, stop, began=began)
    over.cancel()
    told = read_metrics(path)
    step = max((record["step"] for record in told), default=0)
    trained = [record for record in told if "lr" in record]
    rates = [record["images_per_second"] for record in trained]
    tested = [record["test/top1"] for record in told if "test/top1" in record]
    task.row(
        training=name,
        outcome=outcome,
        steps=step,
        **{"top-1, %": round(100 * tested[-1], 2) if tested else None},
        **{"images/s": round(statistics.median(rates)) if rates else None},
        **_finished(path),
        seconds=round(time.time() - began, 1),
    )


def _finished(path: Path) -> dict[str, Any]:
    if not (path / "summary.json").exists():
        return {}
    summary = json.loads((path / "summary.json").read_text())
    clock = {key: round(value, 1) for key, value in summary["seconds"].items()}
    return {"clock, s": clock, "fast_paths": summary["fast_paths"]}
