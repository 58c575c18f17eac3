"""configs/cluster/*.yaml: where a training runs. Checked strictly; no torch, no submitit."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional, Union

import jsonargparse

from dist_resnet.config import require, setting, yaml_file


@dataclass(frozen=True)
class Cluster:
    """Resources of a SLURM job. What is null is left to the cluster's default."""

    partition: Optional[str] = setting(None, "as sbatch --partition, and so on")
    account: Optional[str] = setting(None, "")
    qos: Optional[str] = setting(None, "")
    constraint: Optional[str] = setting(None, "")
    exclude: Optional[str] = setting(None, "nodes to keep away from")
    gpus_per_node: Optional[Union[int, str]] = setting(None, "4, or with their type a100:4")
    cpus_per_task: Optional[int] = setting(None, "")
    mem: Optional[str] = setting(None, "per node, such as 64G")
    time: int = setting(
        60, "time limit of one start, in minutes; the job is requeued until it is done"
    )
    signal: Literal["USR1", "USR2"] = setting(
        "USR2", "the signal that SLURM is to send then; USR1 where a site uses USR2 itself"
    )
    signal_delay_s: int = setting(
        120, "seconds before the time limit at which the training saves and leaves"
    )
    max_restarts: int = setting(1000, "starts after time limits; preemptions are not counted")
    max_faults: int = setting(
        5,
        "starts after workers that were killed, by a faulty node perhaps, with no new checkpoint "
        "in between",
    )
    array_parallelism: int = setting(16, "runs of a sweep that may run at once")
    setup: tuple[str, ...] = setting(
        (), "shell lines to run before the workers, such as `module load`"
    )
    code: Literal["pinned", "live"] = setting(
        "pinned",
        "pinned: every start runs the code as it was at the first submission, copied into "
        "RUN_DIR/code; live: as the checkout is then",
    )
    container: Optional[str] = setting(
        None, "an Apptainer image, such as /shared/dist_resnet.sif, in which the workers run"
    )
    python: Optional[str] = setting(
        None, "the workers' Python (the one that submits; in a container: python)"
    )
    srun_args: tuple[str, ...] = setting((), "extra arguments of srun")
    sbatch: Optional[dict[str, Any]] = setting(
        None, "any other option of sbatch, such as {reservation: night, gres: nvme:1}"
    )

    def __post_init__(self) -> None:
        gpus = "1" if self.gpus_per_node is None else str(self.gpus_per_node)
        require(
            re.fullmatch(r"([\w.-]+:)*[1-9]\d*", gpus) is not None,
            "cluster file: gpus_per_node",
            self.gpus_per_node,
            "write their number, at least 1, or type and number such as a100:4",
        )
        named = {field.name for field in dataclasses.fields(self)} & set(self.sbatch or {})
        require(
            not named, "cluster file: sbatch", sorted(named), "are keys of their own, beside sbatch"
        )
        for key in (
            "cpus_per_task",
            "time",
            "signal_delay_s",
            "max_restarts",
            "array_parallelism",
        ):
            value = getattr(self, key)
            require(
                value is None or value >= 1, f"cluster file: {key}", value, "must be at least 1"
            )
        require(
            self.max_faults >= 0, "cluster file: max_faults", self.max_faults, "must be 0 or more"
        )
        require(
            self.signal_delay_s < 60 * self.time,
            "cluster file: signal_delay_s",
            self.signal_delay_s,
            f"must be less than the time limit of {self.time} minutes",
        )

    @property
    def asks_for_gpus(self) -> bool:
        """Also by what its other options of sbatch say."""
        return self.gpus_per_node is not None or "gpu" in f"{self.sbatch}".lower()

    @property
    def number_of_gpus(self) -> int | None:
        """Of a node; None where it is not said."""
        return int(str(self.gpus_per_node).rpartition(":")[2]) if self.gpus_per_node else None


def load(path: Path | None) -> Cluster:
    """Read a cluster file. Raises ValueError for a missing file, an unknown key or a wrong type."""
    if path is None:
        return Cluster()
    remedy = "give local, debug, slurm or a file such as configs/cluster/example.yaml"
    content = yaml_file.read(path, "--cluster", remedy) or {}
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    for field in dataclasses.fields(Cluster):
        parser.add_argument(f"--{field.name}", type=field.type, default=field.default)
    known = [field.name for field in dataclasses.fields(Cluster)]
    unknown = (
        [key for key in content if key not in known] if isinstance(content, dict) else [content]
    )
    require(
        not unknown,
        f"cluster file {path}",
        unknown,
        f"no such keys; the keys are {', '.join(known)}",
    )
    return Cluster(**vars(yaml_file.parsed(parser, f"cluster file {path}", content, [])))
