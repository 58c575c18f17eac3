"""RUN_DIR/starts.jsonl: every start of a run: when, where, with which code, and how it ended.

Append-only, a JSON object a line: one when a start begins, one when it ends, and perhaps one by
whoever watched it and knows better. Lines of one number are one record; later ones win."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from dist_resnet.runtime.slurm_job import job_id, restarts

FILE = "starts.jsonl"
PACKAGES = ("dist-resnet", "torch", "ffcv", "numpy", "wandb")
SOURCE = Path(__file__).parents[2]  # holds the packages dist_resnet and launch
COMMIT = "COMMIT"  # in SOURCE, where that is a copy of a checkout


class Start:
    """This start of a run. Writes on rank 0; on other ranks every call does nothing.

    Raises nothing where the file cannot be written: the training is worth more than its record."""

    def __init__(self, run_dir: Path, *, writes: bool) -> None:
        self.run_dir, self.writes, self.number = run_dir, writes, 0

    def begin(
        self,
        nodes: Sequence[str],
        world_size: int,
        device: str,
        from_step: int,
        betons: str,
        changed: Mapping[str, tuple[Any, Any]],
    ) -> None:
        """betons: their digest. changed: the settings that another start had as others, key ->
        (before, now)."""
        if not self.writes:
            return
        self.number = len(read(self.run_dir))
        _append(
            self.run_dir,
            {
                "start": self.number,
                "began": psutil.Process().create_time(),
                "job": job_id(),
                "restart": restarts(),
                "nodes": sorted(set(nodes)),
                "world_size": world_size,
                "device": device,
                "commit": commit(),
                "versions": versions(),
                "from_step": from_step,
                "betons": betons,
                "changed": changed,
            },
        )

    def end(self, outcome: str, step: int) -> None:
        """outcome: 'completed', 'preempted', 'terminated' or 'failed: ...'."""
        if self.writes:
            line = {"start": self.number, "ended": time.time(), "step": step, "outcome": outcome}
            _append(self.run_dir, line)

    def fail(self, error: BaseException, step: int) -> None:
        self.end(failed(f"{type(error).__name__}: {error}"), step)


def read(run_dir: Path) -> list[dict[str, Any]]:
    """The records of a run's starts, the earliest first, also while it runs. A start that has not
    ended, or ended without a word and unseen, has no 'outcome'. A line that is not whole is left
    out."""
    records: dict[int, dict[str, Any]] = {}
    try:
        texts = (run_dir / FILE).read_text(errors="replace").splitlines()
    except OSError:
        texts = []  # none yet
    for text in texts:
        try:
            line = json.loads(text)
            records.setdefault(line["start"], {}).update(line)
        except (ValueError, TypeError, KeyError):
            continue  # cut off when its writer died
    return [records[number] for number in sorted(records)]


def settle(run_dir: Path, why: str) -> None:
    """By a batch script, for this start of its job: it failed, and why. Also of one that failed
    before it could begin its record."""
    records = read(run_dir)
    ours = [r for r in records if (r.get("job"), r.get("restart")) == (job_id(), restarts())]
    now = time.time()
    began = {
        "start": len(records),
        "began": float(os.environ.get("SLURM_JOB_START_TIME", now)),
        "job": job_id(),
        "restart": restarts(),
    }
    known = {"start": ours[-1]["start"]} if ours else began
    _append(run_dir, {**known, "ended": now, "outcome": failed(why)})


def failed(why: str) -> str:
    """An outcome, in one line."""
    return "failed: " + why.strip().partition("\n")[0][:300]


def versions() -> dict[str, str | None]:
    """None for what can be imported and was not installed, as by PYTHONPATH, or is not there."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def commit() -> str | None:
    """The commit of the code that runs, with '+' where files differ from it, or '?' where there is
    no git to ask for that, as in a container; None where it is not known."""
    if (SOURCE / COMMIT).exists():
        return (SOURCE / COMMIT).read_text().strip() or None

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=SOURCE, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except FileNotFoundError:
        return _head(SOURCE / ".git")
    except (OSError, subprocess.CalledProcessError):
        return None


def _head(folder: Path) -> str | None:
    try:
        head = (folder / "HEAD").read_text().strip()
        name = head.removeprefix("ref: ")
        return (head if name == head else (folder / name).read_text().strip()) + "?"
    except OSError:
        return None


def _append(run_dir: Path, line: dict[str, Any]) -> None:
    """In one write, after the end of a line that was cut off."""
    text = json.dumps(line) + "\n"
    try:
        with open(run_dir / FILE, "a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                text = text if file.read(1) == b"\n" else "\n" + text
            file.write(text.encode())
    except OSError as error:
        print(f"warning: {run_dir / FILE} could not be written ({error})", flush=True)
