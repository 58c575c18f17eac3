"""Trainings whose fast paths are broken on purpose, in a worker; and as if the CPU were a GPU."""

import contextlib
import os
from unittest import mock

import torch
from torch import nn

from dist_resnet import worker
from dist_resnet.acceleration import casting, comparison, cuda_graph, fast_paths
from dist_resnet.config import for_device
from dist_resnet.models import fused_norm
from dist_resnet.training.data_parallel import FlatAllReduce


def train(run_dir: str, fault: str = "none") -> str:
    """A training to its end, with every fast path that a GPU would get, and compared as there."""
    patch = mock.patch.object
    settle = for_device.settle
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch(fast_paths, "COMPARED", {"cpu"}))
        stack.enter_context(
            patch(for_device, "settle", lambda config, device: settle(config, "cuda"))
        )
        if fault in ("kernel", "pixel"):
            stack.enter_context(with_kernel(fault == "pixel"))
        if fault == "addition":
            stack.enter_context(with_wrong_additions())
        for broken in FAULTS.get(fault, ()):
            stack.enter_context(patch(*broken))
        return worker.main(run_dir)


def by_torchs_operations(run_dir: str) -> str:
    """A training on the CPU without its own loops, as on other devices."""
    with mock.patch.object(fused_norm, "_can_be_fused", return_value=False):
        return worker.main(run_dir)


@contextlib.contextmanager
def with_kernel(broken: bool):
    """The kernel for crop, flip and normalisation; without a GPU in triton's interpreter."""
    paths, on_gpu = fast_paths.paths, torch.cuda.is_available()

    def with_pixels(run, settled, compares):
        if not on_gpu:
            yield fast_paths.crop_flip(run, run.train_data)
        yield from paths(run, settled, compares)

    with mock.patch.dict(os.environ, {} if on_gpu else {"TRITON_INTERPRET": "1"}):
        from dist_resnet.data import triton_augment

        original = triton_augment.crop_flip

        def shifted(*arguments, **others):
            return original(*arguments, **others).roll(1, 2)

        with (
            mock.patch.object(fast_paths, "paths", with_pixels),
            mock.patch.object(triton_augment, "crop_flip", shifted if broken else original),
        ):
            yield


@contextlib.contextmanager
def with_wrong_additions():
    """What ends a residual block on a GPU, and subtracts."""
    from dist_resnet.models import triton_add_relu

    paths = fast_paths.paths

    def with_additions(run, settled, compares):
        if not torch.cuda.is_available():
            yield fast_paths.additions(run, fast_paths.Steps(run, compares))
        yield from paths(run, settled, compares)

    with (
        mock.patch.object(fast_paths, "paths", with_additions),
        mock.patch.object(triton_add_relu, "add_relu", lambda a, b: torch.relu(a - b)),
        mock.patch.object(fused_norm, "_can_be_fused", return_value=False),  # which is the CPU's
    ):
        yield


def _wrong_copies(tensors, dtype):
    return tuple(t.to(torch.float16).to(dtype) for t in tensors)


def _compile_to_nonsense(network: nn.Module, **options) -> None:
    network._compiled_call_impl = lambda x: 1.5 * network.forward(x)


def _unsent(model: FlatAllReduce, mine: torch.Tensor) -> torch.Tensor:
    return mine * model.world.size


def _no_compiler(network: nn.Module, **options) -> None:
    raise OSError("no C compiler found\nin many lines")


def _spoilt_capture(*_) -> None:
    """As torch ends one: what it tells is not the cause."""
    try:
        raise RuntimeError("a step that reads the loss")
    finally:
        raise RuntimeError("operation failed due to a previous error during capture")


def _in_little_memory(run, images, labels, steps=comparison.steps_of):
    """Enough for float32 steps of five images."""
    if run.config.train.precision == "fp32" and len(images) > 5:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmuch")
    return steps(run, images, labels)


def _no_memory(run, images, labels) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


FAULTS = {
    "capture": [(cuda_graph, "GraphedUpdate", _spoilt_capture)],
    "little memory": [(comparison, "steps_of", _in_little_memory)],
    "no memory": [(comparison, "steps_of", _no_memory)],
    "cast": [(casting, "_copies", _wrong_copies)],
    "all_reduce": [(FlatAllReduce, "_all_reduced", _unsent)],
    "compiled": [(nn.Module, "compile", _compile_to_nonsense)],
    "compiler": [(nn.Module, "compile", _no_compiler)],
}
