"""The precision in which a device computes: what `train.precision: auto` becomes.

oneDNN and cuDNN emulate a format that the device does not multiply, at a fraction of float32's
speed. So torch's question whether a format is supported is not the one to ask here."""

import os
import platform
import time
from dataclasses import dataclass
from typing import Literal

import torch

from dist_resnet.runtime.distributed import World

Precision = Literal["bf16", "fp16", "fp32"]
DTYPES: dict[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}
LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # variables that oneDNN obeys
TF32 = "convolutions in TF32"  # what a user is told of fp32 on a GPU
WITH_BF16 = ("BF16", "AMX", "FP16", "AVX10", "ALL", "DEFAULT")  # in their values


@dataclass(frozen=True)
class Native:
    """What a device multiplies besides float32, the better format first, and what says so."""

    formats: tuple[Precision, ...]
    reason: str


@dataclass(frozen=True)
class Settled:
    """A run's precision, why it is that, and what a user should know of it."""

    name: Precision
    reason: str = ""
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})" if self.reason else self.name


def native(device: torch.device) -> Native:
    if device.type != "cpu":
        return _gpu(device)
    if platform.machine().lower() not in ("x86_64", "amd64"):
        arm = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # there it speaks of the processor
        return Native(("bf16",), "Arm BF16") if arm else Native((), "no Arm BF16")
    limit = next((f"{name}={os.environ[name]}" for name in LIMITS if os.environ.get(name)), "")
    if limit and not any(word in limit.partition("=")[2].upper() for word in WITH_BF16):
        return Native((), f"{limit}, which has no bf16")
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    amx = capabilities.get("amx_bf16", torch.cpu._is_amx_tile_supported())
    if amx and (not limit or "AVX512_CORE_BF16" not in limit.upper()):
        return Native(("bf16",), "AMX")
    if torch.cpu._is_avx512_bf16_supported():
        return Native(("bf16",), "AVX512_BF16")
    return Native((), "neither AMX nor AVX512_BF16")


def best(device: torch.device) -> Precision:
    """What `auto` becomes on this device alone."""
    return next(iter(native(device).formats), "fp32")


def _gpu(device: torch.device) -> Native:
    major, minor = torch.cuda.get_device_capability(device)
    name = f"sm_{major}{minor}"
    if torch.cuda.is_bf16_supported(
        including_emulation=False
    ):  # of the current device: a rank's own
        return Native(("bf16", "fp16"), name)
    return Native(("fp16",) if major >= 7 else (), name)


def settle(
    asked: Precision | Literal["auto"],
    kept: Precision | None,
    usable: tuple[Precision, ...],
    world: World,
    node: str,
) -> Settled:
    """The precision of a run, on every rank alike: the one that was asked for, else the one that
    its checkpoint has (`kept`), else the best of the `usable` that every rank's device multiplies.
    Every rank calls."""
    reason = "" if asked != "auto" else "as at the run's first start"
    name = kept if asked == "auto" else asked
    if name == "fp32":
        reasons = [reason, TF32 if takes_tf32(world.device) else ""]
        return Settled(name, ", ".join(filter(None, reasons)))
    mine = native(world.device)
    everyone: list[tuple[str, Native]] = world.gather((node, mine))
    if name is None:
        common = [f for f in usable if all(f in found.formats for _, found in everyone)]
        chosen: Precision = common[0] if common else "fp32"
        return Settled(chosen, f"auto: {_decisive(chosen, usable, everyone)}")
    if all(name in found.formats for _, found in everyone):
        return Settled(name, reason)
    costs = world.gather(0.0 if name in mine.formats else slowness(world.device, name))
    rank = costs.index(max(costs))
    where, found = everyone[rank]
    remedy = (
        "the run keeps it, since another precision would be another training"
        if kept
        else "--train.precision auto takes what every device multiplies itself"
    )
    told = f"{name} is emulated on {where} ({found.reason}): a convolution takes "
    return Settled(name, reason, (f"{told}{costs[rank]:.1f} times as long as in fp32; {remedy}",))


def takes_tf32(device: torch.device) -> bool:
    """Whether what is called fp32 is less than that where it convolves: torch's default."""
    if device.type != "cuda" or not torch.backends.cudnn.allow_tf32:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _decisive(
    name: Precision, usable: tuple[Precision, ...], everyone: list[tuple[str, Native]]
) -> str:
    """Why it is this format: what all devices say, or the first that lacks a better one which
    another has."""
    better = set(usable[: usable.index(name)] if name in usable else usable)
    somewhere = better & {f for _, found in everyone for f in found.formats}
    for rank, (node, found) in enumerate(everyone):
        if not somewhere <= set(found.formats):
            return f"rank {rank} on {node}: {found.reason}"
    return ", ".join(sorted({found.reason for _, found in everyone}))


def slowness(device: torch.device, name: str) -> float:
    """How many times as long as in float32 a convolution of these networks takes in a format,
    forward and backward."""
    took = {dtype: _seconds(device, dtype) for dtype in (torch.float32, DTYPES[name])}
    return took[DTYPES[name]] / took[torch.float32]


def _seconds(device: torch.device, dtype: torch.dtype) -> float:
    """The shorter of two, after one that does not count."""
    images = torch.ones(16, 32, 16, 16, device=device, dtype=dtype, requires_grad=True)
    weight = torch.ones(32, 32, 3, 3, device=device, dtype=dtype, requires_grad=True)
    images, weight = (t.to(memory_format=torch.channels_last) for t in (images, weight))
    times = []
    for _ in range(3):
        began = time.perf_counter()
        torch.autograd.grad(torch.conv2d(images, weight, padding=1).sum(), [images, weight])
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times[1:])
