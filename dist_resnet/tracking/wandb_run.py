"""One Weights & Biases run, which can neither block nor end a training. The only importer of wandb.

Every call is guarded: the first failure turns W&B off and says so. metrics.jsonl and summary.json
have every figure."""

import contextlib
import netrc
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from dist_resnet.config import Tracking
from dist_resnet.runtime.signals import COMPLETED, FAILED, PAUSED, PREEMPTED, TERMINATED

EXIT_CODES = {COMPLETED: 0, FAILED: 1, PREEMPTED: 75, PAUSED: 75, TERMINATED: 143}
WANDB_LIMITS = {"init_timeout": 20, "finish_timeout": 20, "finish_timeout_raises": True}  # seconds
NO_FIGURES = ("step", "last_step", "hours_left")  # of a record of metrics.jsonl


@dataclass(frozen=True)
class Stored:
    """What RUN_DIR/wandb/ keeps of the run on W&B: its id, and its tags of ours."""

    id: str
    tags: tuple[str, ...]

    @classmethod
    def read(cls, run_dir: Path) -> "Stored":
        """With an empty id where there is none yet."""
        path = run_dir / "wandb" / "run_id"
        id, *tags = (path.read_text().splitlines() if path.exists() else []) or [""]
        return cls(id, tuple(tags))

    def write(self, run_dir: Path) -> None:
        path = run_dir / "wandb" / "run_id"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([self.id, *self.tags]) + "\n")


