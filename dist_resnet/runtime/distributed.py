"""World: rank, device, process group, reduce. The only reader of RANK and its kin."""

import gc
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from dist_resnet.runtime import gpus
from dist_resnet.runtime.collectives import Collectives
from dist_resnet.runtime.gpus import Gpu, Seen

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    device: torch.device
    local_rank: int = 0  # its number on its node
    local_size: int = 1
    collectives: Collectives = field(default_factory=Collectives)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The elementwise sum over all ranks, in place."""
        with self.collectives.entered("all-reduce"):
            dist.all_reduce(values)
        return values

    def stack(self, values: torch.Tensor) -> torch.Tensor:
        """Every rank's values, of one shape, on every rank: (size, *shape)."""
        everyones = [torch.empty_like(values) for _ in range(self.size)]
        with self.collectives.entered("all-gather"):
            dist.all_gather(everyones, values)
        return torch.stack(everyones)

    def exchange(self, mine: torch.Tensor, theirs: torch.Tensor, rank: int) -> None:
        """Send `mine` to another rank, and overwrite `theirs` with what it sends at the same
        time."""
        sent, received = dist.P2POp(dist.isend, mine, rank), dist.P2POp(dist.irecv, theirs, rank)
        with self.collectives.entered(f"exchange with rank {rank}"):
            for work in dist.batch_isend_irecv([sent, received]):
                work.wait()

    def from_rank0(self, value: Any) -> Any:
        """Rank 0's value (anything that pickles), on every rank."""
        box = [value]
        with self.collectives.entered("broadcast"):
            dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value (anything that pickles), in the order of the ranks, on every rank."""
        values: list[Any] = [None] * self.size
        with self.collectives.entered("all-gather"):
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, tensors: list[torch.Tensor]) -> None:
        """Overwrite the tensors with rank 0's."""
        with self.collectives.entered("broadcast"):
            for work in [dist.broadcast(tensor, src=0, async_op=True) for tensor in tensors]:
                assert work is not None
                work.wait()

    def barrier(self) -> None:
        with self.collectives.entered("barrier"):
            work = torch.zeros(1, device=self.device)
            dist.all_reduce(work)
            work.item()


@contextmanager
def connect(device: str, timeout_s: float) -> Iterator[World]:
    """Join the process group that the six environment variables name; leave it at the end.

    After an exception it is not left: the others would report a broken connection before this rank
    has told the cause.
    device: 'auto', 'cpu' or 'cuda'. A collective that waits longer than timeout_s ends the
    process."""
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
        raise RuntimeError(
            f"{', '.join(missing)} not set: start workers with `dist-resnet train` or `torchrun`"
        )
    rank, local_rank, size, local_size = (int(os.environ[name]) for name in VARIABLES[:4])
    limit = timedelta(seconds=timeout_s)
    store, _, _ = next(dist.rendezvous("env://", timeout=limit))
    mine = gpus.seen_here()
    everyone = [Seen(*seen) for seen in gather(store, "seen", rank, size, astuple(mine))]
    kind = gpus.device_of_all(device, everyone)
    chosen = choose_device(kind, local_rank, local_size, mine.gpus)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        own = Gpu.of(rank, chosen)
        gpus.require_one_each(gather(store, "gpu", rank, size, own.place))
    dist.init_process_group(
        "nccl" if chosen.type == "cuda" else "gloo",
        timeout=limit,
        store=store,
        rank=rank,
        world_size=size,
        device_id=chosen if chosen.type == "cuda" else None,
    )
    yield World(rank, size, chosen, local_rank, local_size)
    gc.collect()  # a network in DDP that outlives its group aborts the process at its exit
    dist.destroy_process_group()


def gather(store: dist.Store, key: str, rank: int, size: int, value: Any) -> list[Any]:
    """Every rank's value (of what JSON has), in the order of the ranks, on every rank; before there
    is a process group. Rank 0 alone reads them one by one."""
    store.set(f"{key}/{rank}", json.dumps(value))
    if rank == 0:
        everyones = [json.loads(store.get(f"{key}/{other}")) for other in range(size)]
        store.set(key, json.dumps(everyones))
    return json.loads(store.get(key))


def choose_device(device: str, local_rank: int, local_size: int, gpus: int) -> torch.device:
    """A worker's own device of that kind. A worker that sees one GPU takes it, since launchers may
    bind one to each."""
    if device == "cpu" or (device == "auto" and gpus == 0):
        return torch.device("cpu")
    if (gpus == 1 and local_size == 1) or (gpus == 1 and os.environ.get("CUDA_VISIBLE_DEVICES")):
        return torch.device("cuda", 0)
    if local_size > gpus:
        raise ValueError(
            f"{local_size} workers on this node but {gpus} GPUs: use --workers-per-node "
            f"{max(gpus, 1)}, "
            "or --train.device cpu"
        )
    return torch.device("cuda", local_rank)
