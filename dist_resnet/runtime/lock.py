"""RUN_DIR/lock: two trainings never write one run directory.

The kernel frees flock with the process that holds it, however that ends. But some file systems
refuse it, or keep it on each node for itself (Lustre without -o flock, NFS mounted with nolock).
So RUN_DIR/lock.holder names the holder, who renews its time every BEAT_SECONDS."""

import contextlib
import fcntl
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

import psutil

from dist_resnet.runtime import slurm_job

BEAT_SECONDS = 2.0
SILENT_SECONDS = 9.0  # after which a holder on another machine is taken for dead
POLL_SECONDS = 0.2


class RunLock:
    """Held from `acquire` until `release` or the end of the process. Where the holder's file cannot
    be written, as on a full disk, flock is all there is."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "lock.holder"
        self._flock: IO[str] = open(run_dir / "lock", "a")  # noqa: SIM115
        self._us = json.dumps(_us())
        self._released = threading.Event()

    def acquire(self, patience_s: float) -> str | None:
        """None once it is ours; after so many seconds in vain, who holds it."""
        deadline = time.monotonic() + patience_s
        while (holder := self._try()) is not None:
            if time.monotonic() > deadline:
                return holder
            time.sleep(POLL_SECONDS)
        threading.Thread(target=self._beat, daemon=True).start()
        return None

    def release(self) -> None:
        self._released.set()
        if _read(self._path) == self._us:
            self._path.unlink(missing_ok=True)
        self._flock.close()

    def _try(self) -> str | None:
        try:
            fcntl.flock(self._flock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return _name(_read(self._path))
        except OSError:
            pass  # a file system without locks
        aside = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            aside.write_text(self._us)
            held = _read(self._path)
            if held is not None and _lives(held, self._path, aside.stat().st_mtime):
                return _name(held)
            if held is None:
                os.link(aside, self._path)
            else:
                os.replace(aside, self._path)
                time.sleep(
                    POLL_SECONDS
                )  # others may have found it dead as well: the last one has it
        except FileExistsError:
            return "another process"
        except OSError:
            return None
        finally:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
        holder = _read(self._path)
        return None if holder == self._us else _name(holder)

    def _beat(self) -> None:
        """End the process where another has taken us for dead, before it writes once more."""
        while not self._released.wait(BEAT_SECONDS):
            holder = _read(self._path)
            if holder not in (self._us, None):
                said = (
                    f"{self._path.parent}: taken over by {_name(holder)} while this one was stopped"
                )
                print(said, file=sys.stderr, flush=True)
                os._exit(1)
            with contextlib.suppress(OSError):
                os.utime(self._path)


def wait_until_free(run_dir: Path, seconds: float) -> bool:
    """Whether no training holds it, or lets it go within so many seconds."""
    deadline = time.monotonic() + seconds
    while is_held(run_dir):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def is_held(run_dir: Path) -> bool:
    """Whether a training holds the lock, as far as this machine can see."""
    path = run_dir / "lock.holder"
    try:
        with open(run_dir / "lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    held = _read(path)
    return held is not None and _lives(held, path, time.time())


def _us() -> dict[str, Any]:
    process = psutil.Process()
    return {
        "node": slurm_job.node(),
        "machine": _machine(),
        "pid": process.pid,
        "created": process.create_time(),
        "job": slurm_job.job_id(),
        "restart": slurm_job.restarts(),
        "drawn": os.urandom(8).hex(),
    }


def _machine() -> str:
    """What has process ids of its own: this start of the kernel, and the container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return slurm_job.node()


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _lives(held: str, path: Path, now: float) -> bool:
    """now: by the clock of the file system."""
    try:
        holder = json.loads(held)
    except ValueError:
        return False  # cut off by a full disk
    if holder["machine"] == _machine():
        try:
            process = psutil.Process(holder["pid"])
            # a container without an init keeps the dead as zombies
            is_dead = process.status() == psutil.STATUS_ZOMBIE
            return not is_dead and abs(process.create_time() - holder["created"]) < 1
        except psutil.NoSuchProcess:
            return False
    if holder["job"] is not None and holder["job"] == slurm_job.job_id():
        return holder["restart"] >= slurm_job.restarts()  # SLURM has ended what it starts again
    try:
        with open(path) as file:  # on NFS: asks the server
            return now - os.fstat(file.fileno()).st_mtime < SILENT_SECONDS
    except OSError:
        return False


def _name(held: str | None) -> str:
    try:
        holder = json.loads(held or "")
    except ValueError:
        return "another process"
    job = f", job {holder['job']}" if holder["job"] else ""
    return f"process {holder['pid']} on {holder['node']}{job}"
