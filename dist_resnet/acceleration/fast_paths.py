"""What makes a step faster and should change nothing else, turned on before the first step, each
compared with the plain way on this very device; what fails is left out."""

import gc
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

from dist_resnet.acceleration import casting, cuda_graph
from dist_resnet.acceleration.comparison import Plain, pixels, restored
from dist_resnet.config import Config, for_device
from dist_resnet.data import sampling
from dist_resnet.data.loader import Batch
from dist_resnet.data.resident_loader import ResidentLoader
from dist_resnet.models import fused_norm
from dist_resnet.training import data_parallel, loop
from dist_resnet.training.data_parallel import BucketedDDP
from dist_resnet.training.loop import Training

USED = "used"
COMPARED = {"cuda"}  # kinds of devices on which train.fast_paths 'check' compares


@dataclass(frozen=True)
class FastPath:
    """on: turns it on, or raises. off: takes it back, also what is half on. differs: how what it
    does differs from the plain way, None where it does not."""

    name: str
    on: Callable[[], None]
    off: Callable[[], None]
    differs: Callable[[], str | None]


def engage(run: Training, saved: dict[str, Any] | None = None) -> None:
    """Turn on what the configuration asks for, on every rank alike; run.fast_paths says what came
    of each. To be called after a resume: a graph holds on to the tensors that it has seen.

    saved: the checkpoint that was resumed; on devices of the same kind nothing is compared again.
    Raises RuntimeError where one fails and train.fast_paths is 'require'."""
    mode, began = run.config.train.fast_paths, time.monotonic()
    if mode == "off":
        return
    device, run.devices = run.world.device.type, kind_of_devices(run)
    before = saved["fast_paths"] if saved and saved["devices"] == run.devices else None
    compares = before is None and (mode == "require" or (mode == "check" and device in COMPARED))
    for path in paths(run, for_device.settle(run.config, device), compares):
        known = (before or {}).get(path.name, USED)
        if known == USED:
            outcome = _tried(run, path, compares)
        else:
            path.off()
            outcome = known
        run.fast_paths[path.name] = outcome
        if outcome not in (USED, known):
            _loud(run, path, outcome)
    if compares and run.fast_paths:
        gc.collect()  # the plain twin, which holds itself
        if device == "cuda":  # what is told of the GPU's memory is the training's
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(run.world.device)
        names = ", ".join(name for name, outcome in run.fast_paths.items() if outcome == USED)
        seconds = time.monotonic() - began
        run.tracker.say(f"fast paths: {names or 'none'} (compared in {seconds:.1f} s)")


def _tried(run: Training, path: FastPath, compares: bool) -> str:
    """'used', or 'refused: why', on every rank alike."""
    for attempt in (path.on, path.differs if compares else None):
        why = None
        try:
            why = attempt() if attempt else None
        except Exception as error:  # of many kinds, from compilers and drivers
            traceback.print_exc()
            why = first_cause(error)
        whys = [(rank, text) for rank, text in enumerate(run.world.gather(why)) if text]
        if whys:
            path.off()
            rank, text = whys[0]
            return f"refused: {text}" + (f" (rank {rank})" if run.world.size > 1 else "")
    return USED


def first_cause(error: BaseException) -> str:
    """In one line. What ends a capture says only that an earlier error has spoilt it."""
    told = f"{type(error).__name__}: {error}".split("\n")[0]
    first = error
    while earlier := first.__cause__ or first.__context__:
        first = earlier
    if first is error:
        return told
    return f"{type(first).__name__}: {first}".split("\n")[0] + f" (then {told})"


def _loud(run: Training, path: FastPath, outcome: str) -> None:
    line = f"fast path {path.name} {outcome}"
    if run.config.train.fast_paths == "require":
        raise RuntimeError(f"{line}; train.fast_paths = 'require' (check goes on without it)")
    run.tracker.say(f"warning: {line}; the training goes on without it, slower")


def paths(run: Training, settled: Config, compares: bool) -> Iterator[FastPath]:
    """What is asked for, in the order in which one is built on the other."""
    train, data, gpu = settled.train, run.train_data, run.world.device.type == "cuda"
    if isinstance(data, ResidentLoader) and data.augment and gpu:
        yield crop_flip(run, data)
    asked = {
        "flat": train.all_reduce != "buckets",
        "cast": train.cast == "together",
        "add_relu": gpu and settled.model.family == "cifar" and train.compile == "none",
        "compile": train.compile != "none",
        "graph": bool(train.cuda_graph),
    }
    if not any(asked.values()):
        return
    steps = Steps(run, compares)  # pixels are settled, and nothing is attached to the network yet
    if asked["flat"]:
        yield one_all_reduce(run, settled, steps)
    if asked["cast"]:
        yield casts(run, steps)
    if asked["add_relu"]:
        yield additions(run, steps)
    if asked["compile"]:
        yield compiled(run, train.compile, steps)
    if asked["graph"]:
        yield graph(run, steps)


