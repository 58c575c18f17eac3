"""How long a step takes at least on a device that nobody has measured: every operation at the speed
of its arithmetic or of its memory, whichever is slower, and never shorter than a launch. What a
launch takes is assumed; the rest is a bound that no step beats.

Source: Williams, Waterman and Patterson 2009, "Roofline: An Insightful Visual Performance Model for
Multicore Architectures". No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

# assumed, not measured: hosts differ
EAGER_US = 10.0  # the host's time for one operation: PyTorch's dispatch and autograd, and a launch
GRAPHED_US = 2.0  # from one kernel of a CUDA graph to the next


@dataclass(frozen=True)
class Device:
    flops: float  # dense bf16 (V100: fp16) operations per second
    bandwidth: float  # bytes per second from and to its memory


# As the makers' data sheets have them, without sparsity; the SXM variant where there are several.
DEVICES = {
    "v100": Device(125e12, 0.90e12),
    "a10": Device(125e12, 0.60e12),
    "a100": Device(312e12, 2.04e12),
    "l4": Device(121e12, 0.30e12),
    "l40s": Device(362e12, 0.86e12),
    "h100": Device(989e12, 3.35e12),
    "h200": Device(989e12, 4.80e12),
    "b200": Device(2250e12, 8.00e12),
}


@dataclass(frozen=True)
class Roofline:
    """A step of any batch, of operations that are each linear in it: `one` and `two` are their
    (floating-point operations, bytes) for a batch of one size and of twice that."""

    one: Sequence[tuple[int, int]]
    two: Sequence[tuple[int, int]]
    size: int
    device: Device
    launch: float  # seconds

    def seconds(self, batch: int) -> float:
        total, more = 0.0, batch / self.size - 1
        for (flops, moved), (flops_2, moved_2) in zip(self.one, self.two, strict=True):
            arithmetic = (flops + more * (flops_2 - flops)) / self.device.flops
            memory = (moved + more * (moved_2 - moved)) / self.device.bandwidth
            total += max(arithmetic, memory, self.launch)
        return total
