"""How all ranks agree to leave after the same step, though a signal reaches them at different
times, or only some."""

import time

import torch

from dist_resnet.runtime.distributed import World
from dist_resnet.runtime.signals import PAUSED, PREEMPTED, TERMINATED, StopSignal

VOTE_SECONDS = 1.0


class StopVote:
    """Asked after every step; votes every second or so, however long the steps take.

    The next step at which the ranks vote follows from the time of a step that they measured, which
    is part of what they exchange."""

    def __init__(self, stop: StopSignal, world: World) -> None:
        self.stop, self.world = stop, world
        self.last: tuple[int, float] | None = None  # step and time of the last vote
        self.seconds_per_step, self.due, self.gap = 0.0, 0, 1

    def requested(self, step: int) -> str | None:
        """'preempted', 'terminated', 'paused' or None, on every rank alike. One small all-reduce
        where a vote is due."""
        if self.stop.pause_at is not None and step >= self.stop.pause_at:
            return PAUSED
        if step < self.due:
            return None
        mine = self.stop.requested
        ballot = [mine == PREEMPTED, mine == TERMINATED, self.seconds_per_step]
        cast = torch.tensor(ballot, dtype=torch.float64, device=self.world.device)
        preempted, terminated, seconds = self.world.sum(cast).tolist()
        now = time.monotonic()
        if self.last is not None:
            self.seconds_per_step = (now - self.last[1]) / (step - self.last[0])
        affordable = int(VOTE_SECONDS * self.world.size / seconds) if seconds else 1
        self.gap = max(1, min(affordable, 2 * self.gap))
        self.last, self.due = (step, now), step + self.gap
        return PREEMPTED if preempted else TERMINATED if terminated else None