class WandbRun:
    """The W&B run of a RUN_DIR: the same one however often the training is started again.

    say: where to tell what is going on."""

    def __init__(self, run_dir: Path, say: Callable[[str], None]) -> None:
        self.run_dir, self.say = run_dir, say
        self._run: Any = None
        self.id = ""
        self.failed = False  # whether a call has

    def start(
        self,
        config: Tracking,
        full_config: dict[str, Any],
        tags: Sequence[str],
        wandb_id: str,
        records: Sequence[dict[str, Any]],
    ) -> None:
        """wandb_id: that of the checkpoint; '' for the one that a sweep's agent has given, or was
        stored, or a new one.
        records: those of metrics.jsonl, of which a killed process may not have sent the last."""
        stored = Stored.read(self.run_dir)
        self.id = wandb_id or os.environ.get("WANDB_RUN_ID") or stored.id or secrets.token_hex(4)
        try:
            Stored(self.id, tuple(tags)).write(self.run_dir)
        except OSError as error:  # a full disk, say, which may not be full for long
            self.say(f"warning: {self.run_dir / 'wandb'} could not be written ({error})")
        if config.wandb == "disabled":
            return
        mode = config.wandb
        if mode == "online" and not has_key():
            self.say(
                "W&B: no API key (WANDB_API_KEY, or `wandb login`), so this run is logged offline"
            )
            mode = "offline"
        for attempt in dict.fromkeys((mode, "offline")):
            try:
                self._run = self._init(config, full_config, tags, attempt, self.run_dir)
                break
            except Exception as error:  # whatever it is, the training goes on
                self.say(f"W&B: cannot start {attempt} ({_short(error)})")
                _end_helper()
        if self._run and attempt == "offline":
            self.say(f"W&B: offline; send it later with `dist-resnet sync {self.run_dir}`")
        elif self._run:
            self.replay(records)

    def open_to_sync(
        self, config: Tracking, full_config: dict[str, Any], stored: "Stored", aside: Path
    ) -> None:
        """Open it online, with time for a slow server, by another process than the training's.

        aside: a directory for the client's own files. Raises what wandb raises."""
        self.id = stored.id
        patient = {"init_timeout": 30, "finish_timeout": 3600}
        quiet = {"disable_git": True, "x_disable_stats": True}  # not of this machine
        self._run = self._init(
            config, full_config, stored.tags, "online", aside, **patient, **quiet
        )

    def replay(self, records: Sequence[dict[str, Any]]) -> int:
        """Log what the server lacks of the records; returns how many that were."""
        assert self._run is not None
        new = [record for record in records if record["step"] >= self._run.starting_step]
        for record in new:
            self.log(record["step"], figures_of(record))
        return len(new)

    def _init(
        self,
        config: Tracking,
        full_config: dict[str, Any],
        tags: Sequence[str],
        mode: str,
        directory: Path,
        **settings: Any,
    ) -> Any:
        wandb = _wandb()
        run = wandb.init(
            mode=mode,
            id=self.id,
            resume="allow" if mode == "online" else None,
            name=self.run_dir.name,
            project=config.project,
            entity=config.entity,
            group=config.group,
            job_type="train",
            tags=sorted({*tags, *config.tags}),
            config=full_config,
            dir=str(directory),
            settings=wandb.Settings(
                silent=True, console="off", **{"disable_git": False, **WANDB_LIMITS, **settings}
            ),
        )
        for metric in (
            "train/*",
            "test/*",
            "val/*",
            "lr",
            "epoch",
        ):  # W&B's own axis is the step; this adds the samples
            run.define_metric(metric, step_metric="samples")
        return run

    def log(self, step: int, figures: dict[str, float]) -> None:
        self._guarded(lambda run: run.log(figures, step=step))

    def finish(
        self,
        summary: dict[str, Any] | None,
        picture: Path | None,
        top_losses: Sequence[dict[str, Any]],
        artifact: Path | None,
        outcome: str,
    ) -> None:
        """The last words. top_losses: rows of a table, with uint8 (H, W, 3) under "image";
        artifact: a file to keep there. Pictures and tables that the run has are left as they
        are. outcome: one that is to go on is "preempted" on W&B, whose sweeps give it out again;
        only one that is complete has "finished"."""
        had: set[str] = set()
        if picture or top_losses:
            self._guarded(lambda run: had.update(run.summary.keys()))
        if summary:
            self._guarded(lambda run: run.summary.update(summary))
        if picture and "curves" not in had:
            self._guarded(lambda run: run.log({"curves": _wandb().Image(str(picture))}))
        if top_losses and "top_losses" not in had:
            self._guarded(lambda run: run.log({"top_losses": _table(top_losses)}))
        if artifact:
            self._guarded(
                lambda run: run.log_artifact(
                    str(artifact), name=f"checkpoint-{self.id}", type="model"
                )
            )
        if outcome in (PREEMPTED, PAUSED):
            self._guarded(lambda run: run.mark_preempting())  # with exit code 0 it would not count
        self._guarded(lambda run: run.finish(exit_code=EXIT_CODES[outcome]))
        self._run = None

    def _guarded(self, call: Callable[[Any], Any]) -> None:
        if self._run is None:
            return
        try:
            call(self._run)
        except Exception as error:  # its helper process may be gone, the server down, the disk full
            self._run, self.failed = None, True
            _end_helper()
            self.say(
                f"W&B: off from here on ({_short(error)}); it may lack what came last, "
                "metrics.jsonl has everything"
            )


def figures_of(record: dict[str, Any]) -> dict[str, float]:
    """What W&B gets of a record of metrics.jsonl."""
    return {k: v for k, v in record.items() if k not in NO_FIGURES and v is not None}


def _table(rows: Sequence[dict[str, Any]]) -> Any:
    import numpy as np

    wandb = _wandb()
    table = wandb.Table(columns=list(rows[0]))
    for row in rows:
        table.add_data(
            *(
                wandb.Image(value) if isinstance(value, np.ndarray) else value
                for value in row.values()
            )
        )
    return table


def _wandb() -> Any:
    import wandb  # takes half a second; only rank 0 and only where it is wanted

    return wandb


def _end_helper() -> None:
    """End wandb's helper process: it holds the id of a run that failed, and at exit it would be
    waited for."""
    with contextlib.suppress(Exception):
        _wandb().teardown()


def has_key() -> bool:
    """Whether wandb.init will find a key where it looks; without one it would ask for it on a
    terminal."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _short(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
