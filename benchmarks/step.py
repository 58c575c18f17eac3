"""Images per second of whole training steps, ours beside the loop that people copy: python -m
benchmarks.step [--section.key value ...]

The plain loop: benchmarks/plain.py. Bare: our network, precision and layout on one batch that is
there already, with nothing else: what our loop adds to that is its overhead.

Networks: resnet<6n+2> of CIFAR, `speedrun` (configs/speedrun_cpu.yaml), `photographs`: ResNet-18 on
crops of 128 pixels, of the JPEGs of --photographs FOLDER/train/<class>/ and of the betons that
`dist-resnet prepare imagefolder` has made of them, --photograph-betons."""

import argparse
import itertools
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks import measure
from dist_resnet.training import loop
from dist_resnet.training.loop import Training

PHOTOGRAPHS = ("--data.resolution", "128", "--data.min_resolution", "null")
WAYS: dict[str, tuple[str, ...]] = {
    "default": (),
    "no graph": ("--train.cuda_graph", "false"),
    "no graph, cast each": ("--train.cuda_graph", "false", "--train.cast", "each"),
    "compiled": ("--train.cuda_graph", "false", "--train.compile", "default"),
}


def ours(run: Training, steps: int) -> Callable[[], float]:
    def some() -> float:
        began, last = time.perf_counter(), run.progress.step + steps
        while run.progress.step < last:
            for step in loop.train_epoch(run):
                if step == last:
                    break
        run.sums.reduce(run.world)
        return steps * run.plan.global_batch / (time.perf_counter() - began)

    return some


def bare(run: Training, steps: int) -> Callable[[], float]:
    images, labels = next(
        run.train_data.batches(loop.epoch_order(run, 0)[: run.plan.local_batch], 0)
    )
    images, labels = images.clone(), labels.clone()

    def some() -> float:
        began = time.perf_counter()
        for _ in range(steps):
            with torch.autocast(
                run.world.device.type,
                run.normalise.dtype,
                enabled=run.config.train.precision != "fp32",
            ):
                logits = run.model(run.normalise(images))
            run.optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(logits.float(), labels).backward()
            run.optimizer.step()
        run.world.barrier()
        return steps * run.plan.global_batch / (time.perf_counter() - began)

    return some


def contenders(steps: int, run: Training) -> dict[str, Callable[[], float]]:
    return {"ours": ours(run, steps), "bare": bare(run, steps)}


def network(name: str, options: argparse.Namespace) -> tuple[str, list[str], Path]:
    """(configuration, overrides, where the plain loop finds its images)."""
    betons = ["--data.dir", str(options.data)]
    if name == "speedrun":
        return "configs/speedrun_cpu.yaml", betons, options.data
    if name == "photographs":
        betons = ["--data.dir", str(options.photograph_betons), "--data.dataset", "null"]
        return "configs/imagenet_resnet18.yaml", [*betons, *PHOTOGRAPHS], options.photographs
    return "configs/resnet20.yaml", [*betons, "--model.name", name], options.data


def figures(
    options: argparse.Namespace, config: str, overrides: list[str], plain: Callable
) -> dict[str, float]:
    both = partial(contenders, options.steps)
    with measure.training(config, overrides, both, options.workers) as trained:
        found = measure.interleaved({**trained, "plain": plain}, options.rounds)
    return {
        "ours, images/s": found["ours"],
        "plain loop, images/s": found["plain"],
        "ratio": found["ours"] / found["plain"],
        "overhead over the bare step, %": 100 * (found["bare"] / found["ours"] - 1),
    }


def main() -> None:
    parser = measure.arguments(__doc__, rounds=3)
    parser.add_argument("--models", nargs="+", default=["resnet20", "resnet56", "resnet110"])
    parser.add_argument("--batches", nargs="+", type=int, default=[128, 1024])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["default"], metavar="WAY")
    parser.add_argument("--steps", type=int, default=20, help="in each round (20)")
    parser.add_argument("--photographs", type=Path, default=Path("data/photographs"))
    parser.add_argument("--photograph-betons", type=Path, default=Path("data/imagenette"))
    cores = 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0))
    parser.add_argument(
        "--workers",
        type=int,
        default=cores,
        help="that share our batch; the plain loop is one process with as many threads "
        f"(one for a GPU, one for each core of a CPU: {cores})",
    )
    parser.usage = "python -m benchmarks.step [options] [--section.key value ...]"
    options, chosen = parser.parse_known_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for name, batch in itertools.product(options.models, options.batches):
        config, about_it, images = network(name, options)
        shared = [*about_it, "--batch.global", str(batch), "--batch.per_worker", "null"]
        how = (config, shared, options.steps, images, device)
        with measure.elsewhere("benchmarks.plain", "train", *how) as plain:
            for way in options.ways:
                overrides = [*shared, *WAYS[way], "--tracking.wandb", "disabled", *chosen]
                about = {"network": name, "batch": batch, "way": way}
                rows.append({**about, **figures(options, config, overrides, plain)})
    measure.show(
        " ".join([f"training steps, {options.workers} workers", *chosen]), rows, options.json
    )


if __name__ == "__main__":
    main()
