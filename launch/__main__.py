"""The command `dist-resnet`. Answers --help without importing torch."""

import sys
from collections.abc import Sequence
from importlib import import_module

from launch.commands import arguments

# module of launch.commands, and whether the command takes overrides (--section.key value)
COMMANDS = {
    "prepare": ("prepare", False),
    "train": ("train", True),
    "evaluate": ("evaluate", False),
    "compare": ("compare", False),
    "sweep": ("sweep", True),
    "repeat": ("repeat", True),
    "estimate": ("estimate", True),
    "stage": ("batch_script", True),
    "settle": ("batch_script", False),
}


def main(given: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if given is None else given)
    parser = arguments.parser()
    options, rest = parser.parse_known_args(words)
    module, takes_overrides = COMMANDS[options.command]
    if rest and not takes_overrides:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    try:
        command = getattr(import_module(f"launch.commands.{module}"), options.command)
        code = command(options, rest) if takes_overrides else command(options)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"dist-resnet {options.command}: error: {error}", file=sys.stderr)
        code = getattr(error, "exit_code", 1)
    sys.exit(code)


if __name__ == "__main__":
    main()
