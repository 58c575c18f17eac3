"""An accelerator that is none: a device of its own ('fake'), whose tensors hold memory of the CPU
that nobody else may touch. torch's registration of back ends in Python (PrivateUse1).

It shows a tensor that is made on the wrong device, which raises as on a GPU, and counts what makes
the host wait: values that are read, sizes that depend on them, copies to the CPU, tensors made
there of Python's numbers. It cannot see autocast (which no operation is registered for here),
streams and events, other copies from the CPU's unpinned memory that wait, kernels that only a GPU
has, nor how long anything takes."""

import traceback
from collections import Counter
from contextlib import nullcontext
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

from dist_resnet import worker
from dist_resnet.models.normalise import Normalise
from dist_resnet.runtime import distributed
from dist_resnet.training import optim
from dist_resnet.training.metrics import Sums


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend("fake", _Backend())
DEVICE = torch.device("fake", 0)
READS = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "equal"}
OURS = "dist_resnet"

waits: Counter[str] = Counter()  # file:function of ours -> how often the host waited there


class FakeTensor(torch.Tensor):
    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "FakeTensor":
        result = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        result.inner = inner
        return result

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), keywords=None) -> Any:
        return execute(function, arguments, keywords or {})


def execute(function: Any, arguments: tuple, keywords: dict) -> Any:
    """An operation of the fake device, by that of the CPU."""
    name = function.overloadpacket.__name__
    flat, _ = tree_flatten((arguments, keywords))
    tensors = [value for value in flat if isinstance(value, torch.Tensor)]
    strangers = [t for t in tensors if not isinstance(t, FakeTensor) and t.dim() > 0]
    copies = name in ("copy_", "_copy_from", "_to_copy", "_foreach_copy_")
    if strangers and not copies:
        raise RuntimeError(f"{name}: expected all tensors on {DEVICE}, found one on the CPU")
    leaves = _device(keywords) == "cpu"
    if name == "copy_":
        leaves = not isinstance(arguments[0], FakeTensor)
    beside = keywords.get("non_blocking") or (name == "copy_" and arguments[2:] == (True,))
    if name in READS or (leaves and name in ("copy_", "_to_copy") and not beside):
        waits[_caller()] += 1
    known = {id(t.inner): t for t in tensors if isinstance(t, FakeTensor)}
    result = function(*tree_map(_inner, arguments), **tree_map(_inner, keywords))

    def outer(out: Any) -> Any:
        if id(out) in known:
            return known[id(out)]
        return FakeTensor(out) if isinstance(out, torch.Tensor) and not leaves else out

    return tree_map(outer, result)


def _inner(value: Any) -> Any:
    if isinstance(value, FakeTensor):
        return value.inner
    if isinstance(value, torch.device) and value.type == DEVICE.type:
        return torch.device("cpu")
    return value


def _device(keywords: dict) -> str | None:
    device = keywords.get("device")
    return device.type if device is not None else None


def _caller() -> str:
    """The innermost function of ours that is being called."""
    for frame in reversed(traceback.extract_stack()):
        if f"/{OURS}/" in frame.filename:
            return f"{frame.filename.rsplit('/', 1)[1]}:{frame.name}"
    return "elsewhere"


_library = torch.library.Library("_", "IMPL")
_library.fallback(lambda function, *a, **k: execute(function, a, k), "PrivateUse1")


class _Completed(TorchFunctionMode):
    """What back ends in Python cannot answer: torch.tensor(values, device=...), and tolist."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        if function is torch.tensor and torch.device(keywords.get("device") or "cpu") == DEVICE:
            waits[_caller()] += 1  # it comes from unpinned memory
            return function(*arguments, **{**keywords, "device": "cpu"}).to(DEVICE)
        if function is torch.Tensor.tolist and isinstance(arguments[0], FakeTensor):
            waits[_caller()] += 1
            return arguments[0].inner.tolist()
        return function(*arguments, **keywords)


def _read_the_loss(sums, logits, labels, mean_loss, part=0, add=Sums.add):
    add(sums, logits, labels, mean_loss, part)
    mean_loss.item()


def _ask_for_the_norm(optimizer, scaler, norm):
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
    if max(gradient.norm() for gradient in gradients) > 1e9:
        raise RuntimeError("exploded")


PLANTS: dict[str, tuple[Any, str, Any]] = {
    "reads the loss": (Sums, "add", _read_the_loss),
    "asks for the norm": (optim, "clip", _ask_for_the_norm),
    "a mean on the CPU": (
        Normalise,
        "__call__",
        lambda self, images: images.float() - self.mean.cpu(),
    ),
}


def train(run_dir: str, plant: str | None = None) -> dict[str, int]:
    """A training on the fake accelerator to its end, or on to it, perhaps with a planted mistake;
    in a worker. Returns where the host waited, how often."""
    waits.clear()
    # `.data = ` would change a tensor's strides and leave its memory as it is
    torch.__future__.set_swap_module_params_on_conversion(True)
    with (
        mock.patch.object(distributed, "choose_device", return_value=DEVICE),
        mock.patch.object(*PLANTS[plant]) if plant else nullcontext(),
        _Completed(),
    ):
        assert worker.main(run_dir) == "completed"
    return dict(waits)
