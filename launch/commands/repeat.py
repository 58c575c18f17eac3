"""`dist-resnet repeat`: one configuration with several seeds; mean and spread of its accuracy, and
of its time by two clocks."""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from dist_resnet.config import config_file
from dist_resnet.reports.comparison import interval
from dist_resnet.runtime.signals import COMPLETED
from launch.executors import run_dir
from launch.executors.resources import Resources, check

FILE = "repeat.json"


def options(parser: argparse.ArgumentParser) -> None:
    parser.usage = "dist-resnet repeat CONFIG [options] [--section.key value ...]"
    parser.description = (
        "Two clocks: the steps alone, once everything is loaded, and compiled where "
        "that is asked for; and everything from the command on."
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="such as configs/speedrun.yaml")
    parser.add_argument(
        "--runs", type=int, default=10, help="with seeds train.seed, train.seed + 1 ... (10)"
    )
    parser.add_argument(
        "--workers-per-node", type=int, help="workers of each run (one per GPU; on the CPU two)"
    )
    parser.add_argument(
        "--run-dir", type=Path, help="where the runs are kept (runs/repeat-CONFIG-DIGEST)"
    )
    parser.set_defaults(cluster="local", nodes=1)


def repeat(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Train seeds train.seed, train.seed + 1 ... one after another, or those that have not
    finished, and report."""
    from launch.executors import local  # submitit

    if options.runs < 1:
        raise ValueError(f"--runs {options.runs}: must be at least 1")
    base = config_file.load(options.config, overrides)
    resources = Resources.of(options, base.train.device)
    check(base, resources.workers)
    directory = (
        options.run_dir or Path("runs") / f"repeat-{options.config.stem}-{base.digest()[:8]}"
    )
    started = (
        time.time() - psutil.Process().create_time()
    )  # what every run would have waited for, had it been the only one
    rows = []
    for seed in range(base.train.seed, base.train.seed + options.runs):
        path = directory / f"seed{seed}"
        run_dir.create(path, config_file.load(options.config, [*overrides, f"--train.seed={seed}"]))
        if not (path / FILE).exists():
            began = time.monotonic()
            if local.train(path, resources.workers, base.train.device) != COMPLETED:
                print("the same command goes on with these runs")
                return 130
            (path / FILE).write_text(
                json.dumps(_row(path, seed, started + time.monotonic() - began))
            )
        trained_by = json.loads((path / "summary.json").read_text())["world_size"]
        if trained_by != resources.workers:
            raise ValueError(
                f"--workers-per-node {resources.workers}: {path} was trained by {trained_by}; "
                "give another --run-dir"
            )
        rows.append(json.loads((path / FILE).read_text()))
    _report(rows, directory, f"{options.config}, {resources.workers} workers")
    return 0


def _row(path: Path, seed: int, everything: float) -> dict[str, float]:
    summary = json.loads((path / "summary.json").read_text())
    over_all_starts = sum(
        summary["seconds"].values()
    )  # more than `everything`, which is of the last, where the run was resumed
    return {
        "seed": seed,
        "top-1, %": 100 * summary[f"{summary['evaluated_on']}_top1"],
        "training, s": summary["seconds"]["training"],
        "everything, s": max(everything, over_all_starts),
    }


def _report(rows: list[dict[str, float]], directory: Path, title: str) -> None:
    """training: the steps alone, once everything is loaded, and compiled or captured where that is
    asked for (airbench's clock has the whitening and the last evaluation besides); everything: from
    the command on."""
    measured = [key for key in rows[0] if key != "seed"]
    mean = {key: statistics.mean(row[key] for row in rows) for key in measured}
    several = len(rows) > 1
    spread = {key: statistics.stdev(row[key] for row in rows) for key in measured if several}
    half = {key: interval([row[key] for row in rows]) for key in measured if several}
    table = Table("seed", *measured, title=title)
    named = {str(row["seed"]): row for row in rows} | {"mean": mean}
    if several:
        named |= {"standard deviation": spread, "± 95 % interval": half}
    for name, row in named.items():
        table.add_row(name, *(f"{row[key]:.2f}" for key in measured))
    Console().print(table)
    (directory / FILE).write_text(
        json.dumps(
            {"runs": rows, "mean": mean, "standard deviation": spread, "interval": half}, indent=1
        )
        + "\n"
    )
