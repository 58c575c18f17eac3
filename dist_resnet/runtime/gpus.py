"""Which GPU a worker has, and whether it has it to itself."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed import Store

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

    @classmethod
    def of(cls, rank: int, device: torch.device) -> "Gpu":
        found: Any = torch.cuda.get_device_properties(device)  # its stubs lack the bus
        bus_id = f"{found.pci_domain_id:04x}:{found.pci_bus_id:02x}:{found.pci_device_id:02x}"
        free, total = torch.cuda.mem_get_info(device)
        host = socket.gethostname()
        return cls(rank, host, str(found.uuid), bus_id, found.name, free, total)


def require_one_each(store: Store, mine: Gpu, size: int) -> None:
    """Raises ValueError on every rank where two have one GPU, before NCCL refuses it in words of
    its own."""
    store.set(f"gpu/{mine.rank}", f"{mine.host} {mine.uuid} {mine.bus_id}")
    if mine.rank == 0:
        everyones = [store.get(f"gpu/{rank}").decode() for rank in range(size)]
        store.set("gpu/shared", shared(everyones))
    if told := store.get("gpu/shared").decode():
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
