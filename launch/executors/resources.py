"""Where a command is to run its workers."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from dist_resnet.config import Config, schedule
from dist_resnet.data import manifest
from launch.executors.cluster import Cluster, load


@dataclass(frozen=True)
class Resources:
    """Where workers are to run, from the command line."""

    on_slurm: bool
    cluster: Cluster
    nodes: int
    workers: int  # per node

    @classmethod
    def of(cls, options: argparse.Namespace, device: str) -> "Resources":
        from launch.executors import local  # submitit

        asked = options.workers_per_node
        if asked is not None and asked < 1:
            raise ValueError(f"--workers-per-node {asked}: must be at least 1")
        here = options.cluster in ("local", "debug")
        where = load(None if here or options.cluster == "slurm" else Path(options.cluster))
        if here and options.nodes != 1:
            raise ValueError(
                f"--nodes {options.nodes}: --cluster {options.cluster} has one node; use "
                "--workers-per-node, or --cluster slurm"
            )
        if not here:
            where = replace(where, code=options.code or where.code)
            return cls(True, where, options.nodes, asked or where.number_of_gpus or 1)
        if options.cluster == "debug":
            asked = 1
        workers = asked or local.default_workers(device)
        local.check(workers, device)
        return cls(False, where, 1, workers)

    @property
    def world_size(self) -> int:
        return self.nodes * self.workers


def add_resources(parser: argparse.ArgumentParser) -> None:
    """Where to run, for the commands that train."""
    parser.add_argument(
        "--cluster",
        default="local",
        help="local, debug (one worker, in this process), slurm, or a cluster FILE.yaml",
    )
    parser.add_argument("--nodes", type=int, default=1, help="nodes of a SLURM job")
    parser.add_argument(
        "--workers-per-node", type=int, help="on each node (default: one per GPU; on the CPU two)"
    )
    add_code(parser)


def add_code(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--code",
        choices=("pinned", "live"),
        help="SLURM: whether every start runs the code as it was at the first one, copied into "
        "RUN_DIR/code, or the checkout as it is then (default: pinned)",
    )


def check(config: Config, world_size: int) -> None:
    """What can be known to fail before any worker starts."""
    if world_size < 1:
        raise ValueError(
            f"--nodes and --workers-per-node make {world_size} workers: there must be at least 1"
        )
    directory = Path(config.data.dir)
    betons = manifest.load(directory, config.data.dataset)
    final = config.train.final_split
    for split in ("train", config.data.evaluate_on, *([final] if final else [])):
        manifest.verify(directory, betons, split, contents=False)
    schedule.plan(config, world_size, betons.splits["train"].samples)
