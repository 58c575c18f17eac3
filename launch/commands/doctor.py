"""`dist-resnet doctor`: an examination of a machine or of the nodes of a job, before a training."""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dist_resnet.config import config_file
from dist_resnet.diagnosis import findings
from dist_resnet.diagnosis.findings import BAD, SKIPPED, WARNING, Finding
from dist_resnet.runtime import terminal
from launch.executors.resources import Resources, add_resources

SAME = ("versions",)  # what all ranks must agree in
MINUTES = 15
STYLES = {"good": "green", "warning": "yellow", "bad": "bold red", "skipped": "dim"}
PIPED = 100  # columns, where nobody says how wide the reader's terminal is


def options(parser: argparse.ArgumentParser) -> None:
    parser.usage = "dist-resnet doctor [options] [--section.key value ...]"
    parser.description = (
        "Examine this machine, or with --cluster the nodes of a job: software, betons, disks, "
        "device, network. About two minutes. Ends with 1 where something must be mended."
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the training that is to run (default: every key's)",
    )
    add_resources(parser)
    parser.add_argument(
        "--run-dir",
        type=Path,
        default=Path("runs/doctor"),
        help="on the disk that trainings are to use; takes logs and link.json",
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")


def doctor(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    config = config_file.load(options.config, overrides)
    resources, directory = Resources.of(options, config.train.device), options.run_dir.resolve()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for old in (*directory.glob("rank_*.jsonl"), directory / "link.json"):
            old.unlink(missing_ok=True)
        config.save(directory / findings.CONFIG)
    except OSError as error:
        raise ValueError(
            f"cannot write to {directory} ({error}): give a --run-dir that you may write"
        ) from None
    try:
        with terminal.for_json(options.json):
            _run(directory, resources, config.train.device)
    except (ValueError, RuntimeError) as error:  # the findings say more
        print(str(error).splitlines()[0], file=sys.stderr)
    found = findings.together(directory, range(resources.world_size), SAME)
    if options.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in found]))
    else:
        _show(found, resources)
    if not options.json and (directory / "link.json").exists():
        print(f"for `dist-resnet estimate`: --link {options.run_dir / 'link.json'}")
    return int(any(finding.level == BAD for finding in found))


def _run(directory: Path, resources: Resources, device: str) -> None:
    from launch.executors import follow, local, slurm  # submitit
    from launch.jobs.doctor_task import DoctorTask

    if not resources.on_slurm:
        task = DoctorTask(str(directory), launcher=os.getpid())
        local.run(task, directory / "logs", resources.workers, device)
        return
    minutes = min(resources.cluster.time, MINUTES)
    lead = min(resources.cluster.signal_delay_s, 60 * minutes - 1)
    short = dataclasses.replace(resources.cluster, time=minutes, signal_delay_s=lead)
    cluster = dataclasses.replace(short, code="live")  # nothing of it is started again
    tasks = [DoctorTask(str(directory))]
    (job,) = slurm.submit(directory, tasks, cluster, resources.nodes, resources.workers)
    print(f"job {job} queued", flush=True)
    try:
        follow.follow(job, directory / "logs" / f"{job}_0_log.out")
    except BaseException:
        subprocess.run(["scancel", job])
        raise


def _show(found: Sequence[Finding], resources: Resources) -> None:
    """The table; what to do stands below what was seen."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPED
    where = f"{resources.nodes} nodes x " if resources.on_slurm else ""
    table = Table(title=f"{where}{resources.workers} workers", title_justify="left", box=None)
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found", overflow="fold")
    for finding in found:
        seen = Text(finding.figure, style="dim" if finding.level == SKIPPED else "")
        if finding.remedy:
            seen.append(f"\n-> {finding.remedy}", style="bold")
        table.add_row(finding.name, Text(finding.level, style=STYLES[finding.level]), seen)
    bad, doubtful = (sum(f.level == level for f in found) for level in (BAD, WARNING))
    verdict = f"{bad} to mend" if bad else "nothing to mend"
    table.caption = verdict + (f", {doubtful} to know" if doubtful else "")
    Console(width=width).print(table)
