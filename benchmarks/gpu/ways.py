"""Short trainings in one process, each a way that only a GPU takes: what became of every fast path
and why, the losses, the seconds."""

import hashlib
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch

from benchmarks.gpu.task import Task, cause
from dist_resnet import worker
from dist_resnet.config import config_file
from dist_resnet.runtime.signals import StopSignal
from dist_resnet.tracking.tracker import read_metrics
from dist_resnet.training.metrics import Sums
from launch.executors import run_dir as run_dirs
from launch.jobs.task import single_worker

CONFIG = "configs/resnet20.yaml"
BASE = {
    "model.name": "resnet8",
    "batch.per_worker": 128,
    "data.dataset": "null",
    "train.max_steps": 40,
    "train.log_every": "10 steps",
    "train.evaluate_every": "40 steps",
    "train.checkpoint_every": "20 steps",
    "train.eval_batch": 250,
    "tracking.wandb": "disabled",
    "tracking.top_losses": 0,
}
SMALL = {
    "model.name": "resnet8",
    "model.width": 2,
    "batch.per_worker": 24,
    "train.max_steps": 4,
    "train.log_every": "1 steps",
    "train.checkpoint_every": "2 steps",
}
R20 = {"model.name": "resnet20"}
PLAIN = {"train.fast_paths": "off"}
# the first ones matter most; train.deterministic has a step of its own, since torch keeps it
WAYS: dict[str, dict[str, Any]] = {
    "ResNet-20": R20,
    "ResNet-20, no graph": {**R20, "train.cuda_graph": "false"},
    "ResNet-20, fast paths off": {**R20, **PLAIN},
    "ResNet-110": {"model.name": "resnet110"},
    "an all-reduce in the graph (gradients in bf16)": {"train.gradient_type": "bf16"},
    "fp16": {"train.precision": "fp16"},
    "fp16, clipped": {"train.precision": "fp16", "optim.clip_norm": 1.0},
    "fp32 (convolutions in TF32)": {"train.precision": "fp32"},
    "cutmix": {"data.mix": "cutmix"},
    "mixup": {"data.mix": "mixup"},
    "cutout": {"data.cutout": 8},
    "streamed by FFCV": {"data.residency": "stream"},
    "4 virtual workers": {"batch.virtual_workers": 4, "batch.per_worker": 32},
    "compiled, in the graph": {"train.compile": "default"},
    "recomputed": {"train.activation_checkpointing": "true"},
    "option C, bottleneck": {
        "model.name": "resnet11",
        "model.block": "bottleneck",
        "model.shortcut": "C",
    },
    "stochastic depth": {"model.stochastic_depth": 0.5},
    "Adam": {"optim.name": "adam", "optim.lr": 0.001},
    "max-autotune": {"train.compile": "max-autotune"},
}
SMALL_WAYS = ("ResNet-20", "ResNet-20, fast paths off", "fp32 (convolutions in TF32)", "cutmix")


def ways(task: Task) -> None:
    """Each beside the first of its network, in losses; a new one is begun while there is time."""
    plain: list[float] = []
    for name in SMALL_WAYS if task.small else WAYS:
        if task.left() < 15:
            task.row(way=name, error="no time was left")
            continue
        began = time.time()
        try:
            summary, losses, rate = train(task, task.keep / "ways", WAYS[name])
        except BaseException as error:
            task.row(way=name, error=cause(error), seconds=round(time.time() - began, 1))
            leave_group()
            continue
        plain = losses if name == "ResNet-20" else plain
        same = name.startswith("ResNet-20,")
        apart = [abs(a / b - 1) for a, b in zip(losses, plain)] if same else []
        task.row(
            way=name,
            fast_paths=summary["fast_paths"],
            loss=round(losses[-1], 4),
            **({"losses apart from the first way's, %": 100 * max(apart)} if apart else {}),
            images_per_second=round(rate),
            seconds=round(time.time() - began, 1),
        )


