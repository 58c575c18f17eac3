"""`dist-resnet status`: where runs stand."""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dist_resnet.reports import status as reader
from dist_resnet.reports.status import STATES, Job, Status
from dist_resnet.tracking.time_left import duration
from launch.jobs import inert

COLOURS = {"running": "green", "failed": "red", "queued": "cyan", "requeued": "cyan"}
WATCH_SECONDS = 10
PIPED = 200  # columns, where nobody says how wide the reader's terminal is


def options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Where every run under the directories stands, also while it trains. SLURM's queue is "
        "asked once, where there is one."
    )
    parser.add_argument(
        "directories",
        type=Path,
        nargs="*",
        metavar="DIR",
        help="run directories, or what holds them, at whatever depth (default: runs)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    parser.add_argument(
        "--watch", action="store_true", help=f"show it again every {WATCH_SECONDS} s, until Ctrl-C"
    )


def status(options: argparse.Namespace) -> int:
    directories = options.directories or [Path("runs")]
    for directory in options.directories:
        if not directory.is_dir():
            raise ValueError(f"{directory} is no directory: name one that holds runs")
    if options.watch:
        with contextlib.suppress(KeyboardInterrupt):
            _watch(directories, options.json)
        return 0
    found, others = look(directories)
    if not found and not others and not options.directories:
        print(
            "[]" if options.json else "no runs yet: `dist-resnet train CONFIG` begins one in runs/"
        )
        return 0
    if not found and not others:
        raise ValueError(f"no runs under {', '.join(map(str, directories))}: name another DIR")
    _print(found, others, directories, options.json)
    return 0


def look(directories: Sequence[Path]) -> tuple[list[Status], list[Job]]:
    """Every run, those that run first; and queued jobs that belong to none of them."""
    run_dirs = list(dict.fromkeys(d for path in directories for d in reader.find(path)))
    jobs = queue()
    owned = _jobs_of(run_dirs, jobs or [])
    found = [reader.read(d, owned.get(d.resolve()), jobs is not None) for d in run_dirs]
    shown = {job.id for job in owned.values()}
    others = [job for job in jobs or [] if job.state == "PENDING" and job.id not in shown]
    return sorted(found, key=lambda s: (STATES.index(s.state), s.path)), others


def queue() -> list[Job] | None:
    """This user's jobs, the tasks of arrays each; None where no SLURM answers."""
    words = ["squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r|%j"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    rows = [line.split("|", 3) for line in done.stdout.splitlines()]
    return [Job(id, name, state, reason) for id, state, reason, name in rows]


def _jobs_of(run_dirs: Sequence[Path], jobs: Sequence[Job]) -> dict[Path, Job]:
    """The job of each run that has one: the task that submitit keeps under a job's id in the run's
    logs, or its sweep's, names the run."""
    folders = {folder / "logs" for d in run_dirs for folder in (d, d.parent)} if jobs else set()
    there = {folder for folder in folders if folder.is_dir()}
    owned = {}
    for job in jobs:
        for folder in there:
            path = folder / f"{job.id}_submitted.pkl"
            if path.exists() and (run_dir := _run_dir(path)):
                owned[run_dir] = job
    return owned


def _run_dir(path: Path) -> Path | None:
    """Which run a task is to train; None for an agent of a W&B sweep."""
    run_dir = getattr(getattr(inert.load(path), "function", None), "run_dir", None)
    return Path(run_dir).resolve() if isinstance(run_dir, str) else None


def _watch(directories: Sequence[Path], as_json: bool) -> None:
    if as_json or not sys.stdout.isatty():
        while True:
            _print(*look(directories), directories, as_json)
            time.sleep(WATCH_SECONDS)
    with Live(screen=True, auto_refresh=False) as live:
        while True:
            live.update(report(*look(directories), directories), refresh=True)
            time.sleep(WATCH_SECONDS)


def _print(
    found: Sequence[Status], others: Sequence[Job], directories: Sequence[Path], as_json: bool
) -> None:
    if as_json:
        print(json.dumps([one.as_json() for one in found]), flush=True)
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPED
    Console(width=width).print(report(found, others, directories))


def report(
    found: Sequence[Status], others: Sequence[Job], directories: Sequence[Path]
) -> RenderableType:
    """The table, and below it what does not fit into a cell."""
    count = Counter(one.state for one in found)
    title = ", ".join(f"{count[state]} {state}" for state in STATES if count[state])
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("run", overflow="fold")
    for name in ("state", "step", "left", "images/s", "top-1", "starts", "job"):
        numeric = name in ("step", "left", "images/s", "top-1", "starts")
        table.add_column(name, no_wrap=True, justify="right" if numeric else "left")
    base = directories[0] if len(directories) == 1 else None
    for one in found:
        table.add_row(*_cells(one, _name(one.path, base)))
    notes = [f"{_name(s.path, base)}: {s.state}, {s.reason}" for s in found if s.reason]
    notes += [
        f"job {job.id} ({job.name}): queued, {job.reason}; a batch script makes its run directory "
        "when it starts"
        for job in others
    ]
    return Group(table, *(Text(note) for note in notes))


def _name(path: Path, base: Path | None) -> str:
    return str(path.relative_to(base)) if base and path != base else str(path)


def _cells(one: Status, name: str) -> list[RenderableType]:
    def text(value: float | str | None, form: str = "{}") -> str:
        return "" if value is None else form.format(value)

    steps = text(one.step) + (f"/{one.last_step}" if one.last_step else "")
    left = None if one.hours_left is None or one.state == "complete" else one.hours_left
    return [
        name,
        Text(one.state, style=COLOURS.get(one.state, "")),
        steps,
        "" if left is None else duration(left),
        text(one.images_per_second, "{:,.0f}"),
        text(one.top1, "{:.2%}"),
        text(one.starts),
        text(one.job),
    ]
