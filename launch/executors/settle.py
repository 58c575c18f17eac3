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

    def progress(self) -> str | None:
        """How far it is: another text once it has got further. None: nothing is done yet."""

    def __call__(self) -> str: ...


REQUEUE = 75  # EX_TEMPFAIL
TERMINATED = 128 + signal.SIGTERM
CANCELLED = 144  # terminated too, by SLURM: requeue.sh asks whether it has cancelled the job
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
    times; and where another start may end better (verdict's table): up to max_faults times without
    a new checkpoint, once before the first step."""
    job_id = _job_id()
    submitted = JobPaths(folder, job_id).submitted_pickle  # touched just before srun
    task = DelayedSubmission.load(submitted).function
    if preempted_marker(folder, job_id).exists():
        return _after_signal(REQUEUE, task, folder)
    workers, nodes = int(os.environ["SLURM_NTASKS"]), SlurmJobEnvironment().hostnames
    run_dir = Path(task.run_dir) if isinstance(task, WorkerTask) else None
    progress = task.progress()
    failure = verdict.first_failure(
        folder,
        job_id,
        workers,
        hang=hang.story(run_dir, workers) if run_dir else None,
        began=submitted.stat().st_mtime,
        stepped=progress is not None,
    )
    if failure is None:
        if verdict.outcome(folder, job_id) == COMPLETED:
            return 0
        if verdict.step_was_cancelled(folder, job_id):
            again = _after_fault(task.max_faults, progress, folder) == REQUEUE
            return CANCELLED if again else 1
        return _after_signal(TERMINATED, task, folder)
    node = nodes[failure.rank * len(nodes) // workers]
    why = failure.tell(f" on {node}")
    _tell(folder, f"start {slurm_job.restarts() + 1} of job {job_id}: {why}")
    if run_dir:
        starts.settle(run_dir, why)
    return _after_fault(task.max_faults, progress, folder) if failure.again else 1


def _after_signal(code: int, task: Task, folder: Path) -> int:
    """The code, unless too many starts of this job have ended at their time limit."""
    if not _is_late():
        return code
    ends = _note("limit", "", folder)
    if ends <= task.max_restarts:
        return code
    _tell(
        folder, f"{ends} time limits, and max_restarts is {task.max_restarts}: not requeued again"
    )
    return 1


def _after_fault(most: int, progress: str | None, folder: Path) -> int:
    """REQUEUE, unless too many starts of this job have ended so with nothing new in between."""
    ends = _note("fault", str(progress), folder)
    if ends <= (most if progress is not None else min(1, most)):
        return REQUEUE
    if progress is None:
        told = f"{ends} such ends before the first step: not requeued again"
        told += "; `dist-resnet doctor` examines the nodes"
    else:
        told = f"{ends} such ends since the last new checkpoint, and max_faults is {most}"
        told += ": not requeued again"
    _tell(folder, told)
    return 1


def _note(kind: str, progress: str, folder: Path) -> int:
    """Note this start's end, and how far the task was; returns how many starts of this job have
    ended like this, and no further."""
    (folder / f"{kind}-{_job_id()}-{slurm_job.restarts()}").write_text(progress)
    ends = folder.glob(f"{kind}-{_job_id()}-*")
    return sum(path.read_text() == progress for path in ends)


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
