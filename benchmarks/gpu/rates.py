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

SECONDS, ROUNDS = 0.6, 2  # of a measurement, and how many there are after one that does not count
WAYS = {"default": (), "no graph": ("--train.cuda_graph", "false")}
PLAIN, STRONG = (
    "plain loop (TF32 on a GPU)",
    "strong plain loop (bf16, channels_last, compiled, images on the device)",
)
LOOPS = {PLAIN: ("train", 20), STRONG: ("strong", 400)}  # of benchmarks.plain, and how many steps
PATIENCE = {PLAIN: 15.0, STRONG: 35.0}  # seconds without which a row is not begun
SMALL = ("--model.width", "2")


def rates(task: Task) -> None:
    """Each row at once; the most wanted first."""
    left_out = steps.cuts(task.seconds)
    networks = ("resnet8",) if task.small else ("resnet20", "resnet110")
    for batch in (8, 16) if task.small else (128, 1024):
        if batch in (16, 1024) and "batch 1024" in left_out:
            continue
        for network in networks:
            for way, settings in WAYS.items():
                ours = partial(_ours, task, network, batch, (*settings, *_trusted(task)))
                _row(task, ours, network=network, batch=batch, way=way)
        for network in networks:
            loop = partial(_theirs, task, PLAIN, network, batch)
            _row(task, loop, network=network, batch=batch, way=PLAIN)
    if "strong plain loop" not in left_out:
        batch = 8 if task.small else 128
        loop = partial(_theirs, task, STRONG, networks[0], batch)
        _row(task, loop, network=networks[0], batch=batch, way=STRONG)


def _trusted(task: Task) -> list[str]:
    """What the first command has compared, and found to be the same, need not be compared again."""
    ways = [row for row in task.found("ways") if row["way"] in ("ResNet-20", "ResNet-110")]
    outcomes = {outcome for row in ways for outcome in row.get("fast_paths", {"": ""}).values()}
    return ["--train.fast_paths", "trust"] if outcomes == {"used"} else task.settings()


def _row(task: Task, contender: Callable, **about: object) -> None:
    if task.left() < PATIENCE.get(str(about["way"]), 8.0):
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
    words = ["--data.dir", str(data), "--data.dataset", "null", "--model.name", network]
    words += ["--batch.global", str(batch), "--batch.per_worker", "null"]
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
def _theirs(task: Task, way: str, network: str, batch: int) -> Iterator[Callable[[], float]]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data, (loop, count) = task.shapes if task.small else task.data, LOOPS[way]
    overrides = _overrides(task, network, batch)
    how = ("configs/resnet20.yaml", overrides, 2 if task.small else count, data, device)
    with measure.elsewhere("benchmarks.plain", loop, *how) as some:
        yield some


def feeding(task: Task) -> None:
    """What FFCV streams into ResNet-20, and decodes of photographs' size into ResNet-50."""
    network, batch = ("resnet8", 8) if task.small else ("resnet20", 128)
    contender = partial(
        _ours, task, network, batch, ("--data.residency", "stream", *task.settings())
    )
    _row(task, contender, network=network, batch=batch, way="streamed by FFCV")
    folder, count = task.keep / "jpegs", 32 if task.small else 1024
    began = time.monotonic()
    _photographs(task.shapes if task.small else task.data, folder, count)
    task.row(way=f"{count} JPEGs of 500x375 made", seconds=round(time.monotonic() - began, 1))
    network, batch, size = ("resnet18", 4, 32) if task.small else ("resnet50", 256, 224)
    photographs = partial(_imagenet, task.small, folder, network, batch, size)
    _row(task, photographs, network=network, batch=batch, way=f"JPEGs at {size}, FFCV")


def _photographs(data: Path, folder: Path, count: int) -> None:
    from benchmarks import jpegs
    from dist_resnet.data import jpeg

    jpegs.IMAGES = count
    if not (folder / "manifest.json").exists():
        jpegs.beton(data, folder, jpeg.encode)


@contextmanager
def _imagenet(
    small: bool, folder: Path, network: str, batch: int, size: int
) -> Iterator[Callable[[], float]]:
    settings = {"data.dir": folder, "data.dataset": "null", "data.resolution": size}
    settings |= {"data.min_resolution": "null", "batch.global": batch, "train.precision": "bf16"}
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    words += ["--tracking.wandb", "disabled"]
    config = f"configs/imagenet_{network}.yaml"
    with measure.training(config, words, partial(_enough, small)) as trained:
        yield trained["ours"]
