"""A local job's workers as forks of one process that has imported torch: python -m
launch.jobs.forks FOLDER, in place of submitit's own controller, which starts a Python for each.

Not for GPUs: CUDA does not outlive a fork, and FFCV asks for it as it is imported."""

import multiprocessing.context
import os
import signal
import subprocess
import sys
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from submitit.core.submission import process_job
from submitit.core.utils import JobPaths
from submitit.local.local import Controller, LocalExecutor, LocalJob

from dist_resnet.runtime import imports

IMPORTED = ("dist_resnet.worker", "torch._dynamo")  # DDP imports the latter
BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")


def serve(devices: object) -> bool:
    """Whether workers can be forks: there are no GPUs among the devices, and no variable has torch
    bind its threads to CPUs while it is imported."""
    return not devices and not any(name in os.environ for name in BINDING)


class ForkingExecutor(LocalExecutor):
    """Submits to a ForkingController."""

    def _submit_command(self, command: str) -> LocalJob:
        size = self._num_tasks()
        environment = {
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_NTASKS": str(size),
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_LOCAL_TIMEOUT_S": str(60 * self.parameters["timeout_min"]),
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": "30",
            "SUBMITIT_LOCAL_WITH_SHELL": "",
            "SUBMITIT_STDERR_TO_STDOUT": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "launch.jobs.forks", str(self.folder)],
            env={**os.environ, **environment},
        )
        return LocalJob(
            folder=self.folder, job_id=str(process.pid), process=process, tasks=list(range(size))
        )


class Fork(multiprocessing.context.ForkProcess):
    """With what Controller asks of a task."""

    def poll(self) -> int | None:
        return self.exitcode

    def send_signal(self, number: int) -> None:
        if self.is_alive():
            os.kill(self.pid or 0, number)


class ForkingController(Controller):
    def start_tasks(self) -> None:
        held = {signal.SIGTERM}  # until there is somebody to pass it on to
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, held)
        with imports.for_good(), suppress(Exception):  # the workers will meet it, and say so
            for name in IMPORTED:
                import_module(name)
        self.folder.mkdir(exist_ok=True)
        for rank in range(self.ntasks):
            log = open(JobPaths(self.folder, self.pid, rank).stdout, "a")  # noqa: SIM115
            self.stdouts.append(log)
            self.tasks.append(Fork(target=self._work, args=(rank, log.fileno(), mask)))
            self.tasks[-1].start()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _work(self, rank: int, log: int, mask: set[signal.Signals]) -> None:
        os.dup2(log, sys.stdout.fileno())
        os.dup2(log, sys.stderr.fileno())
        os.environ.update(
            SUBMITIT_LOCAL_LOCALID=str(rank),
            SUBMITIT_LOCAL_GLOBALID=str(rank),
            SUBMITIT_LOCAL_JOB_ID=self.pid,
        )
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        try:
            process_job(self.folder)
        except Exception:  # which is in its result already
            traceback.print_exc()
            sys.exit(1)


if __name__ == "__main__":
    ForkingController(Path(sys.argv[1])).run()
