"""What machine it is, whether everything is there, and what examines it."""

import dataclasses
import json
import os
import platform
import subprocess
import time
from importlib import metadata

from benchmarks.gpu import mosaics
from benchmarks.gpu.task import Task

VERSIONS = ("torch", "triton", "torchvision", "numpy", "numba", "ffcv", "jsonargparse", "submitit")
GPU_TESTS = (
    *("stream", "checkpoint", "fast_paths", "training", "equal_trainings", "virtual_workers"),
    *("speedrun", "imagenet"),
)


def machine(task: Task) -> None:
    task.row(what="Python", seen=platform.python_version())
    task.row(what="glibc", seen=" ".join(platform.libc_ver()))
    task.row(what="cores", seen=len(os.sched_getaffinity(0)))
    for name in VERSIONS:
        try:
            task.row(what=name, seen=metadata.version(name))
        except metadata.PackageNotFoundError:
            task.row(what=name, seen="not installed")
    import psutil

    age = time.time() - psutil.Process().create_time()
    task.row(what="clock, s since this process began (a few)", seen=round(age, 2))
    query = "--query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit"
    for command in (["nvidia-smi", query, "--format=csv,noheader"], ["cc", "--version"]):
        try:
            told = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
        except (OSError, subprocess.TimeoutExpired) as error:
            told = str(error)
        task.row(what=command[0], seen=(told.splitlines() or ["nothing"])[0])
    import torch

    if not torch.cuda.is_available():
        task.row(what="GPU", seen="no GPU")
        if not task.small:
            raise RuntimeError("torch sees no GPU")
        return
    torch.ones(1, device="cuda").sum().item()
    properties = torch.cuda.get_device_properties(0)
    seen = f"{properties.name}, sm_{properties.major}{properties.minor}"
    task.row(what="GPU", seen=f"{seen}, {properties.total_memory / 2**30:.0f} GiB")
    task.row(what="cuDNN", seen=torch.backends.cudnn.version())


def site(task: Task) -> None:
    """Whether FFCV and this project are imported, and write betons."""
    began = time.monotonic()
    from dist_resnet import worker  # noqa: F401
    from dist_resnet.prepare import betons, shapes

    task.row(what="imports, s", seen=round(time.monotonic() - began, 1))
    began = time.monotonic()
    made = shapes.make(600, 100) if task.small else shapes.make(20_000, 2_000)
    named = dataclasses.replace(made, name="cifar10") if task.small else made  # stand in for it
    betons.prepare(named, task.shapes, val=0, seed=0)
    task.row(what="betons of shapes, s", seen=round(time.monotonic() - began, 1))


def betons(task: Task) -> None:
    """The two halves of CIFAR-10 to its betons, sha256 checked, in processes without torch."""
    halves = [task.keep / half for half in ("a", "b")]
    missing = [path.name for path in halves if not (path / mosaics.MANIFEST).exists()]
    if missing:
        raise RuntimeError(f"half {', '.join(missing)} of the kit did not travel")
    began = time.monotonic()
    task.command("benchmarks.gpu.mosaics", "unpack", task.data, *halves)
    task.row(what="unpacked, s", seen=round(time.monotonic() - began, 1))


def doctor(task: Task) -> None:
    words = ["--data.dir", task.shapes, "--data.dataset", "null", "--tracking.wandb", "disabled"]
    config = ("--config", "configs/resnet20.yaml", "--workers-per-node", 1)
    # it ends with 1 where something must be mended: the log says what
    folder = ("--run-dir", task.keep / "doctor")
    try:
        task.command("launch", "doctor", *config, *folder, *words, expected=(0, 1))
    finally:  # what it has seen until then
        from dist_resnet.diagnosis import findings

        for finding in findings.together(task.keep / "doctor", range(1)):
            task.row(what=finding.name, level=finding.level, seen=finding.figure)


def tests(task: Task) -> None:
    """The tests that train, on the GPU."""
    files = [f"tests/test_{name}.py" for name in GPU_TESTS]
    task.command("pytest", "--device", "cuda", "-n", 0, *files)


def tables(task: Task) -> None:
    """The longer tables of benchmarks/README.md, as far as they concern one GPU."""
    ways = ("--ways", "default", "no graph, cast each", "compiled")
    full = {
        "step": ("--models", "resnet20", *ways),
        "memory": ("--models", "resnet110", "resnet1202", "--rounds", 1),
        "loader": ("--rounds", 2),
        "start": ("--rounds", 1),
    }
    small = {
        "step": ("--models", "resnet8", "--batches", 4, "--steps", 1, "--workers", 1, *ways),
        "memory": ("--models", "resnet8", "--rounds", 1, "--batch", 4),
        "loader": ("--rounds", 1),
        "start": ("--rounds", 1, "--warm", "--residencies", "device", "--workers-per-node", 1),
    }
    data = task.shapes if task.small else task.data
    for name, words in (small if task.small else full).items():
        path = task.out / f"{name}.json"
        try:
            task.command(f"benchmarks.{name}", "--data", data, "--json", path, *words)
        except RuntimeError as error:
            task.row(table=name, error=str(error))
            continue
        for row in json.loads(path.read_text())["rows"]:
            task.row(table=name, **row)
