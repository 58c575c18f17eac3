"""How a job's workers ended, read from what submitit left in its folder: who failed first, and
why."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from submitit.core.utils import JobPaths

from launch.jobs import inert

CRASH_CHARACTERS = 100_000  # of a log's end


@dataclass(frozen=True)
class Failure:
    """The worker that failed first. `exception` is its traceback; None where it ended without a
    word, or hung."""

    rank: int
    exception: str | None
    log: Path

    def tell(self, where: str = "", hang: str | None = None) -> str:
        """What the user reads: one line for a mistake of theirs, else everything that is known.

        hang: who waited for whom, where something has hung."""
        worker = f"the worker of rank {self.rank}{where}"
        if self.exception is None:
            why = hang or _crash(self.log) or "killed by a signal, or out of memory"
            return (
                f"{worker} ended without a word: {why}. The same command goes on from the last "
                f"checkpoint\nits log: {self.log}"
            )
        mistake = self.mistake()
        return (
            f"{mistake} ({worker}; its log: {self.log})"
            if mistake
            else f"{worker} failed:\n{self.exception.rstrip()}\nits log: {self.log}"
        )

    def mistake(self) -> str | None:
        """The message, where the exception is a ValueError: the user's to mend."""
        last = (self.exception or "").strip().rpartition("Traceback (most recent call last):")[2]
        found = re.search(r"^ValueError: (.*)\Z", last, re.MULTILINE | re.DOTALL)
        return found[1] if found else None


def first_failure(folder: Path, job_id: str, workers: int) -> Failure | None:
    """None where every worker has returned.

    Workers that lost a companion raise too: such errors are nobody's own."""
    results = {
        rank: _result(JobPaths(folder, job_id, rank).result_pickle) for rank in range(workers)
    }
    errors = sorted(
        (when, rank, text) for rank, (when, kind, text) in results.items() if kind == "error"
    )
    silent = [rank for rank, (_, kind, _) in results.items() if kind is None]
    causes = [(rank, text) for _, rank, text in errors if not _of_connection(text)]
    if causes:
        rank, text = causes[0]
    elif silent or errors:
        rank, text = (
            silent[0] if silent else errors[-1][1],
            None,
        )  # one that hung learns last that the others have gone
    else:
        return None
    return Failure(rank, text, JobPaths(folder, job_id, rank).stdout)


def outcome(folder: Path, job_id: str) -> str:
    """What rank 0's task returned. Asked only where there is no failure."""
    return _result(JobPaths(folder, job_id, 0).result_pickle)[2]


def _crash(log: Path) -> str | None:
    """What faulthandler has written of a worker that has ended by a signal of its own making:
    SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL."""
    try:
        text = log.read_text(errors="replace")[-CRASH_CHARACTERS:]
    except OSError:
        return None
    found = re.findall(r"^Fatal Python error: (.+)$", text, re.MULTILINE)
    if not found:
        return None
    remedy = ""
    if os.environ.get("TORCH_DISTRIBUTED_DEBUG", "OFF").upper() != "OFF":
        remedy = (
            "; TORCH_DISTRIBUTED_DEBUG is set, with which torch's DDP can crash on gloo: unset it"
        )
    return f"{found[-1]} (its stacks are in its log){remedy}"


def _of_connection(traceback: str) -> bool:
    """Whether an error is what gloo or NCCL say of a companion that has gone, and not what a file
    system or a data loader says."""
    last = traceback.strip().splitlines()[-1]
    return not re.match(r"OSError|TimeoutError", last) and bool(
        re.search(
            r"connection (closed|reset|refused)|broken pipe|timed out|\btimeout\b|NCCL"
            r"|remote (process|worker)",
            last,
            re.IGNORECASE,
        )
    )


def _result(path: Path) -> tuple[float, str | None, str]:
    """(when, 'success' or 'error' or None, outcome or traceback) of a worker."""
    found = inert.load(path)
    if not isinstance(found, tuple) or len(found) != 2:
        return 0.0, None, ""
    return path.stat().st_mtime, *found
