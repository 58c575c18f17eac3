"""Tracker: console, metrics.jsonl and W&B. Rank 0 only; the only importer of wandb.

metrics.jsonl is the source of truth: one JSON object a record, in the order of the steps. W&B gets the same figures
and can neither block nor end a training: every call to it is guarded, the first failure turns it off.
"""

import contextlib
import json
import math
import netrc
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dist_resnet.config import Tracking

SHOWN = {  # what the console shows of the figures, and how
    "train/loss": "train loss {:.4f}", "train/top1": "top-1 {:6.2%}", "lr": "lr {:.4g}", "epoch": "epoch {:.2f}",
    "images_per_second": "{:,.0f} images/s", "data_wait": "waiting {:.1%}",
    "test/loss": "test  loss {:.4f}", "test/top1": "top-1 {:6.2%}", "test/top5": "top-5 {:6.2%}",
}
WANDB_SECONDS = {"init_timeout": 20, "finish_timeout": 20}


class Tracker:
    """Writes on rank 0; on other ranks every call does nothing."""

    def __init__(self, run_dir: Path, total_steps: int, *, writes: bool) -> None:
        self.path, self.writes, self.total = run_dir / "metrics.jsonl", writes, total_steps
        self.run_dir, self.wandb_id = run_dir, ""
        self._unwritten: list[str] = []  # what a full disk has refused so far
        self._run, self._bar = None, progress_bar(total_steps) if writes and sys.stdout.isatty() else None

    def start(self, config: Tracking, full_config: dict[str, Any], step: int, wandb_id: str) -> None:
        """Open for a run that is at `step`: drop the records of steps that a lost process made after its checkpoint."""
        if not self.writes:
            return
        if self.path.exists():
            kept = [json.dumps(record) + "\n" for record in read_metrics(self.run_dir) if record["step"] <= step]
            aside = self.path.with_suffix(".partial")
            aside.write_text("".join(kept))
            os.replace(aside, self.path)
        stored = self.run_dir / "wandb" / "run_id"
        self.wandb_id = wandb_id or (stored.read_text().strip() if stored.exists() else secrets.token_hex(4))
        stored.parent.mkdir(parents=True, exist_ok=True)
        stored.write_text(self.wandb_id + "\n")
        self._open_wandb(config, full_config)
        if self._bar:
            self._bar.start()

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Record the figures of a step, everywhere."""
        if not self.writes:
            return
        record = {"step": step, **{k: v if math.isfinite(v) else None for k, v in figures.items()}}
        self._write(json.dumps(record) + "\n")
        shown = "  ".join(SHOWN[key].format(value) for key, value in figures.items() if key in SHOWN)
        self.say(f"step {step:>{len(str(self.total))}}/{self.total}  {shown}")
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=step)
        self._guarded(lambda run: run.log(figures, step=step))

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
            self.say(f"warning: {self.path} could not be written ({error}); {len(self._unwritten)} records are kept for later")

    def say(self, line: str) -> None:
        if not self.writes:
            return
        with contextlib.suppress(OSError):  # the log's disk may be full too
            (self._bar.console.print if self._bar else print)(line, **({} if self._bar else {"flush": True}))

    def finish(self, summary: dict[str, Any] | None = None, picture: Path | None = None) -> None:
        if not self.writes:
            return
        if self._bar:
            self._bar.stop()
        if self._unwritten:
            self._write("")
        if summary:
            self._guarded(lambda run: run.summary.update(summary))
        if picture:
            self._guarded(lambda run: run.log({"curves": _wandb().Image(str(picture))}))
        self._guarded(lambda run: run.finish())
        self._run = None

    def _open_wandb(self, config: Tracking, full_config: dict[str, Any]) -> None:
        if config.wandb == "disabled":
            return
        mode = config.wandb
        if mode == "online" and not _has_key():
            self.say("W&B: no API key (WANDB_API_KEY, or `wandb login`), so this run is logged offline")
            mode = "offline"
        for attempt in dict.fromkeys((mode, "offline")):
            try:
                self._run = self._init_wandb(config, full_config, attempt)
                break
            except Exception as error:  # whatever it is, the training goes on
                self.say(f"W&B: cannot start {attempt} ({_short(error)})")
                _end_helper()
        if self._run and (attempt == "offline"):
            self.say(f"W&B: offline; send it later with `wandb sync {self._run.settings.sync_dir}`")

    def _init_wandb(self, config: Tracking, full_config: dict[str, Any], mode: str) -> Any:
        wandb = _wandb()
        return wandb.init(
            mode=mode, id=self.wandb_id, resume="allow" if mode == "online" else None, name=self.run_dir.name,
            project=config.project, entity=config.entity, tags=list(config.tags), config=full_config, dir=str(self.run_dir),
            settings=wandb.Settings(silent=True, console="off", disable_git=False, **WANDB_SECONDS))

    def _guarded(self, call: Callable[[Any], Any]) -> None:
        if self._run is None:
            return
        try:
            call(self._run)
        except Exception as error:  # its helper process may be gone, the server down, the disk full
            self._run = None
            _end_helper()
            self.say(f"W&B: off from here on ({_short(error)}); metrics.jsonl has everything")


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The records of a run, also of one in progress: a last line that is not whole is left out."""
    path = run_dir / "metrics.jsonl"
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break  # cut off when its writer died
    return records


def progress_bar(total_steps: int) -> Progress:
    bar = Progress(TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar.add_task("training", total=total_steps)
    return bar


def _wandb() -> Any:
    import wandb  # takes half a second; only rank 0 and only where it is wanted

    return wandb


def _end_helper() -> None:
    """End wandb's helper process: it holds the id of a run that failed, and at exit it would be waited for."""
    with contextlib.suppress(Exception):
        _wandb().teardown()


def _has_key() -> bool:
    """Whether wandb.init will find a key where it looks; without one it would ask for it on a terminal."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _short(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
