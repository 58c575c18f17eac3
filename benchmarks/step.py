"""Images per second of whole training steps, ours beside the loop that people copy: python -m
benchmarks.step [--section.key value ...]

The plain loop: benchmarks/plain.py. Bare: our network, precision and layout on one batch that is
there already, with nothing else: what our loop adds to that is its overhead."""

import argparse
import itertools
import os
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks import measure
from dist_resnet.training import loop
from dist_resnet.training.loop import Training

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


def figures(options: argparse.Namespace, overrides: list[str], plain: Callable) -> dict[str, float]:
    both = partial(contenders, options.steps)
    with measure.training("configs/resnet20.yaml", overrides, both, options.workers) as trained:
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
        how = (name, batch, options.steps, options.data, device)
        with measure.elsewhere("benchmarks.plain", "train", *how) as plain:
            for way in options.ways:
                overrides = ["--model.name", name, "--batch.global", str(batch), *WAYS[way]]
                overrides += ["--batch.per_worker", "null", "--data.dir", str(options.data)]
                overrides += ["--tracking.wandb", "disabled", *chosen]
                about = {"network": name, "batch": batch, "way": way}
                rows.append({**about, **figures(options, overrides, plain)})
    measure.show(
        " ".join([f"training steps, {options.workers} workers", *chosen]), rows, options.json
    )


if __name__ == "__main__":
    main()
