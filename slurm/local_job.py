"""A job on the local cluster, as a user would submit, watch and disturb it: for tests and
benchmarks/chaos.py."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from local_cluster import LocalCluster

from dist_resnet.tracking.tracker import read_metrics

ROOT = Path(__file__).parent.parent
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def sbatch(
    cluster: LocalCluster,
    run_dir: Path,
    overrides: Sequence[str],
    *options: str,
    checkout: Path = ROOT,
    **environment: str,
) -> "Job":
    """`sbatch OPTIONS slurm/resnet110.sh OVERRIDES --run-dir RUN_DIR`, in a checkout."""
    output = run_dir.parent / "batch.out"
    submitted = subprocess.run(
        [
            "sbatch",
            "--parsable",
            f"--output={output}",
            *options,
            "slurm/resnet110.sh",
            *overrides,
            "--run-dir",
            str(run_dir),
        ],
        cwd=checkout,
        env={
            **cluster.environment,
            "DIST_RESNET_PYTHON": sys.executable,
            "PYTHONPATH": str(checkout),
            "OMP_NUM_THREADS": "1",  # the workers share this machine's cores, whatever SLURM thinks
            **environment,
        },
        capture_output=True,
        text=True,
    )
    if submitted.returncode:
        raise RuntimeError(submitted.stderr)
    return Job(cluster, run_dir, output, submitted.stdout.strip())


@dataclass
class Job:
    cluster: LocalCluster
    run_dir: Path
    output: Path  # of the batch script
    id: str

    def field(self, name: str) -> str:
        """What `scontrol show job` says, such as JobState or Restarts."""
        shown = self.cluster.command("scontrol", "show", "job", self.id)
        return shown.split(f"{name}=", 1)[1].split()[0]

    def wait_for_step(self, step: int, seconds: float = 300, *changes: str) -> None:
        """Through a requeue, where one is under way; `changes` as of `start_now`."""

        def reached() -> bool:
            self.start_now(*changes)
            return any(r["step"] >= step for r in read_metrics(self.run_dir))

        self.until(reached, seconds)

    def wait_for_end(self, seconds: float = 300, *changes: str) -> str:
        def ended() -> bool:
            self.start_now(*changes)
            if self.field("JobState") not in ENDS:
                return False
            time.sleep(2)  # a job about to be requeued may look as if it had failed
            return self.field("JobState") in ENDS

        self.until(ended, seconds)
        return self.field("JobState")

    def start_now(self, *changes: str) -> None:
        """SLURM makes a requeued job wait for two minutes; its owner may start it sooner, but not
        before the node has reported the end of the earlier start, which would be taken for the end
        of the new one. `changes` to the job, such as NumNodes=1, are made then."""
        if self.field("JobState") == "PENDING" and self.field("Reason") == "BeginTime":
            self.wait_for_reports()
            update = ["scontrol", "update", f"JobId={self.id}", *changes]
            subprocess.run([*update, "StartTime=now", "TimeLimit=10"], env=self.cluster.environment)

    def wait_for_reports(self) -> None:
        """Until the managers of the earlier start's batch script and steps have ended, which tell
        the controller last of all."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            time.sleep(4)
            names = (process.info["cmdline"] for process in psutil.process_iter(["cmdline"]))
            if not any(words and f"slurmstepd: [{self.id}." in words[0] for words in names):
                return

    def workers(self, node: str | None = None) -> list[psutil.Process]:
        """This job's worker processes, of one node or of all."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):  # it may end meanwhile
                words = process.cmdline()
                is_task = words[-3:-1] == ["-m", "submitit.core._submit"] and "-IS" not in words
                is_ours = is_task and "python" in words[0] and str(self.run_dir) in words[-1]
                if is_ours and node in (None, process.environ().get("SLURMD_NODENAME")):
                    found.append(process)
        return found

    def processes(self, node: str) -> list[psutil.Process]:
        """All that this job runs on a node, the batch script and its srun among them."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):  # it may end meanwhile
                environment = process.environ()
                asked = (environment.get("SLURM_JOB_ID"), environment.get("SLURMD_NODENAME"))
                if asked == (self.id, node):
                    found.append(process)
        return found

    def lose_worker_and_controller(self) -> None:
        """A worker is killed while the controller is down. Nobody trains on while it saves."""
        workers = self.workers()
        for worker in workers:
            worker.suspend()
        try:
            self.cluster.kill_controller()
            victim = workers.pop(random.randrange(len(workers)))
            victim.kill()
        finally:
            for worker in workers:
                worker.resume()

    def log(self) -> str:
        logs = sorted(self.run_dir.glob("logs/*_log.out")) if self.run_dir.exists() else []
        return "\n".join(f"--- {p}\n{p.read_text()}" for p in (self.output, *logs) if p.exists())

    def until(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"job {self.id} is {self.field('JobState')} after {seconds:.0f} "
                    f"s:\n{self.log()}"
                )
            time.sleep(0.2)


