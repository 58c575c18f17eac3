"""A whole step, captured as one CUDA graph."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch

from dist_resnet.training import loop
from dist_resnet.training.loop import Training

WARM_UP_STEPS = 11  # before a capture, as the torch manual asks of networks in data parallelism


class GraphedUpdate:
    """loop.update over buffers of its own, captured once and replayed with every batch: one launch
    in place of hundreds."""

    def __init__(self, run: Training, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images, self.labels = images.clone(), labels.clone()
        for group in run.optimizer.param_groups:
            group["lr"] = torch.tensor(
                float(group["lr"]), device=run.world.device
            )  # read by the graph, changed by optim.set_lr
        with _beside(torch.cuda.Stream()):
            for _ in range(WARM_UP_STEPS):
                loop.update(run, self.images, self.labels)
        gc.collect()  # a backward graph that outlives its step would make the capture wait for it
        self.graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        with (
            _undone_where_it_fails(run.world.device, pool),
            # NCCL's watchdog and the loader have threads of their own
            torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"),
        ):
            loop.update(run, self.images, self.labels)
        self.ended = torch.cuda.Event()
        run.world.collectives.pending = lambda: not self.ended.query()

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.graph.replay()
        self.ended.record()


def release(run: Training) -> None:
    """Steps without a graph again. To be called before the process group is left, too: NCCL waits
    until no graph holds its communicator."""
    run.update = partial(loop.update, run)
    run.world.collectives.pending = None
    for group in run.optimizer.param_groups:
        group["lr"] = float(group["lr"])


@contextmanager
def _undone_where_it_fails(device: torch.device, pool: Any) -> Iterator[None]:
    """torch leaves a failed capture's stream current, and up to 2.11 its allocator in the capture:
    the next `empty_cache` or capture of this process would then fail an internal assert."""
    before = torch.cuda.current_stream()
    try:
        yield
    except BaseException:
        torch.cuda.set_stream(before)
        for undo in (torch._C._cuda_endAllocateToPool, torch._C._cuda_releasePool):
            with suppress(RuntimeError):  # where torch has done so
                undo(device.index, pool)
        raise


@contextmanager
def _beside(stream: torch.cuda.Stream) -> Iterator[None]:
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)
