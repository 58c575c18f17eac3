"""Images per second out of our loaders and torchvision's, with crop and flip: python -m
benchmarks.loader"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import measure, plain
from dist_resnet.data import manifest, sampling
from dist_resnet.data.resident_loader import ResidentLoader
from dist_resnet.data.sampling import Augment
from dist_resnet.data.streaming_loader import StreamingLoader
from dist_resnet.models.normalise import Normalise

BATCH, CPU = 512, torch.device("cpu")


def ours(kind: type, data: Path, threads: int, normalise: Normalise | None) -> Callable[[], float]:
    """images/s of one epoch."""
    betons = manifest.load(data)
    how = Augment(0, 4, "random", tuple(round(255 * m) for m in betons.mean))
    loader = kind(manifest.verify(data, betons, "train"), BATCH, CPU, augment=how, threads=threads)
    order = sampling.epoch_order(0, 0, loader.num_samples)

    def epoch() -> float:
        began = time.perf_counter()
        for images, _ in loader.batches(order, 0):
            if normalise:
                normalise(images)
        return len(order) / (time.perf_counter() - began)

    return epoch


def theirs(data: Path, workers: int, batches: int = 20) -> Callable[[], float]:
    """images/s of some batches of a running epoch: a whole one takes long."""
    loader = plain.loader(data, BATCH, workers)
    state = {"iterator": iter(loader)}

    def following() -> int:
        batch = next(state["iterator"], None)
        if batch is None:
            state["iterator"] = iter(loader)
            batch = next(state["iterator"])
        return len(batch[1])

    def some() -> float:
        for _ in range(2 * workers):  # made ahead, while the others were measured
            following()
        began = time.perf_counter()
        seen = sum(following() for _ in range(batches))
        return seen / (time.perf_counter() - began)

    return some


def main() -> None:
    options = measure.arguments(__doc__, rounds=5).parse_args()
    threads, betons = len(os.sched_getaffinity(0)), manifest.load(options.data)
    normalise = Normalise.of(betons.mean, betons.std, torch.float32, CPU)
    found = measure.interleaved(
        {
            "streaming (FFCV), uint8": ours(StreamingLoader, options.data, threads, None),
            "streaming (FFCV), normalised float32": ours(
                StreamingLoader, options.data, threads, normalise
            ),
            "resident, uint8": ours(ResidentLoader, options.data, threads, None),
            "resident, normalised float32": ours(ResidentLoader, options.data, threads, normalise),
            f"torchvision's CIFAR10 and DataLoader, {threads} workers, float32": theirs(
                options.data, threads
            ),
        },
        options.rounds,
    )
    baseline = list(found.values())[-1]
    rows = [
        {"loader": name, "images/s": rate, "ratio": rate / baseline} for name, rate in found.items()
    ]
    measure.show(f"crop, flip; batch {BATCH}; {threads} threads", rows, options.json)


if __name__ == "__main__":
    main()
