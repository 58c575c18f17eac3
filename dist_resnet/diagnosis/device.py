"""Checks of the device: what makes training fast, each against its reference, with what to do
without it."""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from dist_resnet import models
from dist_resnet.config import CifarModel, Config, Train
from dist_resnet.data import sampling
from dist_resnet.data.sampling import Augment
from dist_resnet.diagnosis.findings import BAD, WARNING, Ill, NotHere
from dist_resnet.runtime.precision import DTYPES, best, native

BATCH = 32
# of gradients, relative; four to twenty times what a sound CPU shows
ROUNDING = {torch.float32: 1e-2, torch.bfloat16: 0.3, torch.float16: 0.1}


class Trial:
    """A small network and a batch, always the same, and its gradients in full precision."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        draw = torch.Generator().manual_seed(0)
        self.images = torch.randn(BATCH, 3, 32, 32, generator=draw).to(device)
        self.labels = (torch.arange(BATCH) % 10).to(device)
        self.network = self.build()
        self.reference = self.gradients(self.network)

    def build(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):  # made on the CPU
            torch.manual_seed(0)
            return models.build(CifarModel(name="resnet8"), 10).to(self.device)

    def gradients(
        self,
        network: nn.Module,
        dtype: torch.dtype = torch.float32,
        images: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """All gradients of one step as one float32 vector."""
        network.zero_grad(set_to_none=True)
        exact = dtype == torch.float32
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=not exact):
            with torch.autocast(self.device.type, dtype, enabled=not exact):
                logits = network(self.images if images is None else images)
            F.cross_entropy(logits.float(), self.labels).backward()
        flat = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
        return torch.cat(flat).float()

    def error(self, found: torch.Tensor) -> float:
        """Relative, in the Euclidean norm."""
        return ((found - self.reference).norm() / self.reference.norm()).item()

    def agree(self, found: torch.Tensor, dtype: torch.dtype, level: str) -> str:
        error = self.error(found)
        if not error < ROUNDING[dtype]:
            raise Ill(f"gradients differ by {error:.1%} from the reference", level=level)
        return f"gradients within {error:.1e}"


def half_precision(trial: Trial, config: Config) -> str:
    """Of the format that is asked for, or that `auto` takes here: its gradients, and its speed
    beside float32's. One that the device emulates is right, and slow."""
    device, asked = native(trial.device), config.train.precision
    name = asked if asked != "auto" else next(iter(device.formats), "bf16")
    if name == "fp32":
        raise NotHere("train.precision is fp32")
    network = trial.build().to(memory_format=torch.channels_last)
    images = trial.images.to(memory_format=torch.channels_last)
    told = trial.agree(trial.gradients(network, DTYPES[name], images), DTYPES[name], BAD)
    half = 1e3 * _seconds(trial, lambda: trial.gradients(network, DTYPES[name], images))
    full = 1e3 * _seconds(trial, lambda: trial.gradients(network, images=images))
    speeds = f"a step takes {half:.0f} ms in {name}, {full:.0f} ms in fp32"
    if name in device.formats:
        return f"{name} ({device.reason}): {told}; {speeds}"
    emulated = f"{name} is emulated ({device.reason}): {speeds}"
    if asked == "auto":
        return f"fp32, since {emulated}"
    raise Ill(emulated, "--train.precision auto", level=WARNING)


def channels_last(trial: Trial, config: Config) -> str:
    """The format in which every training runs; timed in its precision."""
    network = trial.build().to(memory_format=torch.channels_last)
    images = trial.images.to(memory_format=torch.channels_last)
    told = trial.agree(trial.gradients(network, images=images), torch.float32, BAD)
    asked = config.train.precision
    dtype = DTYPES[asked if asked != "auto" else best(trial.device)]
    plain = _seconds(trial, lambda: trial.gradients(trial.network, dtype))
    fast = _seconds(trial, lambda: trial.gradients(network, dtype, images))
    return f"{told}, {plain / fast:.1f} times as fast"


def compiled(trial: Trial, train: Train) -> str:
    network, level = trial.build(), WARNING if train.compile == "none" else BAD
    began = time.perf_counter()
    try:
        network.compile()
        found = trial.gradients(network)
    except Exception as error:  # of the many kinds of torch's compiler
        first = (str(error).strip().splitlines() or [""])[0]
        raise Ill(f"{type(error).__name__}: {first[:160]}", level=level) from None
    told = trial.agree(found, torch.float32, level)
    return f"{told}, compiled in {time.perf_counter() - began:.0f} s"


def cuda_graph(trial: Trial, train: Train) -> str:
    """A step captured and replayed on other images."""
    _require_gpu(trial)
    level = BAD if train.cuda_graph is True else WARNING
    network, images = trial.build(), trial.images.flip(0).clone()
    try:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                trial.gradients(network, images=images)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = trial.gradients(network, images=images)
        images.copy_(trial.images)
        graph.replay()
        return trial.agree(found, torch.float32, level)
    except RuntimeError as error:
        raise Ill(str(error).splitlines()[0][:160], level=level) from None


def triton_kernel(trial: Trial) -> str:
    """Crop and flip on the GPU, bit for bit what torch's operations make."""
    _require_gpu(trial)
    from dist_resnet.data import triton_augment  # torch for CPUs comes without triton

    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (64, 32, 32, 3), generator=draw, dtype=torch.uint8)
    images, ids = images.to(trial.device), torch.arange(64, device=trial.device)
    how = Augment(0, 4, "random", (1, 2, 3))
    try:
        found = triton_augment.crop_flip(images, ids, 0, how)
    except Exception as error:  # of triton's many kinds
        raise Ill(f"{type(error).__name__}: {error}"[:160], level=WARNING) from None
    if not torch.equal(found, sampling.augment(images, ids, 0, how)):
        raise Ill("pixels differ from the reference's", "--data.residency stream: FFCV crops")
    return "64 images, bit for bit"


def checks(device: torch.device, config: Config) -> list[tuple]:
    """(name, remedy, function, *arguments) of each."""
    trial, train = Trial(device), config.train
    return [
        ("precision", "--train.precision fp32", half_precision, trial, config),
        ("channels_last", "a newer torch, or a newer cuDNN", channels_last, trial, config),
        ("torch.compile", "go without it (--train.compile none), or install g++ and Python's "
         "headers", compiled, trial, train),
        ("CUDA graph", "go without it (--train.cuda_graph false)", cuda_graph, trial, train),
        ("triton kernel", "nothing: crop and flip take 65 operations a batch in place of one; "
         "triton wants a C compiler and Python's headers", triton_kernel, trial),
    ]  # fmt: skip


def _require_gpu(trial: Trial) -> None:
    if trial.device.type != "cuda":
        raise NotHere("no GPU")


def _seconds(trial: Trial, step: Callable[[], object], repeats: int = 3) -> float:
    """The shortest of some."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        step()
        if trial.device.type == "cuda":
            torch.cuda.synchronize(trial.device)
        times.append(time.perf_counter() - began)
    return min(times)
