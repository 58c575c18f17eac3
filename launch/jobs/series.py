"""SeriesTask: several trainings, one after another, in the same worker processes."""

import json
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from submitit import JobEnvironment

from dist_resnet.runtime import imports
from dist_resnet.runtime.signals import COMPLETED, StopSignal
from launch.jobs.task import WorkerTask, end_with


@dataclass(frozen=True)
class SeriesTask:
    """Trains the runs of run_dirs, so that what is imported, compiled and chosen by time for the
    first serves all. Returns 'completed', or how the one ended that did not.

    warm_ups: so many of the first, whose time is not taken.
    command_began: when, by time.time(); record: the name of the file in a RUN_DIR that is to say
    how long it took from then to the end of this run, had it been the only one."""

    run_dirs: Sequence[str]
    warm_ups: int
    launcher: int
    command_began: float
    record: str

    def __call__(self) -> str:
        stop, job = StopSignal(), JobEnvironment()
        threading.Thread(target=end_with, args=(self.launcher,), daemon=True).start()
        task = WorkerTask("")
        task.join(job)
        with imports.for_good():
            from dist_resnet import worker
        once, outcome = 0.0, COMPLETED
        for number, run_dir in enumerate(self.run_dirs):
            if number:
                replace(task, attempt=number).meet(job)  # a process group has a port of its own
            began = time.time()
            if number == self.warm_ups:
                once = began - self.command_began
            outcome = worker.main(run_dir, stop, began if number else None)
            if outcome != COMPLETED:
                break
            if job.global_rank == 0 and number >= self.warm_ups:
                self._write(Path(run_dir), once + time.time() - began)
        return outcome

    def _write(self, run_dir: Path, seconds: float) -> None:
        aside = run_dir / f"{self.record}.partial"
        aside.write_text(json.dumps({"everything": seconds}))
        os.replace(aside, run_dir / self.record)
