"""DoctorTask: what `dist-resnet doctor` runs in every worker process."""

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from submitit import JobEnvironment

from dist_resnet.config import config_file
from dist_resnet.diagnosis import findings
from dist_resnet.diagnosis.findings import Report
from dist_resnet.runtime import imports
from dist_resnet.runtime.signals import COMPLETED
from launch.jobs.task import WorkerTask, end_with


@dataclass(frozen=True)
class DoctorTask(WorkerTask):
    """Examines, in every worker of a job. Nothing is to be started again."""

    max_faults: int = 0

    def __call__(self) -> str:
        with imports.for_good():
            from dist_resnet.diagnosis import doctor
        if self.launcher:
            threading.Thread(target=end_with, args=(self.launcher,), daemon=True).start()
        job, directory = JobEnvironment(), Path(self.run_dir)
        config = config_file.load(directory / findings.CONFIG)
        node = os.environ.get("SLURMD_NODENAME", job.hostname)
        report = Report(directory, job.global_rank, node)
        doctor.alone(config, directory, report, job.local_rank, job.num_tasks // job.num_nodes)
        self.join(job)
        doctor.together(config, directory, report)
        return COMPLETED
