"""`dist-resnet train`: a training, or the rest of one, on this machine, in this process, or as a
SLURM job."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dist_resnet.config import Config, config_file
from dist_resnet.runtime.signals import COMPLETED
from launch.executors import run_dir
from launch.executors.resources import Resources, add_resources, check
from launch.inspection.compare import show


def options(parser: argparse.ArgumentParser) -> None:
    parser.usage = "dist-resnet train CONFIG [options] [--section.key value ...]"
    parser.description = "Train as CONFIG says. The same command goes on where it was stopped."
    parser.epilog = "configuration keys:\n" + config_file.describe()
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "config", type=Path, metavar="CONFIG", help="a YAML file, such as configs/resnet110.yaml"
    )
    add_resources(parser)
    parser.add_argument(
        "--run-dir", type=Path, help="where everything is kept (default: runs/CONFIG-DIGEST)"
    )
    parser.add_argument(
        "--sweep-dir",
        type=Path,
        help="for the agents of a W&B sweep: RUN_DIR is the run's id in there",
    )
    parser.add_argument(
        "--wait",
        action="store_true",
        help="SLURM: follow the job, start its requeues at once, end with its exit code",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="SLURM: print the batch script, and do nothing"
    )


def train(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from launch.executors import local, slurm  # submitit
    from launch.sweeps import agents

    directory, config = resolve_run(options, overrides)
    resources = Resources.of(options, config.train.device)
    if (options.wait or options.dry_run) and not resources.on_slurm:
        raise ValueError(
            "--wait and --dry-run are for SLURM jobs: leave them out with --cluster "
            f"{options.cluster}"
        )
    if options.dry_run:
        print(slurm.script(directory, resources.cluster, resources.nodes, resources.workers))
        return 0
    check(config, resources.world_size)
    is_new = run_dir.create(directory, config)
    if (directory / "summary.json").exists():
        print(f"{directory} is complete")
        return show([directory], directory / "curves.png")
    print(f"run directory: {directory}", flush=True)
    if resources.on_slurm:
        return _queue(directory, resources, options.wait, is_new)
    with agents.claimed(directory):
        if options.cluster == "debug":
            outcome = _in_this_process(directory)
        else:
            outcome = local.train(
                directory, resources.workers, config.train.device, requeues=not agents.is_one()
            )
    if outcome != COMPLETED:
        print(f"{outcome}: the same command goes on from the last checkpoint")
        return 130
    return show([directory], directory / "curves.png")


def resolve_run(options: argparse.Namespace, overrides: Sequence[str]) -> tuple[Path, Config]:
    """(RUN_DIR, configuration) that the options of `train` and `stage` ask for."""
    if options.sweep_dir and not options.run_dir:
        from launch.sweeps import agents

        if "WANDB_RUN_ID" not in os.environ:
            raise ValueError(
                "--sweep-dir is for the agents of a W&B sweep, which set WANDB_RUN_ID; give "
                "--run-dir instead"
            )
        directory = options.sweep_dir / os.environ["WANDB_RUN_ID"]
        return directory, agents.configuration(directory, options.config, overrides)
    config = config_file.load(options.config, overrides)
    return options.run_dir or run_dir.default(options.config, config), config


def _queue(directory: Path, resources: Resources, wait: bool, is_new: bool) -> int:
    from launch.executors import follow, slurm
    from launch.jobs.task import WorkerTask

    where = resources.cluster
    task = WorkerTask(
        str(directory.resolve()), max_restarts=where.max_restarts, max_faults=where.max_faults
    )
    new = [directory] if is_new else []
    (job,) = slurm.submit(directory, [task], where, resources.nodes, resources.workers, new)
    log = directory / "logs" / f"{job}_0_log.out"
    print(
        f"job {job} queued\n  follow: tail -F {log}\n  cancel: scancel {job}\n  resume: the same "
        "command",
        flush=True,
    )
    if not wait:
        return 0
    try:
        return follow.follow(job, log)
    except KeyboardInterrupt:
        print(f"\njob {job} goes on; cancel it with scancel {job}", file=sys.stderr)
        return 130


def _in_this_process(directory: Path) -> str:
    from submitit import DebugExecutor

    from launch.jobs.task import WorkerTask

    job = DebugExecutor(directory / "logs").submit(WorkerTask(str(directory)))
    # results() would set it, but ends in pdb, terminal or not
    os.environ["SUBMITIT_DEBUG_JOB_ID"] = job.job_id
    return job.submission().result()
