"""Submits a training to SLURM through submitit, and stages and settles the same task for a batch
script of one's own."""

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from submitit import SlurmExecutor
from submitit.core.utils import DelayedSubmission, JobPaths
from submitit.slurm.slurm import SlurmJobEnvironment

from dist_resnet.runtime.signals import COMPLETED
from launch.executors import verdict
from launch.executors.cluster import Cluster
from launch.executors.task import WorkerTask, requeued_marker, restarts


class Task(Protocol):
    """What a job runs in every one of its SLURM tasks."""

    @property
    def max_faults(self) -> int: ...

    def __call__(self) -> str: ...


REQUEUE = 75  # EX_TEMPFAIL
HOLD_SIGUSR2 = Path(__file__).with_name("hold_sigusr2.py")
FAILURES = "failures.txt"  # in the logs: one line per start that failed


def submit(
    directory: Path, tasks: Sequence[Task], cluster: Cluster, nodes: int, workers_per_node: int
) -> list[str]:
    """Queue tasks, several as one job array, with their logs in the directory; returns the job ids.

    Raises RuntimeError where there is no SLURM."""
    if not shutil.which("sbatch"):
        raise RuntimeError(
            "--cluster slurm: sbatch is not on the PATH; run this on a login node, or use "
            "--cluster local"
        )
    made = executor(directory, cluster, nodes, workers_per_node)
    if len(tasks) == 1:
        return [made.submit(tasks[0]).job_id]
    with made.batch():
        jobs = [made.submit(task) for task in tasks]
    return [job.job_id for job in jobs]


def script(run_dir: Path, cluster: Cluster, nodes: int, workers_per_node: int) -> str:
    """The batch script that `submit` would hand to sbatch."""
    made = executor(run_dir, cluster, nodes, workers_per_node)
    return made._make_submission_file_text(made._submitit_command_str, "")


def executor(directory: Path, cluster: Cluster, nodes: int, workers_per_node: int) -> SlurmExecutor:
    """submitit's executor, whose batch script also settles how the workers ended, as
    slurm/common.sh does."""
    folder = (directory / "logs").resolve()
    python = shlex.quote(sys.executable)
    made = SlurmExecutor(
        folder,
        max_num_timeout=cluster.max_restarts,
        python=f"{python} -IS {shlex.quote(str(HOLD_SIGUSR2))} {python}",
    )
    given = {
        key: getattr(cluster, key)
        for key in (
            "partition",
            "account",
            "qos",
            "constraint",
            "exclude",
            "gpus_per_node",
            "cpus_per_task",
            "mem",
        )
    }
    made.update_parameters(
        job_name=directory.name,
        nodes=nodes,
        ntasks_per_node=workers_per_node,
        time=cluster.time,
        signal_delay_s=cluster.signal_delay_s,
        stderr_to_stdout=True,
        array_parallelism=cluster.array_parallelism,
        srun_args=["--kill-on-bad-exit=1", "--open-mode=append", *cluster.srun_args],
        additional_parameters={"requeue": True, **(cluster.sbatch or {})},
        setup=[
            "trap ':' USR1 USR2  # `scancel --full` sends them to this shell too",
            *cluster.setup,
            f"export SLURM_NTASKS=$((SLURM_JOB_NUM_NODES * {workers_per_node}))  # fewer where a "
            "requeue got fewer nodes",
            "export SLURM_NPROCS=$SLURM_NTASKS",
            *(
                [f"export SRUN_CPUS_PER_TASK={cluster.cpus_per_task}"]
                if cluster.cpus_per_task
                else []
            ),
        ],
        teardown=[
            f"{python} -m launch settle {shlex.quote(str(folder))}",
            "code=$?",
            "job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}",
            f'[ $code = {REQUEUE} ] && scontrol requeue "$job" && sleep 60',
            "exit $code",
        ],
        **{key: value for key, value in given.items() if value is not None},
    )
    return made


def stage(run_dir: Path, cluster: Cluster) -> Path:
    """Inside a batch script: put the task where submitit's runner looks for it under this job's id;
    returns the folder.

    After a requeue the task that submitit wrote is kept: it counts the restarts. A task of another
    job that had the same id, which happens when a cluster's ids start again, is replaced."""
    job_id = _job_id()
    folder = (run_dir / "logs").resolve()
    path = JobPaths(folder, job_id).submitted_pickle
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{job_id}_*.save_tmp"):
        leftover.unlink()
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0" or not path.exists():
        for old in (
            f
            for kind in ("fault", "requeued", "rendezvous")
            for f in folder.glob(f"{kind}-{job_id}-*")
        ):
            old.unlink()
        task = DelayedSubmission(WorkerTask(str(run_dir.resolve()), max_faults=cluster.max_faults))
        task.set_timeout(_minutes(), cluster.max_restarts)
        aside = path.with_suffix(".new")
        task.dump(aside)
        os.replace(aside, path)
    return folder


def settle(folder: Path) -> int:
    """Inside a batch script, after srun: say who failed and why; returns the script's exit code.

    REQUEUE where a worker ended without a word, as one does that is killed, or whose node is: up to
    max_faults times. A Python exception would come again: it is not requeued."""
    job_id = _job_id()
    workers, nodes = int(os.environ["SLURM_NTASKS"]), SlurmJobEnvironment().hostnames
    failure = verdict.first_failure(folder, job_id, workers)
    if failure is None:
        return 0 if verdict.outcome(folder, job_id) == COMPLETED else 128 + signal.SIGTERM
    if failure.exception is None and requeued_marker(folder, job_id).exists():
        return 0  # SLURM is about to end this start of the job
    node = nodes[failure.rank * len(nodes) // workers]
    _tell(folder, f"start {restarts() + 1} of job {job_id}: {failure.tell(f' on {node}')}")
    if failure.exception is not None:
        return 1
    (folder / f"fault-{job_id}-{restarts()}").touch()
    faults, limit = len(list(folder.glob(f"fault-{job_id}-*"))), _max_faults(folder, job_id)
    if faults > limit:
        _tell(folder, f"{faults} such ends, and max_faults is {limit}: not requeued again")
        return 1
    return REQUEUE


def _tell(folder: Path, line: str) -> None:
    print(line, flush=True)
    with open(folder / FAILURES, "a") as file:
        file.write(line + "\n")


def _max_faults(folder: Path, job_id: str) -> int:
    return DelayedSubmission.load(JobPaths(folder, job_id).submitted_pickle).function.max_faults


def _job_id() -> str:
    """This job's id in submitit's form. Raises RuntimeError outside a job."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if "SLURM_JOB_ID" not in os.environ:
        raise RuntimeError(
            "SLURM_JOB_ID is not set: this is for batch scripts; submit one with sbatch"
        )
    return os.environ["SLURM_JOB_ID"]


def _minutes() -> int:
    """The job's time limit, by which submitit tells a time limit from a preemption."""
    start, end = (
        int(os.environ.get(name, 0)) for name in ("SLURM_JOB_START_TIME", "SLURM_JOB_END_TIME")
    )
    return max(1, (end - start) // 60) if end > start else 60
