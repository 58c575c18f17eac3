"""Submits a training to SLURM through submitit, whose batch script also settles how the workers
ended, and requeues."""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError

from dist_resnet.tracking.starts import SOURCE
from launch.executors import pinned
from launch.executors.cluster import Cluster
from launch.executors.settle import Task

# variables that are no job's: how SLURM's commands find their controller
OF_THE_SITE = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT")
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


class PartlyQueued(RuntimeError):
    """SLURM has taken some of several arrays."""


def submit(
    directory: Path,
    tasks: Sequence[Task],
    cluster: Cluster,
    nodes: int,
    workers_per_node: int,
    new: Sequence[Path] = (),
) -> list[str]:
    """Queue tasks, several as one job array, or as many as it takes where SLURM limits their size,
    with their logs in the directory; returns the job ids.
    new: run directories that were made for this; they go again where SLURM does not take it.

    Raises RuntimeError where there is no SLURM, or where it takes no more."""
    try:
        return _submit(directory, tasks, cluster, nodes, workers_per_node)
    except PartlyQueued:
        raise
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
    if not cluster.asks_for_gpus:
        print(
            "note: this asks SLURM for no GPU, so that it trains on CPUs: for GPUs set "
            "gpus_per_node in a cluster file (such as configs/cluster/example.yaml)",
            flush=True,
        )
    if cluster.code == "pinned":
        pinned.pin(directory)
    made = executor(directory, cluster, nodes, workers_per_node)
    jobs: list[str] = []
    with _as_outside_of_a_job():
        most = _largest_array() if len(tasks) > 1 else 1
        for first in range(0, len(tasks), most):
            try:
                jobs += _queue(made, tasks[first : first + most])
            except FailedJobError as error:
                reason = _reason(error)
                if not jobs:
                    raise RuntimeError(f"sbatch refuses: {reason}") from None
                raise PartlyQueued(
                    f"{len(jobs)} of {len(tasks)} are queued ({arrays(jobs)}); sbatch takes no "
                    f"more ({reason}): once these have ended, the same command queues the rest"
                ) from None
    return jobs


def arrays(jobs: Sequence[str]) -> str:
    """The ids of the jobs or job arrays, as scancel takes them."""
    return " ".join(dict.fromkeys(job.partition("_")[0] for job in jobs))


def _queue(made: SlurmExecutor, tasks: Sequence[Task]) -> list[str]:
    if len(tasks) == 1:
        return [made.submit(tasks[0]).job_id]
    with made.batch():
        jobs = [made.submit(task) for task in tasks]
    return [job.job_id for job in jobs]


def _largest_array() -> int:
    shown = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True).stdout
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", shown, re.MULTILINE)
    return max(1, int(found[1])) if found else 1000


@contextlib.contextmanager
def _as_outside_of_a_job() -> Iterator[None]:
    """What is queued from inside of a job (salloc, srun --pty) would inherit that one's size."""
    of_a_job = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("SLURM_", "SRUN_")) and name not in OF_THE_SITE
    }
    for name in of_a_job:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(of_a_job)


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if "error:" in line]
    return (lines or str(error).splitlines())[-1].rpartition("sbatch: error: ")[2]


def script(run_dir: Path, cluster: Cluster, nodes: int, workers_per_node: int) -> str:
    """The batch script that `submit` would hand to sbatch."""
    made = executor(run_dir, cluster, nodes, workers_per_node)
    return made._make_submission_file_text(made._submitit_command_str, "")


def executor(directory: Path, cluster: Cluster, nodes: int, workers_per_node: int) -> SlurmExecutor:
    """submitit's executor, with a batch script as slurm/common.sh is one."""
    folder = (directory / "logs").resolve()
    is_pinned = cluster.code == "pinned"
    code = (directory / pinned.FOLDER).resolve() if is_pinned else SOURCE
    made = SlurmExecutor(folder, python=_workers(cluster, folder, code))
    given = {key: getattr(cluster, key) for key in SAME_NAME}
    made.update_parameters(
        job_name=directory.name,
        nodes=nodes,
        ntasks_per_node=workers_per_node,
        stderr_to_stdout=True,
        use_srun=False,  # workers.sh does
        additional_parameters={
            "requeue": True,
            "signal": f"{cluster.signal}@{cluster.signal_delay_s}",
            **(cluster.sbatch or {}),
        },
        setup=_setup(cluster, code if is_pinned else None),
        **{key: value for key, value in given.items() if value is not None},
    )
    return made


def _workers(cluster: Cluster, folder: Path, code: Path) -> str:
    """What runs submitit's runner in every task, and settles afterwards: a shell's words."""
    script = str(code / "launch/jobs/workers.sh")
    words = [script, str(folder), sys.executable, "--", *cluster.srun_args, "--"]
    return f"exec bash {shlex.join(words)} {_python(cluster, code)}"


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


def _setup(cluster: Cluster, code: Path | None) -> list[str]:
    """The shell's lines before the workers. code: what is to be imported, where that is not the
    checkout of the Python that runs."""
    quoted = shlex.quote(str(code))
    return [
        "trap ':' USR1 USR2 TERM  # SLURM may send them to this shell too",
        *cluster.setup,
        *(
            [f"export PYTHONSAFEPATH=1 PYTHONPATH={quoted}${{PYTHONPATH:+:$PYTHONPATH}}"]
            if code
            else []
        ),
    ]
