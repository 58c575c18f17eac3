"""Tracker: console, metrics.jsonl and W&B. Rank 0 only.

metrics.jsonl is the source of truth: one JSON object a record, in the order of the steps. W&B gets
the same figures."""

import contextlib
import itertools
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dist_resnet.config import Tracking
from dist_resnet.runtime.signals import COMPLETED
from dist_resnet.tracking.time_left import LONG_TRAINING, TimeLeft, duration
from dist_resnet.tracking.wandb_run import WandbRun

SHOWN = {  # what the console shows of the figures, and how
    "train/loss": "train loss {:.4f}",
    "train/top1": "top-1 {:6.2%}",
    "lr": "lr {:.4g}",
    "epoch": "epoch {:.2f}",
    "images_per_second": "{:,.0f} images/s",
    "data_wait": "waiting {:.1%}",
    "test/loss": "test  loss {:.4f}",
    "test/top1": "top-1 {:6.2%}",
    "test/top5": "top-5 {:6.2%}",
    "val/loss": "val   loss {:.4f}",
    "val/top1": "top-1 {:6.2%}",
    "val/top5": "top-5 {:6.2%}",
}


class Tracker:
    """Writes on rank 0; on other ranks every call does nothing."""

    def __init__(self, run_dir: Path, total_steps: int, *, writes: bool) -> None:
        self.path, self.writes, self.total = run_dir / "metrics.jsonl", writes, total_steps
        self.run_dir, self.wandb = run_dir, WandbRun(run_dir, self.say)
        self._time_left = TimeLeft(total_steps)
        self._unwritten: list[str] = []  # what a full disk has refused so far
        self._bar = progress_bar(total_steps) if writes and sys.stdout.isatty() else None

    def start(
        self,
        config: Tracking,
        full_config: dict[str, Any],
        step: int,
        wandb_id: str,
        tags: Sequence[str] = (),
    ) -> None:
        """Open for a run that is at `step`: drop the records of steps that a lost process made
        after its checkpoint."""
        if not self.writes:
            return
        kept = self._kept(step)
        self.wandb.start(config, full_config, tags, wandb_id, kept)
        self._time_left.start(step)
        if self._bar:
            self._bar.start()

    def _kept(self, step: int) -> list[dict[str, Any]]:
        """The records up to a step; metrics.jsonl ends there. Records are in the order of their
        steps, so that the file is cut off, which a full disk allows."""
        kept, size = [], 0
        for line in self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []:
            record = _record(line)
            if record is None or record["step"] > step or not line.endswith(b"\n"):
                os.truncate(self.path, size)
                break
            kept.append(record)
            size += len(line)
        return kept

    def stepped(self, step: int) -> None:
        """After every step: once, and soon, how long all of them will take."""
        guess = self._time_left.first_guess(step) if self.writes else None
        if guess is None:
            return
        self.say(f"about {duration(guess)} for {self.total - step:,} steps, by the second one")
        if guess > LONG_TRAINING and step == 2:
            fewer = max(1, round(self.total * LONG_TRAINING / guess))
            self.say(
                f"  shorter: --schedule.steps {fewer} (and milestones in proportion) takes ten "
                "minutes; a GPU takes less for all"
            )

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Record the figures of a step, everywhere."""
        if not self.writes:
            return
        finite = {k: v if math.isfinite(v) else None for k, v in figures.items()}
        shown = "  ".join(
            SHOWN[key].format(value) for key, value in figures.items() if key in SHOWN
        )
        left: dict[str, float] = {}
        if "lr" in figures:  # of training, not of an evaluation
            left = {"last_step": self.total, "hours_left": self._time_left.hours(step)}
            shown += f"  {duration(left['hours_left'])} left"
        self._write(json.dumps({"step": step, **finite, **left}) + "\n")
        self.say(f"step {step:>{len(str(self.total))}}/{self.total}  {shown}")
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=step)
        self.wandb.log(step, figures)

    def _write(self, line: str) -> None:
        """Append to metrics.jsonl; what cannot be written now is written with a later line."""
        self._unwritten.append(line)
        whole = self.path.stat().st_size if self.path.exists() else 0
        try:
            with open(self.path, "a") as file:
                file.write("".join(self._unwritten))
            self._unwritten.clear()
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self.path, whole)  # no half lines
            self.say(
                f"warning: {self.path} could not be written ({error}); {len(self._unwritten)} "
                "records are kept for later"
            )

    def say(self, line: str) -> None:
        if not self.writes:
            return
        with contextlib.suppress(OSError):  # the log's disk may be full too
            if self._bar:
                self._bar.console.print(line)
            else:
                print(line, flush=True)

    def finish(
        self,
        summary: dict[str, Any] | None = None,
        picture: Path | None = None,
        top_losses: Sequence[dict[str, Any]] = (),
        artifact: Path | None = None,
        *,
        outcome: str = COMPLETED,
    ) -> None:
        """outcome: how this start ends, of runtime/signals.py."""
        if not self.writes:
            return
        if self._bar:
            self._bar.stop()
        if self._unwritten:
            self._write("")
        self.wandb.finish(summary, picture, top_losses, artifact, outcome)


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The records of a run, also of one in progress: a last line that is not whole is left out."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return list(itertools.takewhile(lambda record: record is not None, map(_record, lines)))


def _record(line: bytes) -> Any:
    """None for a line that was cut off when its writer died."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def progress_bar(total_steps: int) -> Progress:
    bar = Progress(TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar.add_task("training", total=total_steps)
    return bar
