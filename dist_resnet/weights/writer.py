"""Checkpoints written beside the training: the state is copied at once, a thread writes the copy,
and the next one waits for it."""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from dist_resnet.runtime.distributed import World
from dist_resnet.weights import checkpoint

PAUSE_S = 5.0  # before the last checkpoint is tried again


class Writer:
    """Rank 0's; on other ranks every call does nothing. A full disk costs a checkpoint, not the
    training: what could not be written is said when it happens."""

    def __init__(
        self, directory: Path, keep: int, patience_s: float, world: World, say: Callable[[str], Any]
    ) -> None:
        """patience_s: for so long the last checkpoint, after which there is no next, is tried
        again."""
        self.directory, self.keep, self.patience_s = directory, keep, patience_s
        self.world, self.say = world, say
        self._thread: Thread | None = None
        self._error: BaseException | None = None
        self._written = False

    def save(self, state: dict[str, Any], step: int, *, best: bool, last: bool) -> None:
        """Take over the state (tensors, numbers, strings, lists, dicts) of a step, which may change
        as soon as this returns. Raises what `wait` raises, of the one before."""
        if self.world.rank != 0:
            return
        self.wait()
        content, ready = _copied(state), None
        if self.world.device.type == "cuda":
            ready = torch.cuda.Event()
            ready.record()
        arguments = (content, ready, step, best, last)
        # no daemon: an end by an error, too, waits until it is written
        self._thread = Thread(target=self._work, args=arguments, name="checkpoint")
        self._thread.start()

    def wait(self) -> bool:
        """Until the last one is written. Returns whether that went well. Raises OSError where it
        was the training's last and could not be written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._written

    def _work(self, state: dict[str, Any], ready: Any, step: int, best: bool, last: bool) -> None:
        try:
            if ready is not None:
                ready.synchronize()
            self._written = self._write(state, step, best, last)
        except BaseException as error:  # handed to the training, which raises it
            self._error = error

    def _write(self, state: dict[str, Any], step: int, best: bool, last: bool) -> bool:
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                checkpoint.save(self.directory, state, step, best, self.keep, self.world)
                return True
            except OSError as error:
                then = "trying again" if last else "training goes on, the next one is tried"
                self.say(
                    f"warning: the checkpoint of step {step} could not be written ({error}); {then}"
                )
                if not last:
                    return False
                if time.monotonic() > deadline:
                    raise
                time.sleep(PAUSE_S)


def _copied(value: Any) -> Any:
    """With tensors of its own on the CPU; from a GPU they are on their way, into pinned memory."""
    if isinstance(value, torch.Tensor):
        if value.device.type == "cpu":
            return value.detach().clone()
        pinned = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        return pinned.copy_(value.detach(), non_blocking=True)
    if isinstance(value, dict):
        result = copy.copy(value)  # a network's has versions, as an attribute
        result.update((key, _copied(item)) for key, item in value.items())
        return result
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]
    return value
