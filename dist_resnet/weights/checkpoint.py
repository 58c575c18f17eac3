"""Checkpoints: save, load the latest that is whole, prune. Rank 0 writes: aside, fsync, os.replace.

RUN_DIR/checkpoints/ holds step_00000390.pt and step_00000390.pt.sha256 for the last few and the
best, and the one-line files LATEST and BEST that name one of them. The order of the writes makes a
crash at any point harmless: the checksum comes before the file it speaks of, the pointers after it,
and old files go last."""

import contextlib
import hashlib
import io
import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from dist_resnet.runtime.distributed import World


def name_of(step: int) -> str:
    return f"step_{step:08d}.pt"


def save(
    directory: Path, state: dict[str, Any], step: int, best: bool, keep: int, world: World
) -> None:
    """Write the state (tensors, numbers, strings, lists, dicts) of a step. Every rank calls, rank 0
    writes.

    keep: so many of the last are left there, and the best.

    Raises OSError where it cannot be written; what was saved before is then as it was."""
    if world.rank != 0:
        return
    content = io.BytesIO()
    torch.save(state, content)  # torch, writing a file itself, hides the disk's errors
    path = directory / name_of(step)
    aside = path.with_suffix(".partial")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _write(aside, content.getbuffer())
        _put(path.with_name(path.name + ".sha256"), f"{_sha256(aside)}  {path.name}\n")
        os.replace(aside, path)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    _put(directory / "LATEST", path.name + "\n")
    if best:
        _put(directory / "BEST", path.name + "\n")
    _sync(directory)
    _prune(directory, path.name, keep)


def load_latest(directory: Path, world: World) -> dict[str, Any] | None:
    """The newest whole checkpoint, on the CPU; None where there is none. A damaged one is passed
    over with a warning.

    Raises RuntimeError where there are checkpoints but none is whole. Rank 0 reads it and sends it
    to the others: a shared folder would not bear a thousand readers."""
    name = world.from_rank0(_newest_whole(directory) if world.rank == 0 else None)
    if name == "":
        raise RuntimeError(
            f"every checkpoint in {directory} is damaged: delete that directory to start over"
        )
    if name is None:
        return None
    state: dict[str, Any] = world.from_rank0(load(directory / name) if world.rank == 0 else None)
    return state


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def named(directory: Path, pointer: str) -> Path:
    """The file that LATEST or BEST names. Raises ValueError where there is none, or where it is
    damaged."""
    try:
        path = directory / (directory / pointer).read_text().strip()
    except OSError:
        raise ValueError(
            f"{directory} holds no {pointer} checkpoint: has the run saved one yet?"
        ) from None
    if not _is_whole(path):
        raise ValueError(
            f"checkpoint {path} is damaged or missing (its sha256 does not fit): choose another "
            "with --checkpoint"
        )
    return path


def _newest_whole(directory: Path) -> str | None:
    """A file's name; None where there is no checkpoint; '' where none is whole."""
    names = sorted((p.name for p in directory.glob("step_*.pt")), reverse=True)
    for name in names:
        if _is_whole(directory / name):
            return name
        warnings.warn(
            f"checkpoint {directory / name} is damaged (its sha256 does not fit); going back to "
            "the one before",
            stacklevel=2,
        )
    return "" if names else None


def _is_whole(path: Path) -> bool:
    try:
        return path.with_name(path.name + ".sha256").read_text().split()[0] == _sha256(path)
    except (OSError, IndexError):
        return False


def _prune(directory: Path, newest: str, keep: int) -> None:
    """Later ones are damaged, or this one would not be: they go too."""
    names = sorted(p.name for p in directory.glob("step_*.pt") if p.name <= newest)
    pointer = directory / "BEST"
    kept = {*names[-keep:], pointer.read_text().strip() if pointer.exists() else ""}
    for path in directory.iterdir():
        match = re.match(r"(step_\d+)\.", path.name)
        if match and (f"{match[1]}.pt" not in kept or path.suffix == ".partial"):
            path.unlink(missing_ok=True)


def _put(path: Path, text: str) -> None:
    """Replace a small file as a whole."""
    aside = path.with_name(path.name + ".partial")
    _write(aside, text.encode())
    os.replace(aside, path)


def _write(path: Path, content: bytes | memoryview) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
