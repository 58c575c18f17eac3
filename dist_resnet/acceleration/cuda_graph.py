"""Before the first step: compile, choose algorithms, capture the step as one CUDA graph; without a
trace in the training."""

from collections.abc import Iterator
from contextlib import contextmanager
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
        self.images, self.labels = images, labels
        for group in run.optimizer.param_groups:
            group["lr"] = torch.tensor(
                float(group["lr"]), device=run.world.device
            )  # read by the graph, changed by optim.set_lr
        with _beside(torch.cuda.Stream()):
            for _ in range(WARM_UP_STEPS):
                loop.update(run, images, labels)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            self.graph, capture_error_mode="thread_local"
        ):  # NCCL's watchdog and the loader have threads of their own
            loop.update(run, images, labels)

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.graph.replay()


def warm_up(run: Training) -> None:
    """Takes what time it takes before the clock of the training starts, where there is anything to
    compile or to capture.

    To be called after a resume: a graph holds on to the tensors that it has seen."""
    settings = run.config.train
    if settings.compile == "none" and not settings.cuda_graph:
        return
    if settings.cuda_graph and run.world.device.type != "cuda":
        raise ValueError("train.cuda_graph = True: there is no GPU; leave it out")
    order = loop.epoch_order(run, 0)[: run.plan.local_batch]
    images, labels = next(batches := run.train_data.batches(order))
    images, labels = images.clone(), labels.clone()
    batches.close()
    run.model.train()
    with _restored(run):
        if settings.cuda_graph:
            run.update = GraphedUpdate(run, images, labels)
        else:
            loop.update(run, images, labels)


def release(run: Training) -> None:
    """To be called before the process group is left: NCCL waits until no graph holds its
    communicator."""
    run.update = partial(loop.update, run)


@contextmanager
def _beside(stream: torch.cuda.Stream) -> Iterator[None]:
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


@contextmanager
def _restored(run: Training) -> Iterator[None]:
    """Weights, statistics, momenta, the scaler and the sums are afterwards what they were, in the
    very same memory."""
    before = {place: tensor.clone() for place, tensor in _changed_by_a_step(run)}
    scaler = run.scaler.state_dict()
    try:
        yield
    finally:
        with torch.no_grad():
            for place, tensor in _changed_by_a_step(run):
                if place in before:
                    tensor.copy_(before[place])
                else:  # made by the optimizer only now: it starts at zero
                    tensor.zero_()
        run.scaler.load_state_dict(scaler)


def _changed_by_a_step(run: Training) -> Iterator[tuple[Any, torch.Tensor]]:
    """(where it is, tensor)."""
    yield "sums", run.sums.totals
    owners = [*enumerate(run.optimizer.param_groups), *run.optimizer.state.items()]
    for where, values in (("model", run.model.module.state_dict()), *owners):
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                yield (where, key), value
