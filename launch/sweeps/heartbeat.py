"""Which agents of a search are alive: each touches a file of its own, DIR/agents/NAME, every few
seconds."""

import contextlib
import os
import threading
from pathlib import Path

BEAT_SECONDS = 5.0
SILENCE_SECONDS = 60.0  # after which an agent counts as dead


class Heartbeat:
    """Of one agent, while the block runs. `silence_s`: how long another may be silent."""

    def __init__(self, directory: Path, agent: str, silence_s: float = SILENCE_SECONDS) -> None:
        self.folder, self.agent, self.silence_s = directory / "agents", agent, silence_s
        self._ended = threading.Event()

    def __enter__(self) -> "Heartbeat":
        self.folder.mkdir(parents=True, exist_ok=True)
        self._beat()
        threading.Thread(target=self._until_the_end, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()

    def seconds_since(self, agent: str) -> float:
        """Since the other's last beat. Both times are of the shared file system, so that the nodes'
        clocks need not agree."""
        return self._beat() - _read(self.folder / agent)

    def is_dead(self, agent: str) -> bool:
        return self.seconds_since(agent) > self.silence_s

    def _beat(self) -> float:
        path = self.folder / self.agent
        path.touch()
        return _read(path)

    def _until_the_end(self) -> None:
        while not self._ended.wait(min(BEAT_SECONDS, self.silence_s / 4)):
            with contextlib.suppress(OSError):  # a full disk, or one that is away for a while
                self._beat()


def _read(path: Path) -> float:
    """When it was touched; opened, so that a network file system looks again."""
    try:
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return 0.0
