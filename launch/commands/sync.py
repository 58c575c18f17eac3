"""`dist-resnet sync`: runs to W&B, from where there is a network."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dist_resnet.reports import status
from dist_resnet.runtime import lock

WATCH_SECONDS = 60


def options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Send every run under the directories to W&B, or what it lacks of them: figures, "
        "configuration, result, pictures. Sent twice, nothing is there twice."
    )
    parser.add_argument(
        "directories",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="run directories, or what holds them, at whatever depth",
    )
    parser.add_argument(
        "--watch", action="store_true", help=f"again every {WATCH_SECONDS} s, until Ctrl-C"
    )


def sync(options: argparse.Namespace) -> int:
    from dist_resnet.tracking import wandb_sync

    wandb_sync.require_key()
    if not any(status.find(directory) for directory in options.directories):
        raise ValueError(
            f"no runs under {', '.join(map(str, options.directories))}: name other DIR"
        )
    code = _sync_all(options.directories, quiet=False)
    while options.watch:
        try:
            time.sleep(WATCH_SECONDS)
            code = _sync_all(options.directories, quiet=True)
        except KeyboardInterrupt:
            break
    return code


def _sync_all(directories: Sequence[Path], quiet: bool) -> int:
    """quiet: say nothing of runs of which there is nothing new. Returns the exit code."""
    from dist_resnet.tracking import wandb_sync

    run_dirs = list(dict.fromkeys(d for path in directories for d in status.find(path)))
    failed = 0
    for run_dir in run_dirs:
        try:
            told = wandb_sync.sync(run_dir, lock.is_held(run_dir), print)
        except (RuntimeError, ValueError, OSError) as error:
            failed += 1
            print(f"{run_dir}: {error}", file=sys.stderr, flush=True)
            continue
        if not quiet or "sent" in told:
            print(f"{run_dir}: {told}", flush=True)
    if failed:
        print(f"{failed} of {len(run_dirs)} runs could not be sent", file=sys.stderr, flush=True)
    return int(failed > 0)
