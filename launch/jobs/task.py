"""WorkerTask: what submitit pickles and runs in every worker process. It turns submitit's job into
the six variables."""

import contextlib
import faulthandler
import os
import random
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import psutil
from submitit import JobEnvironment
from submitit.helpers import DelayedSubmission

from dist_resnet.runtime import imports
from dist_resnet.runtime.signals import PREEMPTED, StopSignal
from dist_resnet.runtime.slurm_job import restarts

RENDEZVOUS_SECONDS = 300


@dataclass(frozen=True)
class WorkerTask:
    """Trains the run of run_dir. Holds nothing else that the training needs: to resume is to call
    it again.

    launcher: process id of a launcher on this machine, without which the worker must not go on.
    pause_at: a step after which to save and leave; requeues: whether, once preempted, to ask to be
    started again.
    max_restarts, max_faults: how often a job on SLURM may be started again after time limits, and,
    with no new checkpoint in between, after workers that ended without a word."""

    run_dir: str
    launcher: int | None = None
    max_restarts: int = 1000
    max_faults: int = 5
    attempt: int = 0
    pause_at: int | None = None
    requeues: bool = True

    def __call__(self) -> str:
        faulthandler.enable()  # a crash in C leaves its name and its stacks in the log
        stop = StopSignal(
            self.pause_at
        )  # before torch takes its seconds to import: no signal is lost
        if self.launcher:
            threading.Thread(target=end_with, args=(self.launcher,), daemon=True).start()
        job = JobEnvironment()
        if "SUBMITIT_FOLDER" in os.environ:
            job.paths.result_pickle.unlink(missing_ok=True)  # an earlier start's
        self.join(job)
        with imports.for_good():
            from dist_resnet import worker
        began = psutil.Process(os.getppid()).create_time() if self.launcher else None
        outcome = worker.main(self.run_dir, stop, began)
        if outcome == PREEMPTED and self.requeues and callable(stop.before[signal.SIGUSR2]):
            leave(stop, job)
        return outcome

    def join(self, job: JobEnvironment) -> None:
        """Keep to this worker's CPUs, and meet the job's others."""
        pin(job.local_rank, job.num_tasks // job.num_nodes)
        self.meet(job)

    def meet(self, job: JobEnvironment) -> None:
        """Set the six variables for this worker of the job."""
        local_size = job.num_tasks // job.num_nodes
        address, port = self.rendezvous(job)
        os.environ.update(
            RANK=str(job.global_rank),
            LOCAL_RANK=str(job.local_rank),
            WORLD_SIZE=str(job.num_tasks),
            LOCAL_WORLD_SIZE=str(local_size),
            MASTER_ADDR=address,
            MASTER_PORT=port,
        )
        if job.num_nodes == 1:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a host name need not resolve

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit when it requeues: the same task once more. The weights are in RUN_DIR
        already."""
        return DelayedSubmission(replace(self, attempt=self.attempt + 1))

    def progress(self) -> str | None:
        """The last checkpoint's name, '' before the first; None before the first known step."""
        latest, metrics = (Path(self.run_dir) / n for n in ("checkpoints/LATEST", "metrics.jsonl"))
        if latest.exists():
            return latest.read_text().strip()
        return "" if metrics.exists() and metrics.stat().st_size else None

    def rendezvous(self, job: JobEnvironment) -> tuple[str, str]:
        """Address and free port of rank 0, which publishes them in the job's folder for this start
        of the job."""
        if job.num_tasks == 1:
            return "127.0.0.1", str(_free_port())
        path = (
            Path(os.environ["SUBMITIT_FOLDER"])
            / f"rendezvous-{job.job_id}-{restarts()}-{self.attempt}"
        )
        if job.global_rank == 0:
            aside = path.with_suffix(".partial")
            aside.write_text(
                f"{'127.0.0.1' if job.num_nodes == 1 else _own_address()} {_free_port()}"
            )
            aside.replace(path)
        deadline, pause = time.monotonic() + RENDEZVOUS_SECONDS, 0.1
        while not path.exists():
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"rank 0 has not published its address in {path} within {RENDEZVOUS_SECONDS} "
                    "s: "
                    "did it start? Is this folder shared by all nodes?"
                )
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2.0, 1.5 * pause)  # a thousand ranks ask the shared folder
        address, port = path.read_text().split()
        return address, port


def leave(stop: StopSignal, job: JobEnvironment) -> NoReturn:
    """End this task without a result, which would be read as the job's end, and have the job
    started again: on SLURM by its batch script, since SLURM's commands may be out of reach here;
    else by submitit's own handler, which calls checkpoint() and exits."""
    if job.global_rank == 0 and job.cluster == "slurm":
        preempted_marker(Path(os.environ["SUBMITIT_FOLDER"]), job.job_id).touch()
    elif job.global_rank == 0:
        handler = stop.before[signal.SIGUSR2]
        assert callable(handler)
        handler(signal.SIGUSR2, None)
    sys.exit(0)


def preempted_marker(folder: Path, job_id: str) -> Path:
    """Exists where this start of the job has left in order to go on: its end is no failure."""
    return folder / f"preempted-{job_id}-{restarts()}"


def single_worker() -> None:
    """Make this process the only worker of a world of its own."""
    os.environ.update(
        RANK="0",
        LOCAL_RANK="0",
        WORLD_SIZE="1",
        LOCAL_WORLD_SIZE="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(_free_port()),
    )
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def pin(local_rank: int, local_size: int) -> None:
    """Keep to this worker's share of the CPUs, and say so to torch, unless the scheduler has bound
    us already.

    A worker is a SLURM task, or one of several that a launcher has started in a task."""
    cpus = sorted(os.sched_getaffinity(0))
    among = 1 if os.environ.get("SUBMITIT_EXECUTOR") == "slurm" else local_size
    share = max(
        1,
        int(os.environ["SLURM_CPUS_PER_TASK"]) // among
        if "SLURM_CPUS_PER_TASK" in os.environ
        else len(cpus) // local_size,
    )
    ours = len(cpus) <= int(
        os.environ.get("SLURM_CPUS_ON_NODE", len(cpus))
    )  # else other jobs' are among them, and which is not known
    if ours and share < len(cpus) and share * local_size <= len(cpus):
        cpus = cpus[local_rank * share : (local_rank + 1) * share]
        os.sched_setaffinity(0, cpus)
    threads = os.environ.setdefault("OMP_NUM_THREADS", str(min(share, len(cpus))))
    if "torch" in sys.modules:  # imported before this process was forked
        sys.modules["torch"].set_num_threads(int(threads.partition(",")[0]))


def end_with(launcher: int) -> None:
    """End this process when the launcher is gone, seen by submitit's controller, our parent, having
    another parent."""
    while True:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(os.getppid()).ppid() == launcher:
                time.sleep(0.2)
                continue
        os._exit(1)  # nobody is left to report to; the run goes on from its last checkpoint


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _own_address() -> str:
    """The address by which this node reaches its network; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))
            return probe.getsockname()[0]
        except OSError:
            return socket.gethostbyname(socket.gethostname())
