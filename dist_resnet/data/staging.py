"""Betons copied once per node to its own disk, and read there by all workers of the node."""

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dist_resnet.data import manifest
from dist_resnet.data.manifest import Manifest
from dist_resnet.runtime.distributed import World

SPARE = 2**28  # bytes to leave free on a node's disk


@contextlib.contextmanager
def staged(
    source: Path,
    betons: Manifest,
    splits: tuple[str, ...],
    run_dir: Path,
    world: World,
    warn: Callable[[str], None],
) -> Iterator[Path]:
    """The directory to read the betons of `splits` from: a verified copy below $SLURM_TMPDIR or
    $TMPDIR, removed at the end.

    Where a node has no such directory or too little room there, `warn` is told and its workers read
    `source`. Every rank calls; the first of each node copies. A copy that a killed start of the
    same run has left is used again."""
    target = _target(run_dir, betons)
    with ThreadPoolExecutor(1) as pool:
        copying = pool.submit(
            _stage, source, target, betons, splits if world.local_rank == 0 else ()
        )
        while not all(
            world.gather(copying.done())
        ):  # not one collective, which would end the run after train.timeout_s
            time.sleep(0.2)
    for message in world.gather(copying.result()):
        if message:
            warn(f"{message}; that node reads {source}")
    used = target if target and (target / manifest.FILE).exists() else source
    try:
        yield used
    finally:
        if target and world.local_rank == 0:
            shutil.rmtree(
                target, ignore_errors=True
            )  # companions that still read it keep the open file


def _stage(
    source: Path, target: Path | None, betons: Manifest, splits: tuple[str, ...]
) -> str | None:
    """What went wrong, if anything did. Without splits there is nothing to do."""
    if not splits:
        return None
    if target is None:
        return "cannot stage the betons: neither $SLURM_TMPDIR nor $TMPDIR names a directory"
    try:
        _copy(source, target, betons, splits)
    except (OSError, ValueError) as error:
        shutil.rmtree(target, ignore_errors=True)
        return f"cannot stage the betons in {target}: {error}"
    return None


def _target(run_dir: Path, betons: Manifest) -> Path | None:
    """One directory per run and data set, the same in all workers of a node."""
    for name in ("SLURM_TMPDIR", "TMPDIR"):
        parent = os.environ.get(name)
        if parent and Path(parent).is_dir():
            node = (
                os.environ.get("SLURMD_NODENAME") or socket.gethostname()
            )  # in case they share that directory
            run = manifest.digest_of(str(run_dir.resolve()))
            return Path(parent) / f"dist_resnet-{node}-{run}-{betons.digest()}"
    return None


def _copy(source: Path, target: Path, betons: Manifest, splits: tuple[str, ...]) -> None:
    """Copy what is not there yet, verify it, and name it in a manifest, which is written last."""
    (target / manifest.FILE).unlink(missing_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    for split in splits:
        with contextlib.suppress(ValueError):
            manifest.verify(target, betons, split)
            continue
        needed, free = betons.splits[split].bytes, shutil.disk_usage(target).free
        if needed + SPARE > free:
            raise OSError(
                f"{betons.splits[split].file} has {needed / 2**20:,.0f} MiB and "
                f"{free / 2**20:,.0f} MiB are free there"
            )
        shutil.copyfile(
            manifest.verify(source, betons, split, contents=False),
            target / betons.splits[split].file,
        )
        manifest.verify(target, betons, split)
    betons.save(target)