class Steps:
    """A real batch, and the plain steps over it, or why there are none (too little memory for a
    second network: the training's own may still fit)."""

    def __init__(self, run: Training, compares: bool) -> None:
        self.run, self.missing = run, ""
        self.plain: Plain | None = None
        if compares:
            try:
                self.plain = Plain(run, *self.batch)
            except RuntimeError as error:
                self.missing = first_cause(error)
            self.missing = next(filter(None, run.world.gather(self.missing)), "")

    @cached_property
    def batch(self) -> Batch:
        return first_batch(self.run, self.run.progress.step // self.run.plan.steps_per_epoch)

    def differ(self, rounds: bool) -> str | None:
        if self.missing:
            return f"no plain steps to compare with: {self.missing}"
        assert self.plain is not None
        return self.plain.difference(self.run, rounds)


def first_batch(run: Training, epoch: int) -> Batch:
    """This rank's first of an epoch, of the caller's own."""
    plan, world = run.plan, run.world
    order = loop.epoch_order(run, epoch)
    ids = sampling.shard(order, plan.global_batch, world.rank, world.size, 0, plan.parts)
    batches = run.train_data.batches(ids[: plan.local_batch], epoch)
    images, labels = next(batches)
    images, labels = images.clone(), labels.clone()
    batches.close()
    return images, labels


def crop_flip(run: Training, data: ResidentLoader) -> FastPath:
    """Crop, flip and normalise in one kernel in place of 69 operations a batch: the same bits."""

    def on() -> None:
        from dist_resnet.data import triton_augment  # torch for CPUs comes without triton

        data.kernel = partial(triton_augment.crop_flip, table=run.normalise.table())
        first_batch(run, 0)  # compiles

    def off() -> None:
        data.kernel = None

    def differs() -> str | None:
        for epoch in (0, 1):
            fast, _ = first_batch(run, epoch)
            kernel, data.kernel = data.kernel, None
            plain, _ = first_batch(run, epoch)
            data.kernel = kernel
            if found := pixels(fast, plain, run.normalise):
                return found
        return None

    return FastPath("crop_flip", on, off, differs)


def one_all_reduce(run: Training, settled: Config, steps: Steps) -> FastPath:
    """All gradients in one: of two summands the same bits as DDP's buckets."""
    rounds = run.plan.parts * run.world.size > 2 or settled.train.gradient_type != "fp32"
    only = settled.batch.virtual_workers is not None or settled.drops_blocks

    def off() -> None:
        if only:
            raise RuntimeError(
                "the one all-reduce does not agree with DDP's buckets on this device, and "
                "batch.virtual_workers and model.stochastic_depth have no other: leave them out"
            )
        buckets = for_device.with_buckets(settled)
        run.model = data_parallel.data_parallel(run.model.module, buckets, 1, run.world)

    return FastPath(
        f"all_reduce_{settled.train.all_reduce}",
        lambda: None,
        off,
        lambda: None if only and steps.missing else steps.differ(rounds),
    )


def casts(run: Training, steps: Steps) -> FastPath:
    """Weights to half precision together: the same bits."""
    undo: list[Callable[[], None]] = []

    def on() -> None:
        undo.append(casting.cast_together(run.model.module, run.normalise.dtype))

    def off() -> None:
        while undo:
            undo.pop()()

    return FastPath("cast_together", on, off, lambda: steps.differ(rounds=False))


def additions(run: Training, steps: Steps) -> FastPath:
    """A block's addition and ReLU in one kernel: the same bits."""
    network = run.model.module

    def on() -> None:
        from dist_resnet.models import triton_add_relu  # torch for CPUs comes without triton

        fused_norm.take_add_relu(network, triton_add_relu.add_relu)
        run.model.train()
        with restored(run):  # compiles
            loop.update(run, *steps.batch)

    def off() -> None:
        fused_norm.take_add_relu(network, None)

    return FastPath("add_relu", on, off, lambda: steps.differ(rounds=False))


def compiled(run: Training, mode: str, steps: Steps) -> FastPath:
    """torch.compile of the network, in place, after DDP has settled its buckets: the parameters
    keep their names. Takes its time here, before the clock of the training starts."""
    network: nn.Module = run.model.module

    def on() -> None:
        network.compile(mode=None if mode == "default" else mode)
        run.model.train()
        with restored(run):
            loop.update(run, *steps.batch)

    def off() -> None:
        network._compiled_call_impl = None

    return FastPath("compile", on, off, lambda: steps.differ(rounds=True))


def graph(run: Training, steps: Steps) -> FastPath:
    """The same kernels, but for what cuBLAS chooses."""

    def on() -> None:
        if isinstance(run.model, BucketedDDP):
            raise RuntimeError("needs one all-reduce, which was refused")
        run.model.train()
        with restored(run):
            run.update = cuda_graph.GraphedUpdate(run, *steps.batch)

    return FastPath(
        "cuda_graph", on, partial(cuda_graph.release, run), lambda: steps.differ(rounds=True)
    )


def kind_of_devices(run: Training) -> str:
    """What must be the same for a comparison to hold: the ranks' devices, their number, torch."""
    device = run.world.device
    mine = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    names = ", ".join(sorted(set(run.world.gather(mine))))
    return f"{run.world.size} x {names}, torch {torch.__version__}"
