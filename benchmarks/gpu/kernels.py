"""Our two kernels against their references in torch's operations, and their bandwidth beside that
of a copy."""

import os
from collections.abc import Callable

import torch

from benchmarks.gpu.task import Task, cause
from dist_resnet.data import sampling
from dist_resnet.data.sampling import Augment
from dist_resnet.models.normalise import Normalise

DTYPES = {"uint8": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SIZES = ((32, 32), (7, 13), (31, 33))
MEAN, STD = [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]


def kernels(task: Task) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before they are imported
    for name, check in (("crop_flip", crop_flip), ("add_relu", add_relu)):
        try:
            check(task, device)
        except Exception as error:  # of triton's many kinds
            task.row(kernel=name, error=cause(error))
    if device.type == "cuda":
        bandwidth(task, device)


def crop_flip(task: Task, device: torch.device) -> None:
    from dist_resnet.data import triton_augment

    draw = torch.Generator().manual_seed(0)
    for (height, width), (name, dtype), cutout in (
        (size, kind, hole) for size in SIZES for kind in DTYPES.items() for hole in (0, 5)
    ):
        if task.small and (height, name) not in ((7, "uint8"), (7, "fp32")):
            continue
        count = 4 if task.small else 50_000 if height == 32 else 1000
        images = torch.randint(0, 256, (count, height, width, 3), generator=draw, dtype=torch.uint8)
        images, ids = images.to(device), torch.randperm(count, generator=draw).to(device)
        how = Augment(3, 2, "alternating", (1, 200, 77), cutout)
        normalise = Normalise.of(MEAN, STD, dtype or torch.float32, device)
        expected = sampling.augment(images, ids, 3, how)
        table = None
        if dtype is not None:
            table = normalise.table()
            expected = normalise(expected.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        found = triton_augment.crop_flip(images, ids, 3, how, table)
        wrong = int((found != expected).sum())
        about = {"of": f"{count} of {height}x{width}, cutout {cutout}", "dtype": name}
        task.row(kernel="crop_flip", **about, wrong_values=wrong)


def add_relu(task: Task, device: torch.device) -> None:
    from dist_resnet.models import triton_add_relu

    draw = torch.Generator().manual_seed(0)
    for name, dtype in list(DTYPES.items())[1:]:
        if task.small and name == "bf16":  # triton's interpreter cuts it off
            continue
        shape = (3, 5, 7, 13) if task.small else (129, 17, 31, 33)
        left, right, dy = (
            torch.randn(shape, generator=draw).to(device, dtype, memory_format=torch.channels_last)
            for _ in range(3)
        )
        left[0, 0, 0, :4] = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0])
        ends = []
        for way in (triton_add_relu.add_relu, lambda a, b: torch.relu(a + b)):
            a, b = left.clone().requires_grad_(), right.clone().requires_grad_()
            y = way(a, b)
            y.backward(dy)
            ends.append((y.detach(), a.grad, b.grad))
        parts = {
            part: int((one.nan_to_num(7.0) != other.nan_to_num(7.0)).sum())
            for part, one, other in zip(("forward", "left's gradient", "right's"), *ends)
        }
        task.row(kernel="add_relu", of=str(tuple(shape)), dtype=name, wrong_values=parts)


def bandwidth(task: Task, device: torch.device) -> None:
    """GB/s of what must be read and written. A copy of as much is the most that can be had."""
    from dist_resnet.data import triton_augment
    from dist_resnet.models import triton_add_relu

    images = torch.randint(0, 256, (50_000, 32, 32, 3), dtype=torch.uint8, device=device)
    ids, how = torch.randperm(50_000, device=device), Augment(0, 4, "random", (1, 2, 3))
    table = Normalise.of(MEAN, STD, torch.bfloat16, device).table()
    a, b = (torch.randn(2**28, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    size, moved = a.numel() * a.element_size(), 3 * images.numel()
    for name, call, count in (
        ("copy", lambda: out.copy_(a), 2 * size),
        ("add_relu", lambda: triton_add_relu.launch(a, b), 3 * size),
        ("torch's add and relu", lambda: torch.relu(a + b), 3 * size),
        ("crop_flip", lambda: triton_augment.crop_flip(images, ids, 0, how, table), moved),
    ):
        task.row(kernel=name, gb_per_second=round(count / seconds(call) / 1e9))


def seconds(call: Callable[[], object], repeats: int = 20) -> float:
    for _ in range(3):
        call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / repeats
