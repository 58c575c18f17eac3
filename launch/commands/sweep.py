"""`dist-resnet sweep`: the runs of a sweep, or a search, here or on a cluster, without a server or
with W&B's."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from launch.executors.resources import add_resources
from launch.inspection.compare import report
from launch.sweeps import definition

EXIT_CODES = {"complete": 0, "failed": 1, "interrupted": 130, "queued": 0, "told": 0}


def options(parser: argparse.ArgumentParser) -> None:
    parser.usage = "dist-resnet sweep FILE [options] [--section.key value ...]"
    parser.description = (
        "FILE is in W&B's sweep format. Without --search and --wandb its grid or random draws are "
        "expanded here."
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="such as configs/sweeps/batch.yaml")
    add_resources(parser)
    parser.add_argument(
        "--sweep-dir",
        type=Path,
        help="where its runs are kept, a run directory each (default: runs/FILE)",
    )
    parser.add_argument(
        "--count", type=int, help="so many runs at most; with --wandb, of each agent"
    )
    parser.add_argument("--seed", type=int, default=0, help="of draws made here")
    parser.add_argument(
        "--search",
        choices=("file", "asha", "tpe", "random"),
        help="search without a server: as FILE says (bayes: TPE, hyperband: ASHA); asha: by rungs, "
        "also where FILE has no early_terminate; tpe, random: every trial in full",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="list the runs, or the rungs of a search, with an estimate of hours; do nothing",
    )
    parser.add_argument(
        "--wandb",
        action="store_true",
        help="make the sweep on W&B's server, which chooses the runs, and start agents",
    )
    parser.add_argument(
        "--agents",
        type=int,
        default=1,
        help="with --search or --wandb: agents, side by side (with --wandb on a cluster only)",
    )


def sweep(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from launch.sweeps import runner  # submitit

    _refuse_unread(options)
    found = definition.load(options.file)
    directory = options.sweep_dir or Path("runs") / found.name
    train = runner.run_agents if options.wandb else runner.train_all
    if options.search:
        train = runner.run_search
    ended = train(found, directory, options, overrides)
    if ended in ("complete", "failed"):
        report([directory], directory / "compare.png", directory / "compare.html")
    return EXIT_CODES[ended]


def _refuse_unread(options: argparse.Namespace) -> None:
    """Raises ValueError for options that do not go with the others."""
    if options.wandb and options.search:
        raise ValueError("--search and --wandb: who searches? Leave one of them out")
    mode = "--wandb" if options.wandb else "--search" if options.search else ""
    unread = {
        "--nodes": options.nodes != 1 and mode,
        "--seed": options.seed != 0 and mode == "--wandb",
        "--agents": options.agents != 1 and not mode,
        "--dry-run": options.dry_run and mode == "--wandb",
    }
    given = [flag for flag, is_unread in unread.items() if is_unread]
    if given:
        with_ = f"with {mode}" if mode else "without --search or --wandb"
        raise ValueError(f"{', '.join(given)} is not read {with_}: leave it out")
