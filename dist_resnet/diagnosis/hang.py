"""Where a training hangs: every rank's stacks in its log, and who waits for whom. No torch.

When neither a step nor a collective has been made for four fifths of train.timeout_s, each rank
writes its stacks and a note, before the process group's own timeout ends it. A rank that is
stopped, or whose node is gone, writes none, and that tells.

Collectives inside a CUDA graph are outside of the process group's timeout: a rank that waits in one
is ended from here."""

import contextlib
import faulthandler
import json
import os
import shutil
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from dist_resnet.runtime.distributed import World

FOLDER = "hang"  # in RUN_DIR: a note of each rank
PATIENCE = 0.8  # of train.timeout_s
STDERR = 2  # the descriptor, which works in any thread and state
PACKAGE = "dist_resnet"
BACKWARD = "forward_and_backward"  # of training/loop.py, where DDP's all-reduces are


class Stepping(Protocol):
    """What a training counts its steps in."""

    step: int


class Watchdog(contextlib.AbstractContextManager["Watchdog"]):
    """Looks from a thread of its own, some fifty times in train.timeout_s; the training pays
    nothing for it. Where a thread holds the interpreter, the C library's watchdog dumps the stacks
    all the same."""

    def __init__(self, run_dir: Path, world: "World", progress: Stepping, timeout_s: float) -> None:
        self.note, self.rank = run_dir / FOLDER / f"rank_{world.rank}.json", world.rank
        self.collectives, self.gpu = world.collectives, world.device.type == "cuda"
        self.progress, self.limit, self.timeout = progress, PATIENCE * timeout_s, timeout_s
        self._stop, self._main = threading.Event(), threading.main_thread().ident
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watchdog":
        if self.rank == 0:
            shutil.rmtree(self.note.parent, ignore_errors=True)  # an earlier start's
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        seen, told = None, False
        since = looked = time.monotonic()
        while not self._stop.wait(min(1.0, self.limit / 50)):
            before, now = looked, time.monotonic()
            looked = now
            state = (self.progress.step, self.collectives.number, self.collectives.name)
            was_stopped = now - before > self.limit / 2  # this whole process
            if state != seen or was_stopped:
                if told:
                    self.note.unlink(missing_ok=True)  # it goes on
                seen, since, told = state, now, False
                faulthandler.dump_traceback_later(self.limit + 5, file=STDERR)
            elif not told and now - since > self.limit:
                self._tell(now - since)
                told = True
            elif told and now - since > self.timeout and self._graphed():
                self._end(now - since)

    def _graphed(self) -> bool:
        """Whether the device is still at a step of a CUDA graph."""
        pending = self.collectives.pending
        return pending is not None and pending()

    def _end(self, seconds: float) -> None:
        print(
            f"rank {self.rank}: the GPU has not ended a step for {seconds:.0f} s "
            "(train.timeout_s): another rank does not come; this one ends too",
            file=sys.__stderr__,
            flush=True,
        )
        os._exit(1)

    def _tell(self, seconds: float) -> None:
        faulthandler.cancel_dump_traceback_later()
        frame = sys._current_frames().get(self._main or 0)
        note = {
            "rank": self.rank,
            "step": self.progress.step,
            "collective": self.collectives.last if self.gpu else self.collectives.name,
            "gpu": self.gpu,
            "number": self.collectives.number,
            "seconds": seconds,
            "where": _where(frame) if frame else "",
        }
        print(
            f"rank {self.rank}: no step and no collective for {seconds:.0f} s, after step "
            f"{self.progress.step}; where every thread is:",
            file=sys.__stderr__,
            flush=True,
        )
        faulthandler.dump_traceback(file=STDERR)
        with contextlib.suppress(OSError):
            self.note.parent.mkdir(exist_ok=True)
            self.note.write_text(json.dumps(note) + "\n")


def _where(frame: FrameType) -> str:
    """The innermost place in this project, as 'training/loop.py:120 update'."""
    for place in reversed(traceback.extract_stack(frame)):
        _, inside, name = place.filename.rpartition(f"/{PACKAGE}/")
        if inside and not name.startswith("runtime/"):
            return f"{name}:{place.lineno} {place.name}"
    return ""


def story(run_dir: Path, workers: int) -> str | None:
    """Who waited for whom, of a start that has ended; None where nothing has hung. Told once: what
    comes later did not end for that."""
    notes = {note["rank"]: note for note in _notes(run_dir) if note["rank"] < workers}
    shutil.rmtree(run_dir / FOLDER, ignore_errors=True)
    if not notes:
        return None
    last = max((note["step"], note["number"]) for note in notes.values())
    arrived = [rank for rank, n in notes.items() if (n["step"], n["number"]) == last and _waits(n)]
    missing = [rank for rank in range(workers) if rank not in arrived]
    example = notes[arrived[0]] if arrived else next(iter(notes.values()))
    seconds = max(note["seconds"] for note in notes.values())
    lines = [f"nothing moved for {seconds:.0f} s after step {example['step']}"]
    if arrived:
        lines.append(
            f"{_named(arrived)} waited {'for' if example['gpu'] else 'in'} {_collective(example)}"
        )
    for rank in missing[:8]:
        place = (
            f"at {notes[rank]['where'] or 'work outside of ours'}"
            if rank in notes
            else "which gave no sign"
        )
        lines.append(f"not arrived: rank {rank}, {place}")
    return "; ".join(lines)


def _waits(note: dict[str, Any]) -> bool:
    """On a GPU the host is past a collective when the device is in it: it waits further on."""
    return bool(note["collective"]) or note["where"].endswith(BACKWARD)


def _collective(note: dict[str, Any]) -> str:
    name = note["collective"] or "the all-reduce of the gradients"
    name = f"the GPU, whose last collective was {name}" if note["gpu"] else name
    return f"{name} (collective {note['number']}, {note['where']})"


def _named(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"rank{'s' * (len(ranks) > 1)} {shown}"


def _notes(run_dir: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted((run_dir / FOLDER).glob("rank_*.json")):
        with contextlib.suppress(ValueError):  # cut off
            found.append(json.loads(path.read_text()))
    return found
