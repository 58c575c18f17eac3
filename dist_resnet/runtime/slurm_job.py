"""Which job of SLURM's this process belongs to, as its environment says; without asking SLURM."""

import os
import socket


def job_id() -> str | None:
    """The id of the job, of an array JOB_TASK; None outside."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def restarts() -> int:
    """How often SLURM has started this job again."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0))


def node() -> str:
    """The name of this machine, as SLURM has it."""
    return os.environ.get("SLURMD_NODENAME", socket.gethostname())
