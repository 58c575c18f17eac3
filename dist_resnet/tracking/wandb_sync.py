"""Sends a run to W&B from its own files, under the id that it has: only what is not there yet.

The fragments that offline starts leave in RUN_DIR/wandb/ are not read: a start that was killed
leaves one cut off, and two of them overlap where a training went back to its checkpoint.
metrics.jsonl has every step once."""

import contextlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dist_resnet.config import Config, config_file
from dist_resnet.runtime.signals import COMPLETED, FAILED, PREEMPTED
from dist_resnet.tracking import image_rows, starts
from dist_resnet.tracking.tracker import read_metrics
from dist_resnet.tracking.wandb_run import EXIT_CODES, Stored, WandbRun, has_key

NOTE = "synced.json"  # in RUN_DIR/wandb: what was sent, so that a server need not be asked


def require_key() -> None:
    if not has_key():
        raise RuntimeError("no API key for W&B: set WANDB_API_KEY, or run `wandb login`")


def sync(run_dir: Path, in_use: bool, say: Callable[[str], None]) -> str:
    """Returns in a few words what was done. Raises RuntimeError where W&B does not take it.

    in_use: whether a training is writing it."""
    config, stored = config_file.load(run_dir / "config.yaml"), Stored.read(run_dir)
    if config.tracking.wandb == "disabled":
        return "tracking.wandb is disabled"
    if not stored.id:
        return "not started yet"
    if in_use and config.tracking.wandb == "online":
        return "sends itself while it trains"
    content = _content(run_dir)
    note = run_dir / "wandb" / NOTE
    if note.exists() and json.loads(note.read_text()) == _mark(content):
        return "nothing new"
    sent = _send(run_dir, config, stored, content, in_use, say)
    with contextlib.suppress(OSError):  # next time the server says what it has
        note.write_text(json.dumps(_mark(content)) + "\n")
    return f"{sent} records sent" + (", complete" if content["summary"] else "")


def _content(run_dir: Path) -> dict[str, Any]:
    """What there is to send. Of a run that is not complete, the last step is kept back: figures of
    an evaluation may still come to it, and W&B takes a step once."""
    path = run_dir / "summary.json"
    summary = json.loads(path.read_text()) if path.exists() else None
    records = read_metrics(run_dir)
    if summary is None and records:
        records = [record for record in records if record["step"] < records[-1]["step"]]
    return {"summary": summary, "records": records}


def _mark(content: dict[str, Any]) -> dict[str, Any]:
    records = content["records"]
    return {"step": records[-1]["step"] if records else None, "complete": bool(content["summary"])}


def _send(
    run_dir: Path,
    config: Config,
    stored: Stored,
    content: dict[str, Any],
    in_use: bool,
    say: Callable[[str], None],
) -> int:
    run, summary = WandbRun(run_dir, say), content["summary"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as aside:
        try:
            run.open_to_sync(config.tracking, config.to_dict(), stored, Path(aside))
        except Exception as error:  # of wandb's many kinds
            text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise RuntimeError(f"W&B does not take it ({text})") from None
        sent = run.replay(content["records"])
        if summary:
            picture, rows = run_dir / "curves.png", image_rows.read(run_dir)
            artifact = _last_checkpoint(run_dir) if config.tracking.artifact else None
            run.finish(summary, picture if picture.exists() else None, rows, artifact, COMPLETED)
        else:
            run.finish(None, None, [], None, PREEMPTED if in_use else _last_outcome(run_dir))
    if run.failed:
        raise RuntimeError("W&B has not taken everything: the same command goes on")
    return sent


def _last_outcome(run_dir: Path) -> str:
    """Of a run that is not complete."""
    said = [start.get("outcome", FAILED) for start in starts.read(run_dir)] or [FAILED]
    outcome = said[-1].partition(":")[0]
    return outcome if outcome in EXIT_CODES and outcome != COMPLETED else FAILED


def _last_checkpoint(run_dir: Path) -> Path | None:
    pointer = run_dir / "checkpoints" / "LATEST"
    return pointer.with_name(pointer.read_text().strip()) if pointer.exists() else None
