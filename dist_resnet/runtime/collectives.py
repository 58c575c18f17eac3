"""Which collective this process is in, for those who look when nothing moves. No torch."""

import time
from dataclasses import dataclass


@dataclass
class Collectives:
    """Of one process, in the order in which every rank makes them. `with collectives.entered(name)`
    is a microsecond."""

    number: int = 0  # of the last one entered, from 1
    name: str | None = None  # None: in none
    since: float = 0.0  # time.monotonic

    def entered(self, name: str) -> "Collectives":
        self.number, self.name, self.since = self.number + 1, name, time.monotonic()
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self.name = None
