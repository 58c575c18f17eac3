"""Waits for a SLURM job that we own: shows rank 0's log as it grows, starts a requeue at once,
returns the job's exit code."""

import subprocess
import sys
import time
from pathlib import Path

ENDED = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "BOOT_FAIL",
    "DEADLINE",
)
POLL_SECONDS = 1.0
SETTLE_SECONDS = (
    10.0  # for the node's report of the earlier start's end, which would be taken for the new one's
)
SILENCE_SECONDS = 300.0  # of squeue and scontrol, before we give up


def follow(job_id: str, log: Path) -> int:
    """Returns the exit code that the job ended with; 1 where it ended by anything else. Ctrl-C
    leaves the job as it is.

    Asks `scontrol show job`, which needs no accounting. Raises RuntimeError where SLURM has not
    answered for minutes."""
    shown, ended_polls, heard = 0, 0, time.monotonic()
    while True:
        shown = _show(log, shown)
        job = _job(job_id)
        if job is None:
            if time.monotonic() - heard > SILENCE_SECONDS:
                raise RuntimeError(
                    f"job {job_id}: `scontrol show job` has failed for {SILENCE_SECONDS:.0f} s; "
                    "is the controller down? "
                    "The job itself may be well"
                )
        else:
            heard = time.monotonic()
            if (
                job["JobState"] == "PENDING"
                and job["Reason"] == "BeginTime"
                and job["Restarts"] != "0"
            ):
                _start_now(job_id)
            ended_polls = ended_polls + 1 if job["JobState"] in ENDED else 0
            if (
                ended_polls * POLL_SECONDS > 3
            ):  # a job about to be requeued may look ended for a moment
                _show(log, shown)
                code, _, number = job["ExitCode"].partition(":")
                ended_well = job["JobState"] == "COMPLETED"
                if not ended_well:
                    print(
                        f"job {job_id} ended as {job['JobState']} (exit code {code}, signal "
                        f"{number})",
                        file=sys.stderr,
                    )
                return int(code) if ended_well or code != "0" else 1
        time.sleep(POLL_SECONDS)


def _start_now(job_id: str) -> None:
    """SLURM lets a requeued job wait for two minutes; its owner need not."""
    time.sleep(SETTLE_SECONDS)
    subprocess.run(["scontrol", "update", f"JobId={job_id}", "StartTime=now"], capture_output=True)


def _job(job_id: str) -> dict[str, str] | None:
    """What SLURM says of the job; None where it does not answer."""
    shown = subprocess.run(
        ["scontrol", "--oneliner", "show", "job", job_id], capture_output=True, text=True
    )
    if shown.returncode:
        return None
    return dict(word.split("=", 1) for word in shown.stdout.split() if "=" in word)


def _show(log: Path, shown: int) -> int:
    """Print what is new, in whole lines; returns how many bytes have been shown."""
    if not log.exists():
        return shown
    with open(log, "rb") as file:
        file.seek(shown)
        text = file.read()
    text = text[: text.rfind(b"\n") + 1]
    sys.stdout.write(text.decode(errors="replace"))
    sys.stdout.flush()
    return shown + len(text)
