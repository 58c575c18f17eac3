"""`dist-resnet settle`: for batch scripts, after their srun."""

import argparse
from pathlib import Path


def options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "For batch scripts, after their srun: say who failed and why. Ends with 75 where the job "
        "should be requeued."
    )
    parser.add_argument("folder", type=Path, help="what `stage` printed")


def settle(options: argparse.Namespace) -> int:
    """Say who failed and why. Ends with 75 where the job should be requeued."""
    from launch.executors import settle  # submitit

    return settle.settle(options.folder)
