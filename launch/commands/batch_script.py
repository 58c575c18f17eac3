"""`dist-resnet stage` and `settle`: for batch scripts, before their srun and after it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.commands.train import resolve_run
from launch.executors import run_dir
from launch.executors.cluster import Cluster
from launch.sweeps import definition


def stage(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Make RUN_DIR, put the task where submitit's runner in this job finds it, print that
    folder."""
    from launch.executors import slurm  # submitit

    if options.sweep_run is None:
        directory, config = resolve_run(options, overrides)
    else:
        sweep = definition.load(options.config)
        sweep_dir = options.sweep_dir or Path("runs") / sweep.name
        runs = definition.runs(sweep, sweep_dir, options.count, options.seed, overrides)
        if options.sweep_run >= len(runs):
            print(f"the sweep has {len(runs)} runs: nothing to do", file=sys.stderr)
            return 0
        directory, config = runs[options.sweep_run]
    run_dir.create(directory, config)
    if (directory / "summary.json").exists():
        print(f"{directory} is complete", file=sys.stderr)
        return 0
    limits = Cluster(max_restarts=options.max_restarts, max_faults=options.max_faults)
    print(slurm.stage(directory, limits))
    return 0


def settle(options: argparse.Namespace) -> int:
    """Say who failed and why. Ends with 75 where the job should be requeued."""
    from launch.executors import slurm  # submitit

    return slurm.settle(options.folder)
