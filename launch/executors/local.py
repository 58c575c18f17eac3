"""Runs a training's workers on this machine, under the eyes of the launcher, and reports how they
end."""

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import psutil
from rich.progress import Progress
from submitit import LocalExecutor
from submitit.core.utils import JobPaths
from submitit.local.local import LocalJob

from dist_resnet.diagnosis import hang
from dist_resnet.runtime.signals import TERMINATED, Diverged, StopSignal
from dist_resnet.tracking.tracker import progress_bar
from launch.jobs import forks, verdict
from launch.jobs.task import WorkerTask

GRACE_SECONDS = 15  # for the others, once one worker has ended
MINUTES = 60 * 24 * 365


def visible_gpus() -> list[str]:
    """The GPUs that workers may use, as CUDA_VISIBLE_DEVICES names them (numbers, UUIDs, MIG
    slices) or, without it, as nvidia-smi numbers them; without torch. What follows a name that is
    none counts for nothing, as in CUDA."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    numbers = re.findall(r"^GPU (\d+)", listed, re.MULTILINE)
    uuids = re.findall(r"UUID: ([\w/-]+)", listed)
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return numbers
    words = [word.strip() for word in allowed.split(",")]

    def names_one(word: str) -> bool:
        whole = word.startswith(("GPU-", "MIG-"))  # CUDA takes the beginning of a UUID, too
        return word in numbers or (whole and any(uuid.startswith(word) for uuid in uuids))

    return list(itertools.takewhile(names_one, words))


def default_workers(device: str) -> int:
    """One worker per GPU; on the CPU two, where there are two CPUs."""
    gpus = [] if device == "cpu" else visible_gpus()
    return len(gpus) or min(2, len(os.sched_getaffinity(0)))


def check(workers: int, device: str) -> None:
    """Raises ValueError for more workers than GPUs, where GPUs are there or asked for."""
    gpus = [] if device == "cpu" else visible_gpus()
    if (device == "cuda" or gpus) and workers > len(gpus):
        raise ValueError(
            f"--workers-per-node {workers}: this machine has {len(gpus)} usable GPUs; use at most "
            "one worker "
            "per GPU, or --train.device cpu"
        )


def train(
    run_dir: Path,
    workers: int,
    device: str,
    stop: StopSignal | None = None,
    *,
    requeues: bool = True,
) -> str:
    """Train with so many workers here. Returns 'completed' or 'terminated'.

    Ctrl-C, SIGTERM or SIGUSR2 ask the workers to save and leave, a second Ctrl-C ends them.
    requeues: whether workers that are preempted are started again here. `stop`:
    of a caller that takes the last two itself; then it may be 'paused', at stop.pause_at, or
    'preempted' too, where a worker was told before. Raises ValueError (Diverged where the training
    has) or RuntimeError with the first failed worker's message, rank and log."""
    task = WorkerTask(str(run_dir), os.getpid(), requeues=requeues)
    if stop:
        task = replace(task, pause_at=stop.pause_at, requeues=False)
    return run(task, run_dir / "logs", workers, device, stop, [run_dir])


def run(
    task: Callable[[], str],
    logs: Path,
    workers: int,
    device: str,
    stop: StopSignal | None = None,
    run_dirs: Sequence[Path] = (),
) -> str:
    """Run a task in so many workers here, as `train` does. Returns what rank 0's has returned.

    run_dirs: what it trains, where it is told who waited for whom."""
    gpus = [] if device == "cpu" else visible_gpus()
    cpus = len(os.sched_getaffinity(0))
    if not gpus and workers > cpus:
        print(
            f"warning: {workers} workers share {cpus} CPUs, and batch and learning rate may grow "
            f"with their number: --workers-per-node {cpus} gives each a CPU",
            file=sys.stderr,
            flush=True,
        )
    folder = logs / datetime.now().strftime(f"%Y%m%d-%H%M%S-{os.getpid()}")
    executor = (forks.ForkingExecutor if forks.serve(gpus) else LocalExecutor)(folder)
    executor.update_parameters(
        timeout_min=MINUTES,
        tasks_per_node=workers,
        stderr_to_stdout=True,
        gpus_per_node=workers if gpus else 0,
    )
    executor.parameters["visible_gpus"] = gpus[:workers]  # its own check knows no UUIDs
    with _signals_kept_from_children():
        job = executor.submit(task)
    return _Watch(job, folder, workers, stop, run_dirs).until_the_end()


