"""What a batch script calls before its srun, and after it: `stage` puts the task where submitit's
runner finds it, `settle` says how the workers ended, and whether the job should go on."""

import os
import signal
import time
from pathlib import Path
from typing import Protocol

from submitit.core.utils import DelayedSubmission, JobPaths
from submitit.slurm.slurm import SlurmJobEnvironment

from dist_resnet.diagnosis import hang
from dist_resnet.runtime import slurm_job
from dist_resnet.runtime.signals import COMPLETED
from dist_resnet.tracking import starts
from launch.executors.cluster import Cluster
from launch.jobs import verdict
from launch.jobs.task import WorkerTask, preempted_marker


class Task(Protocol):
    """What a job runs in every one of its SLURM tasks."""

    @property
    def max_restarts(self) -> int: ...

    @property
    def max_faults(self) -> int: ...

    def __call__(self) -> str: ...


REQUEUE = 75  # EX_TEMPFAIL
TERMINATED = 128 + signal.SIGTERM
FAILURES = "failures.txt"  # in the logs: one line per start that failed
NEAR_THE_END = 0.8  # of the time limit: what ends later was not a preemption (as submitit has it)


def stage(run_dir: Path, cluster: Cluster) -> Path:
    """Inside a batch script, at a job's first start: put the task where submitit's runner looks for
    it under this job's id; returns the folder.

    What another job has left that had the same id, which happens when a cluster's ids start again,
    is removed."""
    job_id = _job_id()
    folder = (run_dir / "logs").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("fault", "limit", "preempted", "rendezvous"):
        for old in folder.glob(f"{kind}-{job_id}-*"):
            old.unlink()
    task = WorkerTask(
        str(run_dir.resolve()), max_restarts=cluster.max_restarts, max_faults=cluster.max_faults
    )
    path = JobPaths(folder, job_id).submitted_pickle
    aside = path.with_suffix(".new")
    DelayedSubmission(task).dump(aside)
    os.replace(aside, path)
    return folder


def settle(folder: Path) -> int:
    """Inside a batch script, after srun: say who failed and why; returns the script's exit code.

    REQUEUE where the training was preempted, or has reached the time limit: then up to max_restarts
    times; and where a worker ended without a word, as one does that is killed, or whose node is: up
    to max_faults times. A Python exception would come again: it is not requeued."""
    job_id = _job_id()
    task = DelayedSubmission.load(JobPaths(folder, job_id).submitted_pickle).function
    if preempted_marker(folder, job_id).exists():
        return _after_signal(REQUEUE, task, folder)
    workers, nodes = int(os.environ["SLURM_NTASKS"]), SlurmJobEnvironment().hostnames
    failure = verdict.first_failure(folder, job_id, workers)
    if failure is None:
        completed = verdict.outcome(folder, job_id) == COMPLETED
        return 0 if completed else _after_signal(TERMINATED, task, folder)
    node = nodes[failure.rank * len(nodes) // workers]
    run_dir = Path(task.run_dir) if isinstance(task, WorkerTask) else None
    why = failure.tell(f" on {node}", hang.story(run_dir, workers) if run_dir else None)
    _tell(folder, f"start {slurm_job.restarts() + 1} of job {job_id}: {why}")
    if run_dir:
        starts.settle(run_dir, why)
    if failure.exception is not None:
        return 1
    return _unless_too_often("fault", REQUEUE, task.max_faults, folder)


def _after_signal(code: int, task: Task, folder: Path) -> int:
    return _unless_too_often("limit", code, task.max_restarts, folder) if _is_late() else code


def _unless_too_often(kind: str, code: int, most: int, folder: Path) -> int:
    """The code, unless too many starts of this job have ended like this, with this one."""
    (folder / f"{kind}-{_job_id()}-{slurm_job.restarts()}").touch()
    ends = len(list(folder.glob(f"{kind}-{_job_id()}-*")))
    if ends <= most:
        return code
    what = {"fault": "such ends, and max_faults", "limit": "time limits, and max_restarts"}[kind]
    _tell(folder, f"{ends} {what} is {most}: not requeued again")
    return 1


def _is_late() -> bool:
    """Whether this start of the job has had most of its time, and so was ended by that; also where
    SLURM does not say."""
    start, end = (
        float(os.environ.get(f"SLURM_JOB_{name}_TIME", "nan")) for name in ("START", "END")
    )
    return not time.time() - start < NEAR_THE_END * (end - start)


def _tell(folder: Path, line: str) -> None:
    print(line, flush=True)
    with open(folder / FAILURES, "a") as file:
        file.write(line + "\n")


def _job_id() -> str:
    """This job's id in submitit's form. Raises RuntimeError outside a job."""
    job_id = slurm_job.job_id()
    if job_id is None:
        raise RuntimeError(
            "SLURM_JOB_ID is not set: this is for batch scripts; submit one with sbatch"
        )
    return job_id
