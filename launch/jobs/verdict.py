"""How a job's workers ended, read from what submitit left in its folder: who failed first, why, and
whose fault it is.

whose        seen by                                            and then
user         an exception that would come again                 ends
node         an exception that comes from a device or a disk    another start, as of a fault
network      ranks that could not reach each other              another start, as of a fault
unknown      no word: killed, out of memory, or it has hung     another start, as of a fault
scheduler    no worker was ever started                         ends
"""

import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from submitit.core.utils import JobPaths

from launch.jobs import inert

Whose = Literal["user", "node", "network", "unknown", "scheduler"]
TAIL = 2**16  # bytes of a log that are searched for last words
BEGIN = "Starting with JobEnvironment"  # submitit's first line of every start in a log

# Peers have gone: the cause is elsewhere. Peers cannot be reached: that is the cause, where no
# other is known.
GONE = r"connection (closed|reset)|closed by (peer|remote)|broken pipe|remote (process|worker)"
UNREACHABLE = (
    r"timed out|\btimeout\b|connection refused|no route to host|network is unreachable|NCCL"
    r"|unable to find address|failed to connect|name or service not known"
)
OF_THE_NODE = (
    r"uncorrectable ECC|unspecified launch failure|\bXid\b|fallen off the bus|hardware stack"
    r"|CUDA-capable device\(s\) is/are busy|CUDNN_STATUS_EXECUTION_FAILED|input/output error"
    r"|no space left on device|stale file handle|transport endpoint|read-only file system"
    r"|remote I/O error|disk quota exceeded|cannot allocate memory"
)
FATAL = "Fatal Python error: "
LAST_WORDS = (
    rf"NCCL (error|WARN)|Watchdog caught|failed to connect|CUDA error|oom[-_ ]kill|{FATAL}"
    rf"|{OF_THE_NODE}"
)
REACH = (
    "The nodes must reach each other by TCP on any port. Name the interface that does: "
    "`export GLOO_SOCKET_IFNAME=...`, with GPUs `NCCL_SOCKET_IFNAME=...` too (before sbatch, or in "
    "`setup:` of a cluster file); `dist-resnet doctor --cluster FILE --nodes 2` tries every pair"
)


@dataclass(frozen=True)
class Failure:
    """The worker that failed first. said: its traceback, or its last words in its log; '' where
    there are none. hang: who waited for whom, where something has hung."""

    rank: int
    whose: Whose
    said: str
    log: Path
    hang: str | None = None

    @property
    def again(self) -> bool:
        """Whether another start may end better."""
        return self.whose in ("node", "network", "unknown")

    def tell(self, where: str = "") -> str:
        """What the user reads: one line for a mistake of theirs, else everything that is known."""
        worker, log = f"the worker of rank {self.rank}{where}", f"\nits log: {self.log}"
        if self.whose == "scheduler":
            return "srun has started no worker: what it says is above, or in the job's own output"
        if self.whose == "network":
            return f"{worker} could not reach the others: {_message(self.said)}\n{REACH}{log}"
        if self.whose == "unknown":
            why = self.hang or _crash(self.said) or "killed by a signal, or out of memory"
            return (
                f"{worker} ended without a word: {why}. The same command goes on from the last "
                f"checkpoint{log}"
            )
        if mistake := self.mistake():
            return f"{mistake} ({worker}; its log: {self.log})"
        node = "\nThat comes from this node's device or disk" if self.whose == "node" else ""
        return f"{worker} failed:\n{self.said.rstrip()}{node}{log}"

    def mistake(self) -> str | None:
        """The message, where the exception is a ValueError or Diverged: the user's to mend."""
        if self.whose != "user":
            return None
        last = self.said.strip().rpartition("Traceback (most recent call last):")[2]
        found = re.search(r"^(?:ValueError|[\w.]+\.Diverged): (.*)\Z", last, re.M | re.S)
        return found[1] if found else None

    @property
    def diverged(self) -> bool:
        """Whether the training's own values are the cause, and no machine's."""
        return self.mistake() is not None and ".Diverged: " in self.said


