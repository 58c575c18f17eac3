"""Images per second: of our steps in several ways beside the loop that people copy and a strong
one, and of what feeds them."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from benchmarks import measure, step
from benchmarks.gpu import steps
from benchmarks.gpu.task import Task, cause
from dist_resnet.training.loop import Training

SECONDS, ROUNDS = 1.0, 3  # of a measurement, and how many there are after one that does not count
WAYS = {"default": (), "no graph": ("--train.cuda_graph", "false")}
SMALL = ("--model.width", "2")


def rates(task: Task) -> None:
    """Each row at once; the cheapest and most wanted first."""
    left_out = steps.cuts(task.seconds)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batches = (128,) if "batch 1024" in left_out else (128, 1024)
    networks = ("resnet8",) if task.small else ("resnet20", "resnet110")
    for batch in batches:
        for network in networks:
            for way, settings in WAYS.items():
                ours = partial(_ours, task, network, batch, (*settings, *task.settings()))
                _row(task, ours, network=network, batch=batch, way=way)
    for network in networks:
        for batch in batches:
            loop = partial(_theirs, task, "train", network, batch, device)
            _row(task, loop, network=network, batch=batch, way="plain loop (TF32 on a GPU)")
    if "strong plain loop" not in left_out:
        loop = partial(_theirs, task, "strong", networks[0], 128, device)
        what = "strong plain loop (bf16, channels_last, compiled, data on the device)"
        _row(task, loop, network=networks[0], batch=128, way=what)


def _row(task: Task, contender: Callable, **about: object) -> None:
    if task.left() < 8:
        task.row(**about, error="no time was left")
        return
    try:
        with contender() as some:
            some()  # loads, compiles
            found = [some() for _ in range(ROUNDS)]
    except Exception as error:
        task.row(**about, error=cause(error))
        return
    rate = statistics.median(found)
    ms = 1000 * int(str(about["batch"])) / rate
    task.row(**about, **{"images/s": round(rate), "ms a step": round(ms, 3)})


def _overrides(task: Task, network: str, batch: int) -> list[str]:
    data = task.shapes if task.small else task.data
    size = 8 if task.small else batch
    words = ["--data.dir", str(data), "--data.dataset", "null", "--model.name", network]
    words += ["--batch.global", str(size), "--batch.per_worker", "null"]
    return [*words, "--tracking.wandb", "disabled", *(SMALL if task.small else ())]


@contextmanager
def _ours(
    task: Task, network: str, batch: int, more: tuple[str, ...]
) -> Iterator[Callable[[], float]]:
    words = [*_overrides(task, network, batch), *more]
    with measure.training("configs/resnet20.yaml", words, partial(_enough, task.small)) as trained:
        yield trained["ours"]


def _enough(small: bool, run: Training) -> dict[str, Callable[[], float]]:
    """As many steps as take SECONDS, by those of the first call."""
    state = {"steps": 2 if small else 20}

    def some() -> float:
        rate = step.ours(run, state["steps"])()
        if not small:
            state["steps"] = max(20, round(SECONDS * rate / run.plan.global_batch))
        return rate

    return {"ours": some}


@contextmanager
def _theirs(
    task: Task, loop: str, network: str, batch: int, device: str
) -> Iterator[Callable[[], float]]:
    overrides = _overrides(task, network, batch)
    data = task.shapes if task.small else task.data
    count = 2 if task.small else 400 if loop == "strong" else 50
    how = ("configs/resnet20.yaml", overrides, count, data, device)
    with measure.elsewhere("benchmarks.plain", loop, *how) as some:
        yield some


def feeding(task: Task) -> None:
    """What FFCV streams into ResNet-20, and decodes of photographs' size into ResNet-50."""
    words = ["--data.residency", "stream", *task.settings()]
    contender = partial(_ours, task, "resnet8" if task.small else "resnet20", 128, tuple(words))
    _row(task, contender, network="resnet20", batch=128, way="streamed by FFCV")
    if task.small:
        return
    folder = task.keep / "jpegs"
    began = time.monotonic()
    _photographs(task.data, folder)
    task.row(way="1,024 JPEGs of 500x375 made", seconds=round(time.monotonic() - began, 1))
    _row(task, partial(_resnet50, folder), network="resnet50", batch=256, way="JPEGs at 224, FFCV")


def _photographs(data: Path, folder: Path) -> None:
    from benchmarks import jpegs
    from dist_resnet.data import jpeg

    jpegs.IMAGES = 1024
    if not (folder / "manifest.json").exists():
        jpegs.beton(data, folder, jpeg.encode)


@contextmanager
def _resnet50(folder: Path) -> Iterator[Callable[[], float]]:
    settings = {"data.dir": folder, "data.dataset": "null", "data.resolution": 224}
    settings |= {"data.min_resolution": "null", "batch.global": 256, "train.precision": "bf16"}
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    words += ["--tracking.wandb", "disabled"]
    config = "configs/imagenet_resnet50.yaml"
    with measure.training(config, words, partial(_enough, False)) as trained:
        yield trained["ours"]
