"""`dist-resnet sweep`: the runs of a sweep, here or on a cluster, without a server or with
W&B's."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from launch.commands import arguments
from launch.commands.compare import compare
from launch.sweeps import definition, runner

EXIT_CODES = {"complete": 0, "failed": 1, "interrupted": 130, "queued": 0}


def sweep(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    unread = (
        {"--nodes": options.nodes != 1, "--seed": options.seed != 0}
        if options.wandb
        else {"--agents": options.agents != 1}
    )
    given = [flag for flag, is_given in unread.items() if is_given]
    if given:
        mode = "with" if options.wandb else "without"
        raise ValueError(f"{', '.join(given)} is not read {mode} --wandb: leave it out")
    found = definition.load(options.file)
    directory = options.sweep_dir or Path("runs") / found.name
    train = runner.run_agents if options.wandb else runner.train_all
    ended = train(found, directory, options, overrides)
    if ended in ("complete", "failed"):
        figure, page = directory / "compare.png", directory / "compare.html"
        words = ["compare", str(directory), "--figure", str(figure), "--html", str(page)]
        compare(arguments.parser().parse_args(words))
    return EXIT_CODES[ended]