def train(
    task: Task, path: Path, how: dict[str, Any], stop: StopSignal | None = None, again: bool = False
) -> tuple[dict[str, Any], list[float], float]:
    """(summary, losses, images/s of the last steps) of a training here. again: go on with it."""
    single_worker()
    if not again:
        shutil.rmtree(path, ignore_errors=True)
    small = SMALL if task.small else {}
    settings = {**BASE, "data.dir": task.shapes, **how, **small}
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    run_dirs.create(path, config_file.load(CONFIG, words))
    worker.main(path, stop, began=time.time())
    summary = path / "summary.json"
    logged = [record for record in read_metrics(path) if "lr" in record]
    found = json.loads(summary.read_text()) if summary.exists() else {}
    rate = statistics.median(r["images_per_second"] for r in logged[-2:])
    return found, [record["train/loss"] for record in logged], rate


def leave_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def failed_capture(task: Task) -> None:
    """A step that reads the loss cannot be captured. The training goes on without a graph, and the
    next one of this process has one again."""

    def reads(sums, logits, labels, loss, part=0, add=Sums.add):
        add(sums, logits, labels, loss, part)
        loss.item()

    for name, planted in (("planted", reads), ("the next run", Sums.add)):
        with mock.patch.object(Sums, "add", planted):
            summary, losses, _ = train(task, task.keep / "planted", {})
        graph = summary["fast_paths"].get("cuda_graph", "not asked for")
        task.row(run=name, cuda_graph=graph, loss=round(losses[-1], 4))


def deterministic(task: Task) -> None:
    """train.deterministic: straight, paused and resumed, and without the graph: the same bits?"""
    how = {"train.deterministic": "true", "train.max_steps": 60}
    half = 2 if task.small else 30
    ends = {}
    for name, more, pauses in (
        ("straight", {}, False),
        ("straight again", {}, False),
        ("paused and resumed", {}, True),
        ("without the graph", {"train.cuda_graph": "false"}, False),
    ):
        path = task.keep / "deterministic"
        train(task, path, {**how, **more}, StopSignal(half if pauses else None))
        if pauses:
            train(task, path, {**how, **more}, StopSignal(), again=True)
        ends[name] = weights(path)
        same = torch.equal(ends[name], ends["straight"])
        most = (ends[name] - ends["straight"]).abs().max().item()
        digest = hashlib.sha256(ends[name].numpy().tobytes()).hexdigest()[:16]
        task.row(run=name, same_bits=same, largest_difference=most, sha256=digest)


def weights(path: Path) -> torch.Tensor:
    """Of a run's last checkpoint, with BN's statistics."""
    folder = path / "checkpoints"
    saved = torch.load(folder / (folder / "LATEST").read_text().strip(), weights_only=True)
    floats = [t for t in saved["model"].values() if t.is_floating_point()]
    return torch.cat([t.flatten().float().cpu() for t in floats])


def killed(task: Task) -> None:
    """kill -9 of a worker in mid-run, then the same command again."""
    path = task.keep / "killed"
    shutil.rmtree(path, ignore_errors=True)
    steps = 20 if task.small else 3000
    settings = {**BASE, **(SMALL if task.small else {}), "data.dir": task.shapes}
    settings |= {"train.max_steps": steps, "train.checkpoint_every": f"{steps // 20} steps"}
    settings |= {"train.log_every": "1 steps" if task.small else "50 steps"}
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "launch", "train", CONFIG, "--run-dir", str(path)]
    command += ["--workers-per-node", "1", *words]
    first = subprocess.Popen(command)
    while first.poll() is None and reached(path) < steps // 4:
        time.sleep(0.02)
    at = reached(path)
    for controller in psutil.Process(first.pid).children():
        if {"launch.jobs.forks", "submitit.local._local"} & set(controller.cmdline()):
            for worker_process in controller.children():
                worker_process.kill()
    code = first.wait()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    print(again.stdout, again.stderr)
    resumed = [line.strip() for line in again.stdout.splitlines() if "resuming" in line]
    complete = (path / "summary.json").exists()
    task.row(killed_after_step=at, exit_code=code, then=resumed[:1], complete=complete)
    if not complete:
        raise RuntimeError(f"the second start ended with exit code {again.returncode}")


def reached(path: Path) -> int:
    return max((record["step"] for record in read_metrics(path)), default=0)
