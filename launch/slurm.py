"""Submits a training to SLURM through submitit, and stages the same task for a batch script of one's own."""

import os
import shutil
from pathlib import Path

from submitit import SlurmExecutor
from submitit.core.utils import DelayedSubmission, JobPaths

from launch.cluster import Cluster
from launch.task import WorkerTask


def submit(run_dir: Path, cluster: Cluster, nodes: int, workers_per_node: int | None) -> str:
    """Queue the training; returns the job id. Raises RuntimeError where there is no SLURM."""
    if not shutil.which("sbatch"):
        raise RuntimeError("--cluster slurm: sbatch is not on the PATH; run this on a login node, or use --cluster local")
    executor = SlurmExecutor(run_dir / "logs", max_num_timeout=cluster.max_restarts)
    given = {key: getattr(cluster, key) for key in
             ("partition", "account", "qos", "constraint", "exclude", "gpus_per_node", "cpus_per_task", "mem")}
    executor.update_parameters(
        job_name=run_dir.name, nodes=nodes, ntasks_per_node=workers_per_node or cluster.gpus_per_node or 1, time=cluster.time,
        signal_delay_s=cluster.signal_delay_s, stderr_to_stdout=True, setup=list(cluster.setup),
        srun_args=["--kill-on-bad-exit=1", *cluster.srun_args], additional_parameters={"requeue": True},
        **{key: value for key, value in given.items() if value is not None})
    return executor.submit(WorkerTask(str(run_dir.resolve()))).job_id


def stage(run_dir: Path, max_restarts: int) -> Path:
    """Inside a batch script: put the task where submitit's runner looks for it under this job's id; returns the folder.

    After a requeue the task that submitit wrote is kept: it counts the restarts. A task of another job that had the same
    id, which happens when a cluster's ids start again, is replaced."""
    job_id = os.environ.get("SLURM_JOB_ID")
    if not job_id:
        raise RuntimeError("SLURM_JOB_ID is not set: `stage` is for batch scripts; submit one with sbatch")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job_id = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    folder = (run_dir / "logs").resolve()
    path = JobPaths(folder, job_id).submitted_pickle
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{job_id}_*.save_tmp"):
        leftover.unlink()
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0" or not path.exists():
        for result in folder.glob(f"{job_id}_*_result.pkl"):
            result.unlink()
        task = DelayedSubmission(WorkerTask(str(run_dir.resolve())))
        task.set_timeout(_minutes(), max_restarts)
        aside = path.with_suffix(".new")
        task.dump(aside)
        os.replace(aside, path)
    return folder


def _minutes() -> int:
    """The job's time limit, by which submitit tells a time limit from a preemption."""
    start, end = (int(os.environ.get(name, 0)) for name in ("SLURM_JOB_START_TIME", "SLURM_JOB_END_TIME"))
    return max(1, (end - start) // 60) if end > start else 60
