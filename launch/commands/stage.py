"""`dist-resnet stage`: for batch scripts, before their srun."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dist_resnet.tracking.starts import SOURCE
from launch.commands.train import resolve_run
from launch.executors import run_dir
from launch.executors.cluster import Cluster
from launch.executors.resources import add_code
from launch.sweeps import definition


def options(parser: argparse.ArgumentParser) -> None:
    parser.usage = "dist-resnet stage CONFIG [--run-dir DIR] [--section.key value ...]"
    parser.description = (
        "For batch scripts, at a job's first start: make RUN_DIR, put the task where submitit's "
        "runner in this job finds it. Prints the folder to give to that runner, and that of the "
        "code to run."
    )
    parser.add_argument(
        "config",
        type=Path,
        metavar="CONFIG",
        help="a configuration, or with --sweep-run a sweep's file",
    )
    parser.add_argument("--run-dir", type=Path, help="(default: runs/CONFIG-DIGEST)")
    parser.add_argument(
        "--sweep-run",
        type=int,
        metavar="K",
        help="run K of a sweep, from 0; beyond its last one nothing is printed",
    )
    parser.add_argument("--sweep-dir", type=Path, help="(default: runs/FILE)")
    parser.add_argument("--count", type=int, help="so many runs of a sweep at most")
    parser.add_argument("--seed", type=int, default=0, help="of a sweep's draws")
    add_code(parser)
    for key in ("max_restarts", "max_faults"):
        field = Cluster.__dataclass_fields__[key]
        parser.add_argument(
            f"--{key.replace('_', '-')}",
            type=int,
            default=field.default,
            help=field.metadata["comment"],
        )


def stage(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Make RUN_DIR, put the task where submitit's runner in this job finds it; print that folder,
    then the code's."""
    from launch.executors import pinned, settle  # submitit

    if options.sweep_run is None:
        directory, config = resolve_run(options, overrides)
        owner = directory  # of the code
    else:
        sweep = definition.load(options.config)
        sweep_dir = options.sweep_dir or Path("runs") / sweep.name
        runs = definition.runs(sweep, sweep_dir, options.count, options.seed, overrides)
        if options.sweep_run >= len(runs):
            print(f"the sweep has {len(runs)} runs: nothing to do", file=sys.stderr)
            return 0
        directory, config = runs[options.sweep_run]
        owner = sweep_dir
    run_dir.create(directory, config)
    if (directory / "summary.json").exists():
        print(f"{directory} is complete", file=sys.stderr)
        return 0
    limits = Cluster(max_restarts=options.max_restarts, max_faults=options.max_faults)
    print(settle.stage(directory, limits))
    print(SOURCE if options.code == "live" else pinned.pin(owner))
    return 0
