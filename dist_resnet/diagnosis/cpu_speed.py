"""What this machine's CPU reaches, in the terms of a data sheet."""

import time
from collections.abc import Callable

import torch

SIDE, CHANNELS, BATCH = 32, 64, 64  # of a convolution as they have them
COPIED = 64 << 20  # bytes: more than a cache holds
ROUNDS = 5  # the best counts


def measure(dtype: torch.dtype) -> tuple[float, float]:
    """(operations per second of a 3x3 convolution in this precision, bytes per second read and
    written by a copy), with torch's number of threads."""
    images = torch.randn(BATCH, CHANNELS, SIDE, SIDE)
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3)
    images, weight = (t.to(dtype, memory_format=torch.channels_last) for t in (images, weight))
    source = torch.ones(COPIED, dtype=torch.uint8)
    target = torch.empty_like(source)
    operations = 2 * images.numel() * CHANNELS * 9
    with torch.no_grad():
        convolution = _best(lambda: torch.conv2d(images, weight, padding=1))
    return operations / convolution, 2 * COPIED / _best(lambda: target.copy_(source))


def _best(work: Callable[[], object]) -> float:
    """Seconds."""
    work()
    found = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return min(found)
