"""Where runs stand, also while they write: read from the ends of their files, a millisecond or so a
run. No torch, no SLURM."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dist_resnet.runtime import lock
from dist_resnet.tracking import starts

STATES = ("running", "queued", "requeued", "failed", "stopped", "complete", "new")
TAIL = 2**16  # bytes of metrics.jsonl: some two hundred records
OWN = {"logs", "wandb", "checkpoints", "profile", "code"}  # directories that hold no runs
SILENCE = 600.0  # seconds without a record, after which a run that trains is spoken of


@dataclass(frozen=True)
class Job:
    """A job of the scheduler's queue. state and reason are SLURM's words."""

    id: str
    name: str
    state: str
    reason: str


@dataclass(frozen=True)
class Status:
    """One run. None: not known."""

    path: Path
    state: str  # of STATES
    reason: str = ""
    step: int | None = None
    last_step: int | None = None
    hours_left: float | None = None
    images_per_second: float | None = None
    starts: int | None = None
    evaluated_on: str | None = None
    top1: float | None = None  # of the last evaluation
    job: str | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"path": str(self.path)}


def find(directory: Path) -> list[Path]:
    """Every run directory in a directory, at whatever depth; itself, where it is one."""
    found = []
    for path, inside, names in os.walk(directory):
        if "config.yaml" in names:
            found.append(Path(path))
            inside.clear()
        inside[:] = sorted(name for name in inside if name not in OWN and name[0] != ".")
    return found


def read(run_dir: Path, job: Job | None, asked: bool) -> Status:
    """job: the run's own in the queue; asked: whether there is a queue, so that a missing job has
    ended."""
    made = starts.read(run_dir)
    number = len(made) or None
    done = _json(run_dir / "summary.json")
    if done is not None:
        return _complete(run_dir, done, number)
    training, evaluation = _last_records(run_dir / "metrics.jsonl")
    state, reason = _state(run_dir, job, asked, made, bool(training))
    split = next((k.split("/")[0] for k in evaluation if k.endswith("/top1")), None)
    running = state == "running"
    return Status(
        run_dir,
        state,
        reason,
        training.get("step", 0 if running else None),
        training.get("last_step"),
        training.get("hours_left"),
        training.get("images_per_second") if running else None,
        number,
        split,
        evaluation.get(f"{split}/top1"),
        job.id if job else made[-1].get("job") if made else None,
    )


def _complete(run_dir: Path, done: Mapping[str, Any], starts: int | None) -> Status:
    split = done["evaluated_on"]
    return Status(
        run_dir,
        "complete",
        step=done["steps"],
        last_step=done["steps"],
        images_per_second=done["images_per_second"],
        starts=starts,
        evaluated_on=split,
        top1=done[f"{split}_top1"],
    )


def _state(
    run_dir: Path, job: Job | None, asked: bool, made: list[dict[str, Any]], trained: bool
) -> tuple[str, str]:
    """(state, reason) of a run without a summary. made: its starts."""
    if job is not None and job.state == "PENDING":
        return "requeued" if trained or made else "queued", job.reason
    if job is not None or lock.is_held(run_dir):
        return "running", _silence(run_dir / "metrics.jsonl")
    last = made[-1] if made else {}
    outcome = last.get("outcome", "")
    if outcome.startswith("failed: "):
        return "failed", outcome.removeprefix("failed: ")
    if made and not outcome and (asked or not last.get("job")):
        return "failed", "ended without a word; the same command goes on"
    return ("stopped" if trained or made else "new"), outcome


def _silence(metrics: Path) -> str:
    age = time.time() - (_modified(metrics) or time.time())
    return f"no record for {age / 60:.0f} min" if age > SILENCE else ""


def _last_records(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The last record of training and the last of an evaluation, from the end of metrics.jsonl."""
    training: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    for record in _reversed_records(path):
        if "lr" in record:
            training = training or record
        elif any(key.endswith("/top1") for key in record):
            evaluation = evaluation or record
        if training and evaluation:
            break
    return training, evaluation


def _reversed_records(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            lines = file.read().split(b"\n")
    except OSError:
        return
    for line in reversed(lines if size <= TAIL else lines[1:]):
        try:
            yield json.loads(line)
        except ValueError:
            continue  # empty, or being written


def _json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
