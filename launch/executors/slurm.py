"""Submits a training to SLURM through submitit, whose batch script also settles how the workers
ended, and requeues."""

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from submitit import SlurmExecutor

from dist_resnet.tracking.starts import SOURCE
from launch.executors import pinned
from launch.executors.cluster import Cluster
from launch.executors.settle import Task

# keys of a cluster file that submitit knows by the same name
SAME_NAME = (
    "partition",
    "account",
    "qos",
    "constraint",
    "exclude",
    "gpus_per_node",
    "cpus_per_task",
    "mem",
    "time",
    "array_parallelism",
)


def submit(
    directory: Path,
    tasks: Sequence[Task],
    cluster: Cluster,
    nodes: int,
    workers_per_node: int,
    new: Sequence[Path] = (),
) -> list[str]:
    """Queue tasks, several as one job array, with their logs in the directory; returns the job ids.
    new: run directories that were made for this; they go again where SLURM does not take it.

    Raises RuntimeError where there is no SLURM."""
    try:
        return _submit(directory, tasks, cluster, nodes, workers_per_node)
    except Exception:
        for path in new:
            shutil.rmtree(path, ignore_errors=True)
        raise


def _submit(
    directory: Path, tasks: Sequence[Task], cluster: Cluster, nodes: int, workers_per_node: int
) -> list[str]:
    if not shutil.which("sbatch"):
        raise RuntimeError(
            "--cluster slurm: sbatch is not on the PATH; run this on a login node, or use "
            "--cluster local"
        )
    if cluster.code == "pinned":
        pinned.pin(directory)
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
    """submitit's executor, with a batch script as slurm/common.sh is one."""
    folder = (directory / "logs").resolve()
    is_pinned = cluster.code == "pinned"
    code = (directory / pinned.FOLDER).resolve() if is_pinned else SOURCE
    made = SlurmExecutor(folder, python=_python(cluster, code))
    given = {key: getattr(cluster, key) for key in SAME_NAME}
    made.update_parameters(
        job_name=directory.name,
        nodes=nodes,
        ntasks_per_node=workers_per_node,
        stderr_to_stdout=True,
        srun_args=["--kill-on-bad-exit=1", "--open-mode=append", *cluster.srun_args],
        additional_parameters={
            "requeue": True,
            "signal": f"{cluster.signal}@{cluster.signal_delay_s}",
            **(cluster.sbatch or {}),
        },
        setup=_setup(cluster, workers_per_node, code if is_pinned else None),
        teardown=[
            f"{shlex.quote(sys.executable)} -m dist_resnet settle {shlex.quote(str(folder))}",
            f"bash {shlex.quote(str(code / 'launch/jobs/requeue.sh'))} $? "
            '"${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"',
        ],
        **{key: value for key, value in given.items() if value is not None},
    )
    return made


def _python(cluster: Cluster, code: Path) -> str:
    """What runs submitit's runner in a task: a shell's words. Signals that come while it starts are
    held: outside of a container that we enter, inside of one that srun makes."""
    own = sys.executable
    inside = cluster.python or (own if cluster.container is None else "python")
    runner = shlex.quote(inside)
    if cluster.container is not None:
        runner = f"apptainer exec --nv {shlex.quote(cluster.container)} {runner}"
        inside = own
    hold = shlex.quote(str(code / "launch/jobs/hold_signals.py"))
    return f"{shlex.quote(inside)} -IS {hold} {runner}"


def _setup(cluster: Cluster, workers_per_node: int, code: Path | None) -> list[str]:
    """The shell's lines before srun. code: what is to be imported, where that is not the checkout
    of the Python that runs."""
    cpus, quoted = cluster.cpus_per_task, shlex.quote(str(code))
    return [
        "trap ':' USR1 USR2 TERM  # this shell gets them too, and has something to do at the end",
        *cluster.setup,
        f"export SLURM_NTASKS=$((SLURM_JOB_NUM_NODES * {workers_per_node}))  # fewer where a "
        "requeue got fewer nodes",
        "export SLURM_NPROCS=$SLURM_NTASKS",
        *([f"export SRUN_CPUS_PER_TASK={cpus}"] if cpus else []),
        *(
            [f"export PYTHONSAFEPATH=1 PYTHONPATH={quoted}${{PYTHONPATH:+:$PYTHONPATH}}"]
            if code
            else []
        ),
    ]
