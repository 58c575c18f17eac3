"""A budget of launches: what a GPU would be asked to do for a step, counted by the dispatcher
without one."""

import dataclasses
import sys
from collections import Counter
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dist_resnet import worker
from dist_resnet.acceleration import fast_paths
from dist_resnet.config import config_file, for_device
from dist_resnet.data import loader
from dist_resnet.models import fused_norm, triton_add_relu
from dist_resnet.models.step_cost import FREE
from dist_resnet.runtime import distributed
from dist_resnet.runtime.signals import StopSignal
from dist_resnet.training import loop
from dist_resnet.training.progress import Progress


class Launches(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        if name not in FREE:
            self.counts[name] += 1
        return function(*arguments, **(keywords or {}))


def launches(run_dir) -> tuple[int, int]:
    """(of an eager step, of a batch) with what a GPU gets, but for the CUDA graph, whose step is
    four; in a worker."""
    config = config_file.load(run_dir / "config.yaml")
    with (
        distributed.connect("cpu", 120) as world,
        loader.betons_of(config, run_dir, world) as (data_dir, betons),
        mock.patch.object(for_device, "settle", as_on_a_gpu),
        mock.patch.object(fused_norm, "_can_be_fused", return_value=False),  # the CPU's own
    ):
        config, _ = worker.settle(config, betons, world)
        run = worker.build(config, run_dir, data_dir, betons, world, StopSignal(), Progress())
        fast_paths.engage(run)
        one = partial(triton_add_relu.add_relu, one=torch.maximum)  # a launch, of whatever
        fused_norm.take_add_relu(run.model.module, one)
        images, labels = fast_paths.first_batch(run, 0)
        batch = run.normalise(images), labels  # as the kernel leaves them
        run.model.train()
        loop.train_step(run, batch, 0.1)
        with Launches() as step:
            loop.train_step(run, batch, 0.1)
        run.train_data.kernel = lambda *_: images.permute(0, 2, 3, 1)  # the one launch left out
        batches = run.train_data.batches(np.arange(len(labels)))
        with Launches() as delivery:
            next(batches)
    return sum(step.counts.values()), 1 + sum(delivery.counts.values())


def calls(run_dir) -> float:
    """What Python calls for a batch and a step whose kernel and graph are launched, on average over
    an epoch; in a worker."""
    config = config_file.load(run_dir / "config.yaml")
    with (
        distributed.connect("cpu", 120) as world,
        loader.betons_of(config, run_dir, world) as (data_dir, betons),
    ):
        config, _ = worker.settle(config, betons, world)
        run = worker.build(config, run_dir, data_dir, betons, world, StopSignal(), Progress())
        one = torch.zeros(2, 32, 32, 3)

        def kernel(images, ids, epoch, how):
            how.keys(epoch)
            return one

        run.train_data.kernel, run.update = kernel, lambda images, labels: None
        made: list[str] = []
        sys.setprofile(lambda frame, event, called: made.append(event))
        for _ in loop.train_epoch(run):
            pass
        sys.setprofile(None)
    return sum(event in ("call", "c_call") for event in made) / run.plan.steps_per_epoch


def as_on_a_gpu(config, device, settle=for_device.settle):
    train = dataclasses.replace(settle(config, "cuda").train, cuda_graph=False)
    return dataclasses.replace(config, train=train)


@pytest.mark.parametrize("name, budget", [("resnet20", 156), ("resnet110", 741)])
def test_a_step_and_a_batch_take_no_more_launches_than_before(
    workers, config_path, tmp_path, name, budget
):
    """ResNet-110 has 109 convolutions, each with BN and ReLU, forward and backward, and 54 sums,
    of which the forward ones come with a ReLU: 708."""
    small = ("--model.name", name, "--model.width", 1, "--batch.global", 2)
    small += ("--train.precision", "bf16")
    workers.make(config_path, tmp_path / "run", *small, "--train.all_reduce", "auto")
    assert workers.call(launches, tmp_path / "run") == [(budget, 2)]


def test_a_step_on_a_gpu_takes_no_more_of_the_hosts_calls_than_before(
    workers, config_path, tmp_path
):
    """A GPU that gets a small network's step as one graph waits for Python."""
    workers.make(config_path, tmp_path / "run", "--batch.global", 2)
    (found,) = workers.call(calls, tmp_path / "run")
    assert found < 65
