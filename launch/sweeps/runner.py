"""`dist-resnet sweep`: here or on a cluster; a list of runs, a search, or W&B's server's."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from dist_resnet.config import config_file
from dist_resnet.runtime.signals import COMPLETED, FAILED
from launch.executors import local, run_dir, slurm
from launch.executors.resources import Resources, check
from launch.jobs.task import WorkerTask
from launch.sweeps import agents, definition, dry_run
from launch.sweeps.search import of as search_of

Ended = Literal["complete", "failed", "interrupted", "queued", "told"]


def train_all(
    found: definition.Sweep, directory: Path, options: argparse.Namespace, overrides: Sequence[str]
) -> Ended:
    """Train what has not finished, or queue it. A run that fails does not keep the others from
    being trained."""
    runs = definition.runs(found, directory, options.count, options.seed, overrides)
    for _, config in runs:
        check(config, Resources.of(options, config.train.device).world_size)
    if options.dry_run:
        size = Resources.of(options, runs[0][1].train.device).world_size
        dry_run.tell_runs(runs, directory, size)
        return "told"
    new = [path for path, config in runs if run_dir.create(path, config)]
    open_ = [(path, config) for path, config in runs if not (path / "summary.json").exists()]
    print(f"sweep {found.name}: {len(runs)} runs in {directory}, {len(open_)} to train", flush=True)
    resources = Resources.of(options, runs[0][1].train.device)
    if resources.on_slurm and open_:
        tasks = [
            WorkerTask(
                str(path.resolve()),
                max_restarts=resources.cluster.max_restarts,
                max_faults=resources.cluster.max_faults,
            )
            for path, _ in open_
        ]
        where = resources.cluster
        jobs = slurm.submit(directory, tasks, where, resources.nodes, resources.workers, new)
        print(
            f"job array {slurm.arrays(jobs)} queued: {len(jobs)} runs\n  results so far: "
            f"dist-resnet compare {directory}\n"
            f"  cancel: scancel {slurm.arrays(jobs)}\n  resume: the same command"
        )
        return "queued"
    failed = []
    for path, config in open_:
        print(f"\n== {path}", flush=True)
        try:
            if (
                local.train(
                    path, Resources.of(options, config.train.device).workers, config.train.device
                )
                != COMPLETED
            ):
                print("the same command goes on with this sweep")
                return "interrupted"
        except (ValueError, RuntimeError) as error:
            print(f"this run failed: {error}", flush=True)
            failed.append(path)
    if failed:
        print(
            f"\n{len(failed)} of {len(runs)} runs failed: {', '.join(map(str, failed))}; the same "
            "command tries them again",
            flush=True,
        )
    return "failed" if failed else "complete"


def run_agents(
    found: definition.Sweep, directory: Path, options: argparse.Namespace, overrides: Sequence[str]
) -> Ended:
    """Make the sweep on W&B's server, and run its agents: here one after another, on SLURM as a job
    array."""
    base = config_file.load(found.config, [*found.fixed, *overrides])
    resources = Resources.of(options, base.train.device)
    check(base, resources.workers)
    workers = ["--workers-per-node", str(resources.workers)]
    name = agents.create(
        definition.for_wandb(found, directory, [*workers, *overrides]),
        directory,
        base.tracking.project,
        base.tracking.entity,
    )
    print(f"sweep {name}; its runs are kept in {directory}", flush=True)
    tasks = [
        agents.AgentTask(
            name,
            str(directory.resolve()),
            str(k),
            resources.workers,
            options.count,
            resources.cluster.max_restarts,
            resources.cluster.max_faults,
        )
        for k in range(options.agents)
    ]
    if resources.on_slurm:
        return _queue_agents(tasks, directory, resources)
    return "complete" if all(task() == COMPLETED for task in tasks) else "interrupted"


def run_search(
    found: definition.Sweep, directory: Path, options: argparse.Namespace, overrides: Sequence[str]
) -> Ended:
    """Search without a server. Its agents run side by side, here or as a job array; the same
    command joins more of them to those at work."""
    from launch.sweeps.heartbeat import Heartbeat
    from launch.sweeps.search_agent import SearchAgentTask, own_name, side_by_side  # optuna
    from launch.sweeps.study import Study

    search = search_of(found, directory, options, overrides)
    if options.dry_run:
        dry_run.tell_search(search)
        return "told"
    base = definition.configuration(found, {}, overrides)
    resources = Resources.of(options, base.train.device)
    search.fix()
    with Heartbeat(directory, own_name()) as heartbeat:
        study = Study(search, heartbeat)
        study.try_a_draw()
    print(f"search {found.name} in {directory}: ", end="")
    dry_run.tell_search(search)
    task = SearchAgentTask(search, resources.cluster.max_faults, resources.cluster.max_restarts)
    if resources.on_slurm:
        return _queue_agents([task] * options.agents, directory, resources)
    outcome = task() if options.agents == 1 else side_by_side(task, options.agents)
    if outcome != COMPLETED:
        print("the same command goes on with this search")
        return "failed" if outcome == FAILED else "interrupted"
    failed = [trial.name for trial in study.trials() if trial.state == "failed"]
    if failed:
        print(f"\ngiven up: {', '.join(failed)} (see their logs)", flush=True)
    return "failed" if failed else "complete"


def _queue_agents(tasks: Sequence[slurm.Task], directory: Path, resources: Resources) -> Ended:
    cpus = resources.cluster.cpus_per_task
    jobs = slurm.submit(
        directory,
        tasks,
        replace(resources.cluster, cpus_per_task=cpus and cpus * resources.workers),
        nodes=1,
        workers_per_node=1,
    )
    print(f"job {slurm.arrays(jobs)} queued: {len(jobs)} agents")
    return "queued"
