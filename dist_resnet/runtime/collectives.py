"""Which collective this process is in, for those who look when nothing moves. No torch."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Collectives:
    """Of one process, in the order in which every rank makes them. `with collectives.entered(name)`
    is a microsecond."""

    number: int = 0  # of the last one entered, from 1
    name: str | None = None  # None: in none
    last: str | None = None  # the name of the last one entered
    # whether the device is still at the last step of a CUDA graph, whose collectives have no number
    pending: Callable[[], bool] | None = None

    def entered(self, name: str) -> "Collectives":
        self.number, self.name, self.last = self.number + 1, name, name
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self.name = None
