"""A whole step, captured as one CUDA graph."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

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
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            self.graph, capture_error_mode="thread_local"
        ):  # NCCL's watchdog and the loader have threads of their own
            loop.update(run, self.images, self.labels)

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.graph.replay()


def release(run: Training) -> None:
    """Steps without a graph again. To be called before the process group is left, too: NCCL waits
    until no graph holds its communicator."""
    run.update = partial(loop.update, run)
    for group in run.optimizer.param_groups:
        group["lr"] = float(group["lr"])


@contextmanager
def _beside(stream: torch.cuda.Stream) -> Iterator[None]:
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)