def kill_node(cluster: LocalCluster, node: str, job: Job) -> None:
    """As if the node had lost its power: its slurmd, its step managers and all that they run, at
    once. SLURM is told, so that nobody need wait for SlurmdTimeout."""
    victims: list[Any] = [cluster.daemons[node]]
    for process in job.processes(node):
        with contextlib.suppress(psutil.Error):  # it may end meanwhile
            parent = process.parent()
            victims += [process, *([parent] if parent and "slurmstepd" in parent.name() else [])]
    for victim in victims:
        with contextlib.suppress(psutil.Error):
            victim.kill()
    cluster.daemons.pop(node).wait()
    cluster.command("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=killed")


def revive_node(cluster: LocalCluster, node: str) -> None:
    """SLURM may take it back by itself, as soon as it reports."""
    cluster.start_node(node)
    if "DOWN" in cluster.command("scontrol", "show", "node", node):
        subprocess.run(
            ["scontrol", "update", f"NodeName={node}", "State=RESUME"], env=cluster.environment
        )


def preempt_with_short_grace(job: Job) -> None:
    """All workers get the signal that announces the end, and the one that ends, in one
    millisecond; twice."""
    for number in (signal.SIGUSR2, signal.SIGTERM) * 2:
        for worker in job.workers():
            worker.send_signal(number)


@contextlib.contextmanager
def unwritable(directory: Path) -> Iterator[None]:
    """Meanwhile nothing can be written into the directory, nor read from it."""
    aside = directory.with_name("aside")
    directory.rename(aside)
    directory.touch()
    try:
        yield
    finally:
        directory.unlink()
        aside.rename(directory)


def without_slurm(folder: Path) -> str:
    """A Python for which there is no SLURM, as in a container: neither commands nor slurm.conf."""
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nunset SLURM_CONF\nexport PATH=/\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return str(python)


def unreachable_at_first(folder: Path) -> str:
    """A Python with which the last of four ranks cannot be reached by the others at a job's first
    start, as by a wrong interface."""
    python = folder / "python"
    python.write_text(
        '#!/bin/sh\n[ "$SLURM_PROCID:$SLURM_RESTART_COUNT" != 3: ] || export '
        f'GLOO_SOCKET_IFNAME=nowhere\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    return str(python)


def as_in_a_container(folder: Path) -> dict[str, str]:
    """The environment for a job whose Python is in a container: in place of Apptainer, a command
    of its name that hides SLURM as `without_slurm` does, and runs what it is given."""
    enter = folder / "bin/apptainer"
    enter.parent.mkdir()
    enter.write_text(
        '#!/bin/sh\n[ "$1 $2 $3" = "exec --nv image.sif" ] || exit 99\n'
        'shift 3\nunset SLURM_CONF\nexport PATH=/\nexec "$@"\n'
    )
    enter.chmod(0o755)
    path = f"{enter.parent}:{os.environ['PATH']}"
    return {"DIST_RESNET_CONTAINER": "image.sif", "PATH": path}


def reach_the_time_limit(job: Job, seconds: float = 90) -> None:
    """The limit comes so near that SLURM sends the signal that announces it, as `--signal=USR2@100`
    asked: within half a minute, while which the workers stand still. They must all be there: to
    steps that have not begun, SLURM sends nothing."""
    workers = job.workers()
    for worker in workers:
        worker.suspend()
    job.cluster.command("scontrol", "update", f"JobId={job.id}", "TimeLimit=2")
    job.until(
        lambda: not any(_is_stopped(worker) for worker in workers), seconds
    )  # SIGCONT comes along with it


def _is_stopped(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return False
