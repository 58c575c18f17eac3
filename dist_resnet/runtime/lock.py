"""RUN_DIR/lock: two trainings never write one run directory."""

import fcntl
import time
from typing import IO


def acquire(file: IO[str], patience_s: float) -> bool:
    """Lock a file until it is closed; False where another process has held it for so long."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        except OSError:
            return True  # a file system without locks
