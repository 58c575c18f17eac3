"""Interleaved measurements, one table, one JSON file: what all benchmarks share."""

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dist_resnet import worker
from dist_resnet.acceleration import cuda_graph, fast_paths
from dist_resnet.config import config_file
from dist_resnet.data import manifest
from dist_resnet.runtime import distributed, precision
from dist_resnet.runtime.distributed import World
from dist_resnet.runtime.signals import StopSignal
from dist_resnet.training.loop import Training
from dist_resnet.training.progress import Progress
from launch.jobs.task import pin, single_worker

# a DataLoader's workers go on making batches ahead, at the cost of whoever is measured next
SETTLE_SECONDS = 1.0
Contenders = Callable[[Training], dict[str, Callable[[], float]]]  # name -> what is measured


def arguments(description: str | None, rounds: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=Path("data/cifar10"), help="betons of CIFAR-10 (data/cifar10)"
    )
    parser.add_argument(
        "--rounds", type=int, default=rounds, help=f"of which medians are taken ({rounds})"
    )
    parser.add_argument("--json", type=Path, help="write the figures there")
    return parser


def interleaved(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of what each returns over rounds of one call each, A B A B, after one that does
    not count."""
    for call in contenders.values():
        call()
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            time.sleep(SETTLE_SECONDS)
            found[name].append(call())
    return {name: statistics.median(values) for name, values in found.items()}


@contextmanager
def elsewhere(module: str, name: str, *arguments: Any) -> Iterator[Callable[[], float]]:
    """What module.name(*arguments) returns, called in a process of its own: our allocator, threads
    and settings are not the contender's."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, module, name, arguments))
    process.start()
    theirs.close()  # so that its death is the pipe's end

    def call() -> float:
        ours.send("go")
        return ours.recv()

    try:
        yield call
    finally:
        ours.close()
        process.join()


def _serve(pipe: Connection, module: str, name: str, arguments: Any) -> None:
    some = getattr(importlib.import_module(module), name)(*arguments)
    with contextlib.suppress(EOFError):
        while pipe.recv():
            pipe.send(some())


def show(title: str, rows: list[dict[str, Any]], path: Path | None) -> None:
    table = Table(*rows[0], title=f"{title}; {machine()}")
    for row in rows:
        table.add_row(
            *(
                f"{v:,.3g}"
                if isinstance(v, float) and abs(v) < 100
                else f"{v:,.0f}"
                if isinstance(v, float)
                else str(v)
                for v in row.values()
            )
        )
    Console(width=150).print(table)
    if path:
        path.write_text(
            json.dumps(
                {"title": title, "machine": machine(), "torch": torch.__version__, "rows": rows},
                indent=1,
            )
            + "\n"
        )


def machine() -> str:
    if torch.cuda.is_available():
        tf32 = precision.takes_tf32(torch.device("cuda", 0))
        return torch.cuda.get_device_name() + f" (fp32: {precision.TF32})" * tf32
    models = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return (
        f"{len(os.sched_getaffinity(0))} cores of {models[0] if models else platform.processor()}"
    )


@contextmanager
def training(
    config_path: str, overrides: list[str], contenders: Contenders, workers: int = 1
) -> Iterator[dict[str, Callable[[], float]]]:
    """`contenders` of our Training, as a worker builds it: of one alone in its world, or of several
    on this machine, each on its share of the cores, who are called together and answer as rank 0
    does."""
    single_worker()
    context, port = multiprocessing.get_context("spawn"), os.environ["MASTER_PORT"]
    pipes = []
    for rank in range(1, workers):
        ours, theirs = context.Pipe()
        how = (theirs, rank, workers, port, config_path, overrides, contenders)
        context.Process(target=_companion, args=how, daemon=True).start()
        pipes.append(ours)

    def together(name: str, mine: Callable[[], float]) -> float:
        for pipe in pipes:
            pipe.send(name)
        return mine()

    with built(0, workers, config_path, overrides) as run:
        found = contenders(run)
        yield {name: partial(together, name, mine) for name, mine in found.items()}
        for pipe in pipes:
            pipe.send(None)


def _companion(
    pipe: Connection,
    rank: int,
    workers: int,
    port: str,
    config_path: str,
    overrides: list[str],
    contenders: Contenders,
) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, GLOO_SOCKET_IFNAME="lo")
    with built(rank, workers, config_path, overrides) as run:
        found = contenders(run)
        while name := pipe.recv():
            found[name]()


@contextmanager
def built(rank: int, workers: int, config_path: str, overrides: list[str]) -> Iterator[Training]:
    """Our Training, as a worker of so many on this machine builds it, on its share of the cores."""
    config = config_file.load(config_path, overrides)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    os.environ.update(WORLD_SIZE=str(workers), LOCAL_WORLD_SIZE=str(workers))
    everything, threads = os.sched_getaffinity(0), os.environ.get("OMP_NUM_THREADS")
    if not torch.cuda.is_available():
        pin(rank, workers)
    torch.set_num_threads(int(threads or len(os.sched_getaffinity(0))))
    with (
        tempfile.TemporaryDirectory() as folder,
        distributed.connect(config.train.device, config.train.timeout_s) as world,
    ):
        run = build(config, Path(folder), world)
        try:
            yield run
        finally:
            cuda_graph.release(run)
            os.sched_setaffinity(0, everything)  # as the next contender's process shall find it
            if threads is None:
                os.environ.pop("OMP_NUM_THREADS", None)


def build(config: Any, run_dir: Path, world: World) -> Training:
    data_dir = Path(config.data.dir)
    betons = manifest.load(data_dir)
    config, _ = worker.settle(config, betons, world)
    run = worker.build(config, run_dir, data_dir, betons, world, StopSignal(), Progress())
    run.tracker.writes = False
    fast_paths.engage(run)
    return run
