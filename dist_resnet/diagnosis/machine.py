"""Checks of one process on its machine, which need no other: versions, FFCV, betons, disks, limits.

Each returns what it has seen, or raises."""

import contextlib
import fcntl
import importlib.metadata
import io
import os
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from dist_resnet.config import Config
from dist_resnet.data import manifest
from dist_resnet.diagnosis.findings import WARNING, Ill, NotHere

PACKAGES = ("torch", "ffcv", "numpy", "wandb", "submitit")
ROOM = 2 * 2**30  # bytes: for checkpoints, logs and pictures
OPEN_FILES = 1024
SLOW_FSYNC = 1.0  # seconds


def versions() -> str:
    """Of what results depend on."""
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            raise Ill(f"{package} is not installed for {platform.python_version()}") from None
    return ", ".join([f"Python {platform.python_version()}", *found])


def ffcv_reads() -> str:
    """A beton is written and read again, with every pixel and label as it was."""
    import numpy as np
    import torch

    from dist_resnet.data.streaming_loader import StreamingLoader
    from dist_resnet.prepare import betons, shapes

    made = shapes.make(48, 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "doctor.beton"
        with contextlib.redirect_stdout(io.StringIO()):  # its progress bar
            betons.write(path, made.train, made, "doctor")
        began = time.perf_counter()
        loader = StreamingLoader(path, 16, torch.device("cpu"), threads=1)
        seen = [(i.clone(), x.clone()) for i, x in loader.batches(np.arange(48))]
    seconds = time.perf_counter() - began
    images = torch.cat([i for i, _ in seen]).permute(0, 2, 3, 1).numpy()
    expected = np.stack([made.train.read(i) for i in range(48)])
    labels = torch.cat([x for _, x in seen]).numpy()
    if not (np.array_equal(images, expected) and np.array_equal(labels, made.train.labels)):
        raise Ill("pixels or labels come out other than they went in")
    return f"48 images as written, {seconds:.1f} s with compiling"


def whole_betons(config: Config) -> str:
    """Every split that the training reads is the file that was written."""
    directory = Path(config.data.dir)
    betons = manifest.load(directory, config.data.dataset)
    final = config.train.final_split
    splits = dict.fromkeys(["train", config.data.evaluate_on, *([final] if final else [])])
    began = time.perf_counter()
    sizes = [manifest.verify(directory, betons, split).stat().st_size for split in splits]
    rate = sum(sizes) / (time.perf_counter() - began)
    counts = ", ".join(f"{betons.splits[split].samples:,} {split}" for split in splits)
    return f"{betons.dataset}: {counts}; read with {rate / 2**20:,.0f} MiB/s"


def room(directory: Path) -> str:
    """Of the disk that takes checkpoints."""
    free = shutil.disk_usage(directory).free
    if free < ROOM:
        raise Ill(f"{free / 2**20:,.0f} MiB free in {directory}, less than {ROOM >> 20:,}")
    return f"{free / 2**30:,.0f} GiB free"


def staging_room(config: Config) -> str:
    """Of the node's own disk, where betons are to be copied there."""
    if not config.data.stage:
        raise NotHere("data.stage is off")
    named = [os.environ[n] for n in ("SLURM_TMPDIR", "TMPDIR") if n in os.environ]
    there = [Path(path) for path in named if Path(path).is_dir()]
    if not there:
        raise Ill("neither $SLURM_TMPDIR nor $TMPDIR names a directory", level=WARNING)
    betons = manifest.load(Path(config.data.dir), config.data.dataset)
    needed, free = sum(s.bytes for s in betons.splits.values()), shutil.disk_usage(there[0]).free
    if free < 1.1 * needed:
        figure = f"{free / 2**20:,.0f} MiB free in {there[0]}, betons have {needed / 2**20:,.0f}"
        raise Ill(figure, level=WARNING)
    return f"{free / 2**30:,.0f} GiB free in {there[0]}"


def folder_works(directory: Path, rank: int) -> str:
    """What checkpoints and the lock ask of a file system: rename over a file, fsync, flock."""
    path, aside = directory / f"try-{rank}", directory / f"try-{rank}.partial"
    try:
        path.write_text("old")
        began = time.perf_counter()
        with open(aside, "w") as file:
            file.write("new")
            file.flush()
            os.fsync(file.fileno())
        seconds = time.perf_counter() - began
        os.replace(aside, path)
        if path.read_text() != "new":
            raise Ill(f"{directory}: a file renamed over another one still reads as before")
        _lock_holds(path)
    finally:
        for leftover in (path, aside):
            leftover.unlink(missing_ok=True)
    if seconds > SLOW_FSYNC:
        raise Ill(f"fsync takes {seconds:.1f} s", "every checkpoint waits for it", WARNING)
    return f"rename, fsync ({1e3 * seconds:.1f} ms), lock"


def _lock_holds(path: Path) -> None:
    with open(path, "a") as first, open(path, "a") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            remedy = "have it mounted with locks (Lustre: -o flock); RUN_DIR/lock.holder must do"
            raise Ill(f"{path.parent} knows no locks ({error})", remedy, WARNING) from None
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
    remedy = "RUN_DIR/lock.holder must do, by which a second start is known after seconds"
    raise Ill(f"{path.parent}: a lock can be taken twice", remedy, WARNING)


def limits(local_size: int) -> str:
    """CPUs of this worker, and how many files it may hold open."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files < OPEN_FILES:
        raise Ill(f"{files} open files at most", f"ulimit -n {OPEN_FILES} before, or in setup:")
    shared = "" if os.environ.get("SUBMITIT_EXECUTOR") == "slurm" else f" for {local_size} workers"
    return f"{len(os.sched_getaffinity(0))} CPUs{shared}, {files:,} open files"


def device(config: Config, local_rank: int, local_size: int) -> str:
    """The one that this worker will have. Raises ValueError where there are too few."""
    import torch

    from dist_resnet.runtime import gpus
    from dist_resnet.runtime.distributed import choose_device

    seen = gpus.seen_here()
    try:
        wanted = gpus.device_of_all(config.train.device, [seen])
    except RuntimeError as error:
        built = "" if torch.version.cuda else "; this torch is built for CPUs"
        raise Ill(f"{error}{built}") from None
    chosen = choose_device(wanted, local_rank, local_size, seen.gpus)
    if chosen.type == "cpu":
        return f"CPU, {torch.backends.cpu.get_cpu_capability()}"
    properties = torch.cuda.get_device_properties(chosen)
    memory = properties.total_memory / 2**30
    return f"{properties.name}, {memory:.0f} GiB, CUDA {torch.version.cuda}"


def checks(config: Config, directory: Path, place: Sequence[int]) -> list[tuple]:
    """(name, remedy, function, *arguments) of each. place: rank, local rank, workers of the node.

    What reads whole files is for the first worker of a node."""
    rank, local_rank, local_size = place
    prepare = "write them with `dist-resnet prepare`, or set --data.dir"
    first = local_rank == 0
    found: list[tuple] = [
        ("versions", "install dist_resnet in this environment: make setup", versions),
        ("device", "fewer --workers-per-node, more gpus_per_node, or --train.device cpu",
         device, config, local_rank, local_size),
        ("CPUs, open files", "ask for more of them", limits, local_size),
        ("folder", f"a --run-dir that all nodes may write, not {directory}",
         folder_works, directory, rank),
        ("room for checkpoints", "free some, or give --run-dir on another disk", room, directory),
    ]  # fmt: skip
    if first:
        found += [
            ("betons", prepare, whole_betons, config),
            ("room for staging", "data.stage false, or a larger $TMPDIR: betons are read from the "
             "shared disk", staging_room, config),
            ("FFCV reads", "make setup builds it; libopencv and libturbojpeg must be there, or "
             "install the wheel of make ffcv-wheel", ffcv_reads),
        ]  # fmt: skip
    return found
