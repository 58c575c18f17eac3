"""configs/cluster/*.yaml: where a training runs. Checked strictly; no torch, no submitit."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import jsonargparse
import yaml

from dist_resnet.config import knob, require


@dataclass(frozen=True)
class Cluster:
    """Resources of a SLURM job. What is null is left to the cluster's default."""

    partition: Optional[str] = knob(None, "as sbatch --partition, and so on")
    account: Optional[str] = knob(None, "")
    qos: Optional[str] = knob(None, "")
    constraint: Optional[str] = knob(None, "")
    exclude: Optional[str] = knob(None, "nodes to keep away from")
    gpus_per_node: Optional[int] = knob(None, "")
    cpus_per_task: Optional[int] = knob(None, "")
    mem: Optional[str] = knob(None, "per node, such as 64G")
    time: int = knob(60, "time limit of one start, in minutes; the job is requeued until it is done")
    signal_delay_s: int = knob(120, "seconds before the time limit at which the training saves and leaves")
    max_restarts: int = knob(1000, "starts after time limits; preemptions are not counted")
    max_faults: int = knob(5, "starts after workers that were killed, by a faulty node perhaps")
    array_parallelism: int = knob(16, "runs of a sweep that may run at once")
    setup: tuple[str, ...] = knob((), "shell lines to run before the workers, such as `module load`")
    srun_args: tuple[str, ...] = knob((), "extra arguments of srun")

    def __post_init__(self) -> None:
        for key in ("gpus_per_node", "cpus_per_task", "time", "signal_delay_s", "max_restarts", "array_parallelism"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"cluster file: {key}", value, "must be at least 1")
        require(self.max_faults >= 0, "cluster file: max_faults", self.max_faults, "must be 0 or more")
        require(self.signal_delay_s < 60 * self.time, "cluster file: signal_delay_s", self.signal_delay_s,
                f"must be less than the time limit of {self.time} minutes")


def load(path: Path | None) -> Cluster:
    """Read a cluster file. Raises ValueError for a missing file, an unknown key or a wrong type."""
    if path is None:
        return Cluster()
    if not path.is_file():
        raise ValueError(f"--cluster {path}: no such file; give local, debug, slurm or a file such as configs/cluster/example.yaml")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    for field in dataclasses.fields(Cluster):
        parser.add_argument(f"--{field.name}", type=field.type, default=field.default)
    try:
        return Cluster(**vars(parser.parse_object(yaml.safe_load(path.read_text()) or {})))
    except (jsonargparse.ArgumentError, yaml.YAMLError, TypeError) as error:
        keys = ", ".join(field.name for field in dataclasses.fields(Cluster))
        raise ValueError(f"cluster file {path}: {' '.join(str(error).split())}; the keys are {keys}") from None