def first_failure(
    folder: Path,
    job_id: str,
    workers: int,
    *,
    hang: str | None = None,
    began: float = 0.0,
    stepped: bool = True,
) -> Failure | None:
    """None where every worker has returned.

    Workers that lost a peer raise too: such errors are nobody's own. began: when the workers were
    about to be started, by the clock of the folder's disk. stepped: whether this run has ever made
    a step; before, ranks that time out have not lost a peer but never reached it."""
    paths = [JobPaths(folder, job_id, rank) for rank in range(workers)]
    results = [_result(path.result_pickle) for path in paths]
    errors = sorted(
        (when, rank, text) for rank, (when, kind, text) in enumerate(results) if kind == "error"
    )
    silent = [rank for rank, (_, kind, _) in enumerate(results) if kind is None]

    def failure(rank: int, whose: Whose, said: str = "") -> Failure:
        return Failure(rank, whose, said, paths[rank].stdout, hang)

    own = [(rank, text) for _, rank, text in errors if not _of_connection(text)]
    if own:
        rank, text = own[0]
        return failure(rank, "node" if _matches(OF_THE_NODE, _message(text)) else "user", text)
    if not errors and not silent:
        return None
    if len(silent) == workers and not any(_is_newer(path.stdout, began) for path in paths):
        return failure(0, "scheduler")
    if hang:  # one that hung learns last that the others have gone
        return failure(silent[0] if silent else errors[-1][1], "unknown")
    words = {rank: last_words(paths[rank].stdout) for rank in silent}
    for rank, said in words.items():
        if said and not _of_connection(said):
            return failure(rank, "unknown", said)
    spoken = [(rank, said) for rank, said in words.items() if said]
    unreached = [(rank, text) for _, rank, text in errors if not _matches(GONE, _message(text))]
    if (unreached or spoken) and not (stepped and silent):
        rank, said = (unreached or spoken)[0]
        return failure(rank, "network", said)
    last = silent[0] if silent else errors[-1][1]
    return failure(last, "unknown", words.get(last, ""))


def outcome(folder: Path, job_id: str) -> str:
    """What rank 0's task returned. Asked only where there is no failure."""
    return _result(JobPaths(folder, job_id, 0).result_pickle)[2]


def step_was_cancelled(folder: Path, job_id: str) -> bool:
    """Whether SLURM has ended all workers of this start together, and not for a time limit."""
    said = r"\*\*\* STEP \S+ ON \S+ CANCELLED AT \S+ \*\*\*"
    return re.search(said, _this_start(JobPaths(folder, job_id, 0).stdout)) is not None


def last_words(log: Path) -> str:
    """The last line of this start in a worker's log that says what ended it; '' where none does."""
    lines = [line.strip() for line in _this_start(log).splitlines() if _matches(LAST_WORDS, line)]
    said = [line for line in lines if line.startswith(FATAL)] or lines
    return said[-1][:300] if said else ""


def _this_start(log: Path) -> str:
    """What the end of a log holds of the last start in it."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            return file.read().decode(errors="replace").rpartition(BEGIN)[2]
    except OSError:
        return ""


def _crash(said: str) -> str | None:
    """Of last words. faulthandler writes FATAL where a worker has ended by a signal of its own
    making: SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL."""
    if not said.startswith(FATAL):
        return f"killed by a signal, or out of memory; last in its log: {said}" if said else None
    remedy = ""
    if os.environ.get("TORCH_DISTRIBUTED_DEBUG", "OFF").upper() != "OFF":
        remedy = (
            "; TORCH_DISTRIBUTED_DEBUG is set, with which torch's DDP can crash on gloo: unset it"
        )
    return f"{said.removeprefix(FATAL)} (its stacks are in its log){remedy}"


def _of_connection(traceback: str) -> bool:
    """Whether an error is what gloo or NCCL say of a peer, and not what a file system or a data
    loader says."""
    last = _message(traceback)
    if re.match(r"TimeoutError", last) or (
        last.startswith("OSError") and not _matches(GONE + "|connection refused|no route", last)
    ):
        return False
    return _matches(f"{GONE}|{UNREACHABLE}", last)


def _matches(pattern: str, text: str) -> bool:
    return re.search(pattern, text, re.IGNORECASE) is not None


def _message(traceback: str) -> str:
    """The exception itself, which may have several lines, in one."""
    lines = traceback.strip().rpartition("Traceback (most recent call last):")[2].splitlines()
    after = itertools.dropwhile(lambda line: not line or line.startswith(" "), lines)
    return " ".join(" ".join(after).split())[:500]


def _is_newer(path: Path, than: float) -> bool:
    return path.exists() and path.stat().st_mtime >= than


def _result(path: Path) -> tuple[float, str | None, str]:
    """(when, 'success' or 'error' or None, outcome or traceback) of a worker."""
    found = inert.load(path)
    if not isinstance(found, tuple) or len(found) != 2:
        return 0.0, None, ""
    return path.stat().st_mtime, *found
