"""`dist-resnet repeat`: one configuration with several seeds; mean and spread of its accuracy, and
of its time by two clocks."""

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from dist_resnet.config import Config, config_file
from dist_resnet.reports.comparison import interval
from dist_resnet.runtime import terminal
from dist_resnet.runtime.signals import COMPLETED
from launch.executors import run_dir
from launch.executors.resources import Resources, check

SECONDS = "seconds.json"  # of a run of a series: how long it took, from the command on
FILE = "repeat.json"
WARM_UP_STEPS = 3


def options(parser: argparse.ArgumentParser) -> None:
    parser.usage = "dist-resnet repeat CONFIG [options] [--section.key value ...]"
    parser.description = (
        "Trains one seed after another in the same worker processes. Two clocks: the steps alone, "
        "once everything is loaded, and compiled where that is asked for; and everything from the "
        "command on, had the run been the only one, with the warm-up that precedes several."
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="such as configs/speedrun.yaml")
    parser.add_argument(
        "--runs", type=int, default=10, help="with seeds train.seed, train.seed + 1 ..."
    )
    parser.add_argument(
        "--workers-per-node", type=int, help="of each run (default: one per GPU; on the CPU two)"
    )
    parser.add_argument(
        "--run-dir", type=Path, help="where the runs are kept (default: runs/repeat-CONFIG-DIGEST)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    parser.set_defaults(cluster="local", nodes=1)


def repeat(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Train seeds train.seed, train.seed + 1 ... one after another, or those that have not
    finished, and report."""
    if options.runs < 1:
        raise ValueError(f"--runs {options.runs}: must be at least 1")
    base = config_file.load(options.config, overrides)
    resources = Resources.of(options, base.train.device)
    check(base, resources.workers)
    name = f"repeat-{options.config.stem}-{run_dir.digest(base)[:8]}"
    directory = options.run_dir or Path("runs") / name
    paths = {}
    for seed in range(base.train.seed, base.train.seed + options.runs):
        path = paths[seed] = directory / f"seed{seed}"
        run_dir.create(path, config_file.load(options.config, [*overrides, f"--train.seed={seed}"]))
    left = [path for path in paths.values() if not (path / SECONDS).exists()]
    for seed, path in paths.items():
        if path not in left:
            _row(path, seed, resources.workers)  # refuses what other workers have trained
    with terminal.for_json(options.json):
        ended = _train(left, directory, resources, base) if left else COMPLETED
    if ended != COMPLETED:
        print("the same command goes on with these runs", file=sys.stderr)
        return 130
    rows = [_row(path, seed, resources.workers) for seed, path in paths.items()]
    figures = _figures(rows)
    (directory / FILE).write_text(json.dumps(figures, indent=1) + "\n")
    if options.json:
        print(json.dumps(figures))
    else:
        _show(figures, f"{options.config}, {resources.workers} workers")
    return 0


def _train(left: list[Path], directory: Path, resources: Resources, config: Config) -> str:
    """One after another in the same processes; where there are several, after a short training that
    is thrown away."""
    from launch.executors import local  # submitit
    from launch.jobs import series

    warm_ups = []
    with tempfile.TemporaryDirectory(prefix="dist-resnet-warm-up-") as folder:
        if len(left) > 1:
            train = dataclasses.replace(config.train, max_steps=WARM_UP_STEPS)
            tracking = dataclasses.replace(config.tracking, wandb="disabled")
            short = dataclasses.replace(config, train=train, tracking=tracking)
            run_dir.create(Path(folder), short)
            warm_ups = [Path(folder)]
        run_dirs = [*warm_ups, *left]
        task = series.SeriesTask(
            run_dirs=[str(path) for path in run_dirs],
            warm_ups=len(warm_ups),
            launcher=os.getpid(),
            command_began=psutil.Process().create_time(),
            record=SECONDS,
        )
        where = directory / "logs"
        return local.run(task, where, resources.workers, config.train.device, run_dirs=run_dirs)


def _row(path: Path, seed: int, workers: int) -> dict[str, float]:
    summary = json.loads((path / "summary.json").read_text())
    if summary["world_size"] != workers:
        raise ValueError(
            f"--workers-per-node {workers}: {path} was trained by {summary['world_size']}; "
            "give another --run-dir"
        )
    everything = json.loads((path / SECONDS).read_text())["everything"]
    over_all_starts = sum(
        summary["seconds"].values()
    )  # more than `everything`, which is of the last, where the run was resumed
    return {
        "seed": seed,
        "top-1, %": 100 * summary[f"{summary['evaluated_on']}_top1"],
        "training, s": summary["seconds"]["training"],
        "everything, s": max(everything, over_all_starts),
    }


def _figures(rows: list[dict[str, float]]) -> dict[str, Any]:
    """training: the steps alone, once everything is loaded, and compiled or captured where that is
    asked for (airbench's clock has the whitening and the last evaluation besides); everything: from
    the command on."""
    values = {key: [row[key] for row in rows] for key in rows[0] if key != "seed"}
    several = values if len(rows) > 1 else {}
    return {
        "runs": rows,
        "mean": {key: statistics.mean(row) for key, row in values.items()},
        "standard deviation": {key: statistics.stdev(row) for key, row in several.items()},
        "interval": {key: interval(row) for key, row in several.items()},
    }


def _show(figures: dict[str, Any], title: str) -> None:
    measured = list(figures["mean"])
    table = Table("seed", *measured, title=title)
    named = {str(row["seed"]): row for row in figures["runs"]} | {"mean": figures["mean"]}
    if figures["interval"]:
        named["standard deviation"] = figures["standard deviation"]
        named["± 95 % interval"] = figures["interval"]
    for name, row in named.items():
        table.add_row(name, *(f"{row[key]:.2f}" for key in measured))
    Console().print(table)
