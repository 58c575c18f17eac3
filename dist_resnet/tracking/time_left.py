"""How long a training still takes, from the steps that it has made since it was started."""

import time

LONG_STEP = 0.1  # seconds; after shorter ones the first log line comes soon
LONG_TRAINING = 10 / 60  # hours


class TimeLeft:
    """Steps are timed from the first log on: those before it wait for compilers and caches.

    Evaluations and checkpoints are among them, as they will be among those to come."""

    def __init__(self, last_step: int) -> None:
        self.last_step = last_step
        self._begin: tuple[int, float] | None = None  # step and time
        self._timed_from_first_log = False
        self._second: tuple[int, float | None] = (-1, None)  # that step, and when it began

    def start(self, step: int) -> None:
        self._begin, self._timed_from_first_log = (step, time.monotonic()), False
        self._second = (step + 2, None)

    def first_guess(self, step: int) -> float | None:
        """Hours until the last step, by the time of the second one since `start`, where that is
        long: the first waits for compilers and caches. None after any other step."""
        second, began = self._second
        if step < second:
            self._second = (second, time.monotonic())
        if step != second or began is None or time.monotonic() - began < LONG_STEP:
            return None
        return (self.last_step - step) * (time.monotonic() - began) / 3600

    def hours(self, step: int) -> float:
        """Until the last step, at a log step after `start`."""
        assert self._begin is not None
        began, since = self._begin
        now = time.monotonic()
        left = (self.last_step - step) * (now - since) / max(1, step - began) / 3600
        if not self._timed_from_first_log:
            self._begin, self._timed_from_first_log = (step, now), True
        return left


def duration(hours: float) -> str:
    """'2 d 4 h', '3 h 12 min', '12 min' or '40 s'."""
    seconds = round(3600 * hours)
    if seconds < 60:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
