"""Which rank holds the others up. All wait for the slowest at the all-reduce, so that their steps
take equally long: what is compared is what comes before it."""

import statistics
import time
from typing import Any

import torch
from torch import nn

from dist_resnet.runtime.distributed import World

SLOW = 1.5  # times the median
SHARE = 0.05  # of the time of a step, below which nobody is held up


class Pace:
    """Seconds that this rank's forward passes take, of a network in data parallelism. On a GPU
    they are measured there, and read at the end of a lap. A CUDA graph's are not seen."""

    def __init__(self, model: nn.Module, world: World) -> None:
        self.world, self._gpu = world, world.device.type == "cuda"
        self._began: Any = None
        self._spans: list[tuple[Any, Any]] = []
        model.register_forward_pre_hook(self._begin)
        model.register_forward_hook(self._end)

    def slowest(self, waited: float, seconds: float) -> str | None:
        """What to say of a lap of so many seconds, of which this rank has waited some for data.
        Every rank calls: one small all-gather."""
        own = torch.tensor([waited, self._lap()], dtype=torch.float64, device=self.world.device)
        rows = self.world.stack(own).tolist()
        totals = [data + forward for data, forward in rows]
        most, usual = max(totals), statistics.median_low(totals)
        if most < SLOW * usual or most < SHARE * seconds:
            return None
        slowest = totals.index(most)
        data = rows[slowest][0] / most
        return (
            f"rank {slowest} is the slowest: {most / usual:.1f} times the median's time for data "
            f"and forward pass ({data:.0%} of it waiting for data); all wait for it"
        )

    def _lap(self) -> float:
        spans, self._spans = self._spans, []
        if self._gpu:
            return sum(begin.elapsed_time(end) for begin, end in spans) / 1e3
        return sum(end - begin for begin, end in spans)

    def _begin(self, *_: Any) -> None:
        self._began = self._now()

    def _end(self, *_: Any) -> None:
        if self._began is not None:
            self._spans.append((self._began, self._now()))

    def _now(self) -> Any:
        if not self._gpu:
            return time.perf_counter()
        if torch.cuda.is_current_stream_capturing():
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
