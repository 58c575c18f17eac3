"""What a step is given, and the process that takes steps: rows are written at once, and the first
cause of a failure is told."""

import contextlib
import faulthandler
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEP = "step"  # the row that says how a step ended


@dataclass(frozen=True)
class Task:
    step: str
    out: Path  # what is brought back
    keep: Path  # stays on the machine: the betons and runs of both commands
    data: Path  # betons of CIFAR-10, where they are there
    shapes: Path  # betons of drawn shapes
    small: bool  # a rehearsal: everything as short as can be
    seconds: float  # that the whole command may take
    until: float  # by time.time(): when the step must have ended
    rows: tuple[Path, ...]  # the first is written to; the others are of commands before

    def row(self, **figures: Any) -> None:
        with open(self.rows[0], "a") as file:
            file.write(json.dumps({"step": self.step, **figures}) + "\n")
        print(self.step, json.dumps(figures), flush=True)

    def left(self) -> float:
        return self.until - time.time()

    def found(self, step: str) -> list[dict[str, Any]]:
        """What a step before this one has found, its end left out."""
        return [row for row in read(*self.rows) if row["step"] == step]

    def command(self, *words: object, expected: tuple[int, ...] = (0,)) -> None:
        """A command of Python's own modules; what it prints goes to the log."""
        shown = " ".join(map(str, words))
        print(f"$ python -m {shown}", flush=True)
        command, limit = [sys.executable, "-m", *map(str, words)], max(self.left() - 2, 1)
        try:
            done = subprocess.run(command, check=False, timeout=limit)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"python -m {words[0]}: its {limit:.0f} s were over") from None
        if done.returncode not in expected:
            raise RuntimeError(f"python -m {shown}: exit code {done.returncode}")

    def settings(self) -> list[str]:
        """Overrides for every training: what the first command has seen to fail is left out."""
        plain = ["--train.fast_paths", "off"]
        ways = {row["way"]: row for row in self.found("ways")}
        default = ways.get("ResNet-20")
        if default is None:
            return []
        if "error" in default:
            return plain
        refused = default["fast_paths"].get("cuda_graph", "used") != "used"
        return ["--train.cuda_graph", "false"] if refused else []


def read(*paths: Path) -> list[dict[str, Any]]:
    """All rows; a line that was cut off is left out."""
    found = []
    for path in paths:
        for line in path.read_text().splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found


def cause(error: BaseException) -> str:
    try:
        from dist_resnet.acceleration.fast_paths import first_cause
    except Exception:  # what has failed may be an import
        return f"{type(error).__name__}: {error}"
    return first_cause(error)


def serve() -> None:
    """Steps by their names, one a line of standard input; answers go to descriptor argv[1]: null,
    or the cause of a failure."""
    with open(int(sys.argv[1]), "w") as answers:
        for line in sys.stdin:
            asked = json.loads(line)
            module, name = asked.pop("work").split(":")
            paths = {key: Path(asked[key]) for key in ("out", "keep", "data", "shapes")}
            task = Task(**{**asked, **paths, "rows": tuple(map(Path, asked["rows"]))})
            failed = None
            faulthandler.dump_traceback_later(max(task.left() - 1, 1))  # where it hangs
            try:
                getattr(importlib.import_module(f"benchmarks.gpu.{module}"), name)(task)
            except BaseException as error:
                traceback.print_exc()
                failed = cause(error)
            faulthandler.cancel_dump_traceback_later()
            sys.stdout.flush()
            answers.write(json.dumps(failed) + "\n")
            answers.flush()


class Process:
    """One that takes steps, so that torch is imported once. After a failure it is another."""

    def __init__(self, log: Path, environment: dict[str, str]) -> None:
        self.log, self.environment = log, environment
        self.process: subprocess.Popen | None = None

    def take(self, request: dict[str, Any], limit: float) -> str | None:
        """None, or why the step has failed."""
        if self.process is None:
            self._start()
        assert self.process and self.process.stdin
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self._answer(limit)
        if answer is None:
            late = self.process.poll() is None
            code = self.close()
            return f"its {limit:.0f} s were over" if late else f"it died, exit code {code}"
        failed = json.loads(answer)
        if failed:
            self.close()
        return failed

    def close(self) -> int:
        """With all that it has started. Returns its exit code."""
        if self.process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        code, self.process = self.process.wait(), None
        return code

    def _start(self) -> None:
        ours, theirs = os.pipe()
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    "from benchmarks.gpu.task import serve; serve()",
                    str(theirs),
                ],
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[theirs],
                start_new_session=True,
                text=True,
            )
        os.close(theirs)
        self.answers = os.fdopen(ours)

    def _answer(self, limit: float) -> str | None:
        ready, _, _ = select.select([self.answers], [], [], limit)
        return (self.answers.readline() or None) if ready else None


@contextlib.contextmanager
def process(log: Path, environment: dict[str, str]) -> Iterator[Process]:
    taking = Process(log, environment)
    try:
        yield taking
    finally:
        taking.close()
