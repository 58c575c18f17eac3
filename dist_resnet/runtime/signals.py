"""How a training ends. Requests to stop are flags: a handler only notes the signal; the training
loop acts on it between two steps."""

import signal
from types import FrameType

# how a start of a training ends; paused: after the step at which it was told to leave
COMPLETED, PREEMPTED, TERMINATED, PAUSED = "completed", "preempted", "terminated", "paused"
FAILED = "failed"
MEANING = {
    signal.SIGUSR1: PREEMPTED,
    signal.SIGUSR2: PREEMPTED,
    signal.SIGTERM: TERMINATED,
    signal.SIGHUP: TERMINATED,  # the terminal was closed
}


class Diverged(ValueError):
    """The training's own values are why it cannot go on: it would end so on any machine."""


class StopSignal:
    """Installs handlers for SIGUSR2 or SIGUSR1 (preemption, or the time limit is near), SIGTERM,
    and SIGHUP, unless that is ignored, as it is under nohup or a launcher.

    `requested` is None until one arrives, then "preempted" or "terminated". `before` holds the
    handlers found, for a launcher that wants to run its own once everything is saved."""

    def __init__(self, pause_at: int | None = None) -> None:
        """pause_at: a step after which to leave, known from the start and without a signal."""
        self.requested: str | None = None
        self.pause_at = pause_at
        self.before = {
            number: signal.signal(number, self._note)
            for number in MEANING
            if (number, signal.getsignal(number)) != (signal.SIGHUP, signal.SIG_IGN)
        }
        signal.pthread_sigmask(
            signal.SIG_UNBLOCK, MEANING
        )  # batch scripts block them until there is a handler

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested != PREEMPTED:  # a SIGTERM after that is its deadline, or a scancel, of
            # which the batch script learns from SLURM
            self.requested = MEANING[signal.Signals(number)]
