"""The command `dist-resnet`. Answers --help without importing torch."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from dist_resnet import __version__
from dist_resnet.runtime import terminal


@dataclass(frozen=True)
class Command:
    """A file of launch/ with two functions: `options(parser)`, and one of the command's name."""

    module: str
    help: str
    overrides: bool = False  # whether it takes --section.key value
    for_scripts: bool = False  # and not for people

    def load(self) -> ModuleType:
        return import_module(f"launch.{self.module}")


COMMANDS = {
    "prepare": Command("commands.prepare", "write the betons of a data set"),
    "train": Command("commands.train", "train, or go on with a training", overrides=True),
    "sweep": Command(
        "commands.sweep",
        "train the runs of a sweep, or those that have not finished",
        overrides=True,
    ),
    "repeat": Command(
        "commands.repeat",
        "train with several seeds; mean and spread of accuracy and time",
        overrides=True,
    ),
    "evaluate": Command("commands.evaluate", "evaluate a checkpoint of a run"),
    "export": Command("commands.export", "write a run's weights as safetensors, torch or ONNX"),
    "predict": Command("commands.predict", "class and probability of images"),
    "doctor": Command(
        "commands.doctor",
        "examine this machine, or the nodes of a cluster, before a training",
        overrides=True,
    ),
    "status": Command("inspection.status", "where runs stand: queued, running, failed, complete"),
    "sync": Command("commands.sync", "send runs to W&B, or what it lacks of them"),
    "compare": Command("inspection.compare", "tables and figures of several runs, or of a sweep"),
    "estimate": Command(
        "inspection.estimate",
        "estimate times on a cluster from steps measured on one worker",
        overrides=True,
    ),
    "describe": Command(
        "inspection.describe",
        "layers of a network: shapes, parameters, multiply-adds, memory",
        overrides=True,
    ),
    "stage": Command(
        "commands.stage", "before their srun: make RUN_DIR", overrides=True, for_scripts=True
    ),
    "settle": Command("commands.settle", "after their srun: who failed and why", for_scripts=True),
}


def main(given: Sequence[str] | None = None) -> None:
    with terminal.outlived():
        run(given)


def run(given: Sequence[str] | None) -> None:
    words = list(sys.argv[1:] if given is None else given)
    name = _root().parse_args(words[:1]).command
    command, parser = COMMANDS[name], parser_of(name)
    options, rest = parser.parse_known_args(words[1:])
    if rest and not command.overrides:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    try:
        function = getattr(command.load(), name)
        code = function(options, rest) if command.overrides else function(options)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"dist-resnet {name}: error: {error}", file=sys.stderr)
        code = getattr(error, "exit_code", 1)
    sys.exit(code)


def parser_of(name: str) -> argparse.ArgumentParser:
    """Of a command's own options; what it leaves over are overrides, where the command takes
    them."""
    parser = argparse.ArgumentParser(f"dist-resnet {name}", allow_abbrev=False)
    COMMANDS[name].load().options(parser)
    for action in parser._actions:
        if action.nargs != 0 and action.default not in (None, [], argparse.SUPPRESS):
            action.help = f"{action.help or ''} (default: %(default)s)".lstrip()
    return parser


def _root() -> argparse.ArgumentParser:
    for_people = {name: c for name, c in COMMANDS.items() if not c.for_scripts}
    listed = "\n".join(f"  {name:<12}{command.help}" for name, command in for_people.items())
    root = argparse.ArgumentParser(
        "dist-resnet",
        usage="dist-resnet COMMAND ...",
        description="Train ResNets on one machine or on a SLURM cluster.",
        epilog=f"commands (each answers --help):\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    root.add_argument("--version", action="version", version=f"dist-resnet {__version__}")
    root.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="see below")
    return root


if __name__ == "__main__":
    main()
