"""How long a training will take on how many workers: the steps of one worker, measured or from a
data sheet, and the alpha-beta model of a ring all-reduce.

Source: Thakur, Rabenseifner and Gropp 2005, "Optimization of Collective Communication Operations in
MPICH", section 4.5. Nothing of the all-reduce is taken to be hidden behind the backward pass: times
are upper bounds. No torch."""

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dist_resnet.config import Batch, Config, Scaling, schedule
from dist_resnet.reports.roofline import Roofline

BATCHES = [2**k for k in range(4, 13)]  # per worker, to choose the best from


@dataclass(frozen=True)
class Link:
    """What a worker can send: bytes per second, and seconds until the first byte arrives."""

    bandwidth: float
    latency: float

    @classmethod
    def parse(cls, bandwidth: str, latency: str) -> "Link":
        """'25GBps' or '200Gbps'; '20us' or '0.1ms'. Raises ValueError."""
        rate = re.fullmatch(r"(\d+(?:\.\d+)?)([MGT])(B|b)ps", bandwidth)
        wait = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms)", latency)
        if rate is None:
            raise ValueError(f"--link = {bandwidth!r}: write 25GBps (bytes) or 200Gbps (bits)")
        if wait is None:
            raise ValueError(f"--latency = {latency!r}: write 20us or 0.1ms")
        unit = {"M": 1e6, "G": 1e9, "T": 1e12}[rate[2]] / (8 if rate[3] == "b" else 1)
        return cls(float(rate[1]) * unit, float(wait[1]) * {"us": 1e-6, "ms": 1e-3}[wait[2]])

    @classmethod
    def read(cls, path: Path) -> "Link":
        """As `dist-resnet doctor` has measured it. Raises ValueError."""
        try:
            measured = json.loads(path.read_text())
            return cls(float(measured["bytes_per_second"]), float(measured["seconds"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"--link {path}: not what `dist-resnet doctor` measures ({error!r}); name its "
                "link.json, or write 25GBps"
            ) from None

    def all_reduce(self, size: float, workers: int) -> float:
        """Seconds for `size` bytes: reduce-scatter and all-gather along a ring."""
        if workers == 1:
            return 0.0
        return (
            2 * (workers - 1) * self.latency + 2 * (workers - 1) / workers * size / self.bandwidth
        )


@dataclass(frozen=True)
class Step:
    """Seconds of one worker's step: fixed + per_sample * batch."""

    fixed: float
    per_sample: float

    @classmethod
    def fit(cls, measured: Sequence[tuple[int, float]]) -> "Step":
        """Least squares over (batch, seconds); from a single batch, time is taken to be
        proportional to the batch."""
        batches = {batch for batch, _ in measured}
        if len(batches) == 1:
            return cls(0.0, sum(s for _, s in measured) / len(measured) / batches.pop())
        mean_b, mean_s = (sum(column) / len(measured) for column in zip(*measured))
        slope = sum((b - mean_b) * (s - mean_s) for b, s in measured) / sum(
            (b - mean_b) ** 2 for b, _ in measured
        )
        return cls(max(0.0, mean_s - slope * mean_b), slope)

    def seconds(self, batch: int) -> float:
        return self.fixed + self.per_sample * batch


def estimate(
    config: Config,
    step: Step | Roofline,
    link: Link,
    gradient_bytes: float,
    samples: int,
    workers: int,
    batch: int,
) -> dict[str, float | None]:
    """Milliseconds of a step and of its all-reduce, images/s, efficiency against as many lone
    workers, seconds of an epoch, and hours to the last step under both milestone policies; None
    where the batch is too large for the recipe."""
    alone, exchange = step.seconds(batch), link.all_reduce(gradient_bytes, workers)
    seconds = alone + exchange
    row: dict[str, float | None] = {
        "workers": workers,
        "batch per worker": batch,
        "global batch": workers * batch,
        "step, ms": 1e3 * seconds,
        "all-reduce, ms": 1e3 * exchange,
        "images/s": workers * batch / seconds,
        "efficiency, %": 100 * alone / seconds,
        "epoch, s": samples / (workers * batch) * seconds,
    }
    policies: tuple[Literal["samples", "steps"], ...] = ("samples", "steps")
    for policy in policies:
        try:
            changed = dataclasses.replace(
                config, batch=Batch(per_worker=batch), scaling=Scaling(config.scaling.lr, policy)
            )
            row[f"hours ({policy})"] = (
                schedule.plan(changed, workers, samples).last_step * seconds / 3600
            )
        except ValueError:
            row[f"hours ({policy})"] = None
    return row


def best_batch(
    config: Config,
    step: Step | Roofline,
    link: Link,
    gradient_bytes: float,
    samples: int,
    workers: int,
) -> dict[str, float | None] | None:
    """The estimate with the batch per worker that takes the fewest hours at the same number of
    images."""
    rows = [
        estimate(config, step, link, gradient_bytes, samples, workers, batch) for batch in BATCHES
    ]
    return min(
        (row for row in rows if row["hours (samples)"] is not None),
        key=lambda row: row["hours (samples)"] or 0.0,
        default=None,
    )
