"""How far a training has come, and what it has cost: kept in the checkpoint, so that it goes on
after a resume."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psutil

from dist_resnet.training.metrics import Means

THRESHOLDS = (50, 60, 70, 80, 90, 91, 92, 93, 94)  # per cent top-1
PHASES = ("start_up", "training", "evaluation", "saving")
T = TypeVar("T")


class Clock:
    """Seconds per phase over all starts of a run, from the start of the process on; laps, and the
    part of a lap spent waiting for data."""

    def __init__(self, began: float | None = None) -> None:
        """began: when this start did, by time.time(); None: with the process."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.seconds["start_up"] = time.time() - (began or psutil.Process().create_time())
        self.phase, self._since = "start_up", time.monotonic()
        self._lap_began, self._waited = time.monotonic(), 0.0
        self._carried = 0.0, 0.0  # of a lap that an earlier start of the run began

    def start(self, phase: str) -> None:
        """Book the time until now on the phase that ends, and begin a lap of the next."""
        now = time.monotonic()
        self.seconds[self.phase] += now - self._since
        self.phase, self._since, self._lap_began, self._waited = phase, now, now, 0.0

    def move(self, seconds: float, phase: str) -> None:
        """Book the last so many seconds on another phase than the current one, and take them out of
        the lap."""
        self.seconds[phase] += seconds
        self._since, self._lap_began = self._since + seconds, self._lap_began + seconds

    def total(self) -> float:
        return sum(self.seconds.values()) + time.monotonic() - self._since

    def booked(self) -> dict[str, float]:
        """Seconds per phase until now."""
        self.start(self.phase)
        return dict(self.seconds)

    def lap(self) -> tuple[float, float]:
        """(seconds since the last lap began, of which spent in `waiting`)."""
        now = time.monotonic()
        result = (
            max(now - self._lap_began, 1e-9) + self._carried[0],
            self._waited + self._carried[1],
        )
        self._lap_began, self._waited, self._carried = now, 0.0, (0.0, 0.0)
        return result

    def carry(self, lap: tuple[float, float]) -> None:
        """Count this to the next lap: its part in an earlier start of the run."""
        self._carried = lap

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """The items, with the time that each took to come counted as waiting."""
        iterator = iter(items)
        while True:
            before = time.monotonic()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self._waited += time.monotonic() - before
            yield item


@dataclass
class Progress:
    step: int = 0
    evaluated: dict[str, float] = field(default_factory=dict)  # by the last evaluation
    best_top1: float = 0.0
    best_step: int = 0
    seconds_to_top1: dict[str, float] = field(
        default_factory=dict
    )  # per cent -> seconds from the start of the run
    clock: Clock = field(default_factory=Clock)

    def note_evaluation(self, step: int, means: Means) -> None:
        self.evaluated = {"loss": means.loss, "top1": means.top1, "top5": means.top5}
        if means.top1 > self.best_top1 or not self.best_step:
            self.best_top1, self.best_step = means.top1, step
        for percent in THRESHOLDS:
            if means.top1 >= percent / 100:
                self.seconds_to_top1.setdefault(str(percent), self.clock.total())

    def state(self) -> dict[str, Any]:
        figures = {k: v for k, v in vars(self).items() if k != "clock"}
        return {**figures, "lap": list(self.clock.lap()), "seconds": self.clock.booked()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state, with this start's seconds added to the earlier ones."""
        for phase, seconds in state["seconds"].items():
            self.clock.seconds[phase] += seconds
        self.clock.carry(tuple(state["lap"]))
        for key in state.keys() - {"seconds", "lap"}:
            setattr(self, key, state[key])
