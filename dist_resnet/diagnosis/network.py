"""Checks of all ranks together: reach, links, the shared folder, clocks. Every rank calls each.

The link's two numbers are those of the alpha-beta model that `dist-resnet estimate` works with
(reports/estimate.py)."""

import contextlib
import fcntl
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from dist_resnet.diagnosis.findings import WARNING, Ill, NotHere
from dist_resnet.runtime.distributed import World

SMALL, LARGE = 2, 2**22  # float32 numbers of an all-reduce: 8 bytes, 16 MiB
PAIR = 2**18  # float32 numbers that two ranks exchange: 1 MiB
ALL_PAIRS = 64  # ranks up to which every pair is tried; beyond, log2 as many partners each
REPEATS = 5
SLOW_PAIR = 1 / 3  # of the median's bandwidth
VISIBLE_SECONDS = 10.0
SKEW = 2.0  # seconds


def pairs(world: World) -> str:
    """Every rank exchanges a megabyte with every other, as in a round-robin tournament; of very
    many, with some."""
    if world.size == 1:
        raise NotHere("one worker")
    mine, theirs = (torch.full((PAIR,), float(world.rank), device=world.device) for _ in range(2))
    rates = torch.zeros(world.size, dtype=torch.float64, device=world.device)
    for other in _opponents(world.rank, world.size):
        if other is None:
            continue
        world.exchange(mine, theirs, other)
        if not bool((theirs == other).all()):
            raise Ill(f"rank {other} sent something else than arrived at rank {world.rank}")
        seconds = _shortest(world, partial(world.exchange, mine, theirs, other), 3)
        rates[other] = 4 * PAIR / seconds
    table = world.stack(rates).tolist()
    links = {(i, j): table[i][j] for i in range(world.size) for j in range(i) if table[i][j]}
    slowest = min(links, key=lambda pair: links[pair])
    usual = statistics.median(links.values())
    told = f"ranks {slowest[1]} and {slowest[0]} with {_rate(links[slowest])}"
    if links[slowest] < SLOW_PAIR * usual:
        remedy = "leave that node out (exclude: in a cluster file), or have its link looked at"
        raise Ill(f"{told}, and {_rate(usual)} in the median", remedy, WARNING)
    return f"{_rate(usual)} in the median; slowest of {len(links)} pairs: {told}"


def _opponents(rank: int, size: int) -> list[int | None]:
    """Of each round, by the circle method; None where a rank sits out."""
    n = size + size % 2
    rounds: list[int | None] = []
    turns = range(n - 1) if size <= ALL_PAIRS else [2**k for k in range((n - 2).bit_length())]
    for turn in turns:
        circle = [0, *((i + turn) % (n - 1) + 1 for i in range(n - 1))]
        place = circle.index(rank)
        other = circle[n - 1 - place]
        rounds.append(other if other < size else None)
    return rounds


def all_reduce(world: World, file: Path) -> str:
    """Its bandwidth and latency, written for `dist-resnet estimate --link`."""
    if world.size == 1:
        raise NotHere("one worker")
    small, large = (torch.ones(n, device=world.device) for n in (SMALL, LARGE))
    if world.sum(small)[0].item() != world.size:
        raise Ill(f"the sum of {world.size} ones is {small[0].item():g}")
    short = _shortest(world, lambda: world.sum(small), 4 * REPEATS)
    long = _shortest(world, lambda: world.sum(large), REPEATS)
    n = world.size
    latency = short / (2 * (n - 1))
    bandwidth = 2 * (n - 1) / n * 4 * LARGE / max(long - short, 1e-9)
    if world.rank == 0:
        content = {"bytes_per_second": bandwidth, "seconds": latency, "world_size": n}
        file.write_text(json.dumps(content | {"device": world.device.type}, indent=1) + "\n")
    return (
        f"{_rate(bandwidth)} and {1e6 * latency:,.0f} us a hop; 16 MiB over {n} ranks in "
        f"{1e3 * long:.1f} ms"
    )


def shared_folder(world: World, directory: Path) -> str:
    """Every rank sees at once what every other has written, and its lock."""
    if world.size == 1:
        raise NotHere("one worker")
    token, own = world.from_rank0(str(time.time_ns())), directory / f"seen-{world.rank}"
    with contextlib.suppress(OSError):  # the others wait at the barrier: they will miss it
        own.write_text(token)
    world.barrier()
    began, missing = time.perf_counter(), list(range(world.size))
    while missing and time.perf_counter() - began < VISIBLE_SECONDS:
        missing = [rank for rank in missing if _content(directory / f"seen-{rank}") != token]
    seconds = time.perf_counter() - began
    world.barrier()
    holds = _lock_is_seen(world, own.with_name("seen-0"))
    world.barrier()
    with contextlib.suppress(OSError):
        own.unlink()
    if missing:
        raise Ill(
            f"{directory}: not seen within {VISIBLE_SECONDS:.0f} s what rank {missing[0]} wrote"
        )
    if not holds:
        remedy = "mount it with locks between nodes; until then RUN_DIR/lock.holder must do"
        raise Ill("rank 0's lock is not seen here", remedy, WARNING)
    return f"seen by all after {1e3 * seconds:.0f} ms, and locked"


def _lock_is_seen(world: World, path: Path) -> bool:
    """Rank 0 holds a lock, and the others must not get it. Two barriers on every rank."""
    seen = world.rank == 0
    with contextlib.ExitStack() as stack:
        if world.rank == 0:
            _take(path, stack)
        world.barrier()
        if world.rank != 0:
            seen = not _take(path, stack)
        world.barrier()
    return seen


def _take(path: Path, stack: contextlib.ExitStack) -> bool:
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        stack.callback(os.close, file)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held; or there is no folder, or it has no locks, as other checks tell
        return False
    return True


def clocks(world: World, offset: float = 0.0) -> str:
    """How far the ranks' clocks are apart: the least of some looks straight after a barrier.

    offset: seconds to add to this rank's clock."""
    if world.size == 1:
        raise NotHere("one worker")
    spreads = []
    for _ in range(REPEATS):
        world.barrier()
        now = torch.tensor([time.time() + offset], dtype=torch.float64, device=world.device)
        times = world.stack(now)
        spreads.append((times.max() - times.min()).item())
    if min(spreads) > SKEW:
        raise Ill(f"{min(spreads):,.1f} s apart")
    return f"{1e3 * min(spreads):.0f} ms apart at most"


def checks(world: World, directory: Path) -> list[tuple]:
    """(name, remedy, function, *arguments) of each."""
    lost = "open the ports between the nodes, or choose the interface (GLOO_, NCCL_SOCKET_IFNAME)"
    return [
        ("rank to rank", lost, pairs, world),
        ("all-reduce", lost, all_reduce, world, directory / "link.json"),
        ("shared folder", "give --run-dir on a disk that all nodes share and may write",
         shared_folder, world, directory),
        ("clocks", "have them set by one NTP server", clocks, world),
    ]  # fmt: skip


def _shortest(world: World, call: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        times.append(time.perf_counter() - began)
    return min(times)


def _rate(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e9:.2f} GB/s"


def _content(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