class _Watch:
    """Shows rank 0's output live, passes on interrupts, and does not wait for the companions of a
    lost worker."""

    def __init__(
        self,
        job: LocalJob,
        folder: Path,
        workers: int,
        stop: StopSignal | None,
        run_dirs: Sequence[Path],
    ) -> None:
        self.job, self.folder, self.workers, self.stop = job, folder, workers, stop
        self.run_dirs = run_dirs
        self.controller = psutil.Process(job._process.pid)
        self.shown, self.stopping, self.in_traceback = 0, False, False
        self.short_since: float | None = None
        self.bar: Progress | None = None

    def until_the_end(self) -> str:
        callers = () if self.stop is None else (signal.SIGTERM, signal.SIGUSR2)
        handlers = {
            s: signal.signal(s, self._interrupt)
            for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
            if s not in callers and signal.getsignal(s) != signal.SIG_IGN  # as under nohup
        }
        try:
            while not self.job.done():
                self._show()
                if self.stop and self.stop.requested and not self.stopping:
                    self._interrupt(signal.SIGTERM, None)
                if self._lost_worker():
                    self._kill()
                time.sleep(0.1)
            self._show()
        finally:
            self._kill()
            if self.bar:
                self.bar.stop()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return self._verdict()

    def _interrupt(self, number: int, frame: object) -> None:
        first, self.stopping = not self.stopping, True
        if first:
            self.job._process.send_signal(signal.SIGTERM)  # the controller hands it on
            print(
                "\nstopping: the workers save and leave (again to end them at once)",
                file=sys.stderr,
                flush=True,
            )
        elif number == signal.SIGINT:
            self._kill()

    def _tasks(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            return [p for p in self.controller.children() if p.status() != psutil.STATUS_ZOMBIE]
        return []

    def _lost_worker(self) -> bool:
        """Whether some workers have gone, or reported their end, long enough ago that the rest must
        be ended."""
        running = len(self._tasks())
        short = running > 0 and (running < self.workers or any(self.folder.glob("*_result.pkl")))
        if not short:
            self.short_since = None
            return False
        if self.short_since is None:
            self.short_since = time.monotonic()
        return time.monotonic() - self.short_since > GRACE_SECONDS

    def _kill(self) -> None:
        for process in (*self._tasks(), self.controller):
            with contextlib.suppress(psutil.Error):
                process.kill()

    def _show(self) -> None:
        """Print what rank 0 has written since the last time, in whole lines."""
        path = JobPaths(self.folder, self.job.job_id, 0).stdout
        if not path.exists():
            return
        with open(path, "rb") as file:
            file.seek(self.shown)
            text = file.read()
        text = text[: text.rfind(b"\n") + 1]
        self.shown += len(text)
        for line in text.decode(errors="replace").splitlines():
            if not line.startswith("submitit ") and not self._of_traceback(line):
                self._print(line)

    def _of_traceback(self, line: str) -> bool:
        """Tracebacks stay in the log: what ended the run is told once, at the end."""
        line = re.sub(r"^\[rank\d+\]: ", "", line)
        if line.startswith(("Traceback (most", "Exception ignored in", "Thread 0x", "Current th")):
            self.in_traceback = True
        elif self.in_traceback and not line.startswith(" "):
            self.in_traceback = False  # the exception itself: the last line
            return True
        return self.in_traceback

    def _print(self, line: str) -> None:
        step = re.match(r"step +(\d+)/(\d+) ", line)
        if step and sys.stdout.isatty():
            if not self.bar:
                self.bar = progress_bar(int(step[2]))
                self.bar.start()
            self.bar.update(self.bar.task_ids[0], completed=int(step[1]))
        if self.bar:
            self.bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, flush=True)

    def _verdict(self) -> str:
        stories = (hang.story(run_dir, self.workers) for run_dir in self.run_dirs)
        failure = verdict.first_failure(
            self.folder, self.job.job_id, self.workers, hang=next(filter(None, stories), None)
        )
        if failure is None:
            return verdict.outcome(self.folder, self.job.job_id)
        if failure.whose == "unknown" and self.stopping:
            return TERMINATED  # ended at the second Ctrl-C, or before it could save
        kind = Diverged if failure.diverged else ValueError if failure.mistake() else RuntimeError
        raise kind(failure.tell())


@contextlib.contextmanager
def _signals_kept_from_children() -> Iterator[None]:
    """What children started here inherit. They ignore Ctrl-C and a hangup, which a terminal sends
    to the whole group: the launcher tells them instead. They block SIGUSR2, which would end a
    Python that is still starting: WorkerTask takes it then."""
    before = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGHUP)}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
