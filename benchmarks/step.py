"""Images per second of whole training steps, ours beside the loop that people copy: python -m
benchmarks.step [--section.key value ...]

The plain loop: fp32, NCHW, eager, torchvision's CIFAR10 and DataLoader, `.item()` every step. Bare:
our network, precision and layout on one batch that is there already, with nothing else: what our
loop adds to that is its overhead."""

import os
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks import measure
from dist_resnet import models
from dist_resnet.config import CifarModel
from dist_resnet.training import loop
from dist_resnet.training.loop import Training


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


def plain(name: str, batch: int, steps: int, data, device: str) -> Callable[[], float]:
    model = models.build(CifarModel(name=name), 10).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    loader = measure.plain_loader(data, batch, len(os.sched_getaffinity(0)))
    state = {"iterator": iter(loader), "loss": 0.0}

    def some() -> float:
        model.train()
        began = time.perf_counter()
        for _ in range(steps):
            found = next(state["iterator"], None)
            if found is None:
                state["iterator"] = iter(loader)
                found = next(state["iterator"])
            images, labels = (t.to(device) for t in found)
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            state["loss"] += loss.item()
        return steps * batch / (time.perf_counter() - began)

    return some


def main() -> None:
    parser = measure.arguments(__doc__, rounds=3)
    parser.add_argument("--models", nargs="+", default=["resnet20", "resnet56", "resnet110"])
    parser.add_argument("--batches", nargs="+", type=int, default=[128, 1024])
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
    rows = []
    for name in options.models:
        for batch in options.batches:
            overrides = [
                f"--model.name={name}",
                f"--data.dir={options.data}",
                "--batch.per_worker=null",
                f"--batch.global={batch}",
                "--tracking.wandb=disabled",
                *chosen,
            ]
            both = partial(contenders, options.steps)
            device = "cuda" if torch.cuda.is_available() else "cpu"
            with (
                measure.elsewhere(
                    plain, name, batch, options.steps, options.data, device
                ) as plainly,
                measure.training(
                    "configs/resnet20.yaml", overrides, both, options.workers
                ) as trained,
            ):
                found = measure.interleaved({**trained, "plain": plainly}, options.rounds)
            rows.append(
                {
                    "network": name,
                    "batch": batch,
                    "ours, images/s": found["ours"],
                    "plain loop, images/s": found["plain"],
                    "ratio": found["ours"] / found["plain"],
                    "overhead over the bare step, %": 100 * (found["bare"] / found["ours"] - 1),
                }
            )
    measure.show(
        " ".join([f"training steps, {options.workers} workers", *chosen]), rows, options.json
    )


if __name__ == "__main__":
    main()
