"""Which GPU a worker has, and whether it has it to itself."""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dist_resnet.runtime import slurm_job

# variables by which SLURM tells a task on a node of the GPUs that its job has there
ASKED = ("SLURM_GPUS_ON_NODE", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
BUSY = 0.1  # of its memory, in use before this training has begun


@dataclass(frozen=True)
class Gpu:
    rank: int
    host: str
    uuid: str  # a MIG slice has its own
    bus_id: str
    name: str
    free: int  # bytes
    total: int

    @property
    def place(self) -> str:
        """Where it is, in three words."""
        return f"{self.host} {self.uuid} {self.bus_id}"

    @classmethod
    def of(cls, rank: int, device: torch.device) -> "Gpu":
        found: Any = torch.cuda.get_device_properties(device)  # its stubs lack the bus
        bus_id = f"{found.pci_domain_id:04x}:{found.pci_bus_id:02x}:{found.pci_device_id:02x}"
        free, total = torch.cuda.mem_get_info(device)
        host = socket.gethostname()
        return cls(rank, host, str(found.uuid), bus_id, found.name, free, total)


@dataclass(frozen=True)
class Seen:
    """What a worker sees of GPUs. asked: whether its SLURM job has asked for some."""

    node: str
    gpus: int
    asked: bool


def seen_here() -> Seen:
    asked = "SLURMD_NODENAME" in os.environ and any(os.environ.get(name) for name in ASKED)
    return Seen(slurm_job.node(), torch.cuda.device_count(), asked)


def device_of_all(device: str, everyone: Sequence[Seen]) -> str:
    """'cpu' or 'cuda': what train.device means for all ranks alike. Raises RuntimeError on every
    rank where some have GPUs and others do not, or where GPUs were asked for and one has none."""
    asked = any(seen.asked for seen in everyone)
    with_gpus = [rank for rank, seen in enumerate(everyone) if seen.gpus]
    if device == "cpu" or (device == "auto" and not with_gpus and not asked):
        return "cpu"
    without = next((rank for rank, seen in enumerate(everyone) if not seen.gpus), None)
    if without is None:
        return "cuda"
    other = f"rank {with_gpus[0]} on {everyone[with_gpus[0]].node} does" if with_gpus else ""
    why = other or ("the job has asked for GPUs" if asked else "GPUs are asked for")
    node = everyone[without].node
    raise RuntimeError(
        f"train.device = {device!r}: rank {without} on {node} sees no GPU, and {why}: see what "
        f"`nvidia-smi` says there; leave that node out (sbatch --exclude={node}), or train on CPUs "
        "(--train.device cpu)"
    )


def require_one_each(places: Sequence[str]) -> None:
    """Raises ValueError where two ranks have one GPU, before NCCL refuses it in words of its own.
    places: of every rank's Gpu."""
    if told := shared(places):
        raise ValueError(told)


def shared(gpus: Sequence[str]) -> str:
    """What is wrong with 'host uuid bus' of every rank; '' where nothing is."""
    first: dict[str, int] = {}
    for rank, gpu in enumerate(gpus):
        other = first.setdefault(gpu, rank)
        if other != rank:
            host, _, bus_id = gpu.split()
            return (
                f"ranks {other} and {rank} have the same GPU, {bus_id} on {host}: start one worker "
                "per GPU (--workers-per-node), or bind one to each (srun --gpus-per-task 1)"
            )
    return ""


def busy(gpu: Gpu) -> str | None:
    """A line about a GPU that others use; None where nobody does."""
    if gpu.total - gpu.free <= BUSY * gpu.total:
        return None
    return (
        f"rank {gpu.rank}'s {gpu.name} ({gpu.bus_id} on {gpu.host}) has {gpu.free / 2**30:.1f} of "
        f"{gpu.total / 2**30:.1f} GiB free: other processes use it, and it may be slow or too small"
    )
