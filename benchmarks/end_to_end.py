"""From the command to the last evaluation, ours beside the loop that people copy: python -m
benchmarks.end_to_end

Both train the same network for as many steps of the same batch, with the same learning rates. The
plain loop: fp32, NCHW, eager, torchvision's CIFAR10 and DataLoader, `.item()` every step; without
lookahead and mirrored evaluation. One round each by default: an accuracy needs a whole training."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torchvision import transforms

from benchmarks import measure, plain
from dist_resnet import models
from dist_resnet.config import SpeedrunModel, config_file, schedule
from dist_resnet.data import manifest
from dist_resnet.training import optim


def ours(options: argparse.Namespace, overrides: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        seconds = _seconds(
            [
                sys.executable,
                "-m",
                "launch",
                "train",
                str(options.config),
                "--run-dir",
                f"{folder}/run",
                "--data.dir",
                str(options.data),
                *overrides,
            ]
        )
        summary = json.loads((Path(folder) / "run/summary.json").read_text())
    return {
        "everything, s": seconds,
        "training, s": summary["seconds"]["training"],
        "top-1, %": 100 * summary[f"{summary['evaluated_on']}_top1"],
    }


def theirs(options: argparse.Namespace, overrides: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        seconds = _seconds(
            [
                sys.executable,
                "-m",
                "benchmarks.end_to_end",
                "--config",
                str(options.config),
                "--data",
                str(options.data),
                "--plain",
                f"{folder}/result.json",
                *overrides,
            ]
        )
        return {"everything, s": seconds, **json.loads((Path(folder) / "result.json").read_text())}


def _seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def plain_loop(options: argparse.Namespace, overrides: list[str]) -> None:
    config = config_file.load(options.config, ["--data.dir", str(options.data), *overrides])
    betons, workers = manifest.load(options.data), len(os.sched_getaffinity(0))
    plan = schedule.plan(config, 1, betons.splits["train"].samples)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config.train.seed)
    model = models.build(config.model, len(betons.classes)).to(device)
    optimizer = optim.build(config.optim, model, plan.whiten_bias_steps)
    loader = plain.loader(options.data, plan.global_batch, workers)
    if isinstance(config.model, SpeedrunModel) and config.model.whiten:
        model.whiten(torch.cat([images for (images, _), _ in zip(loader, range(8))]).to(device))
    began, step, total = time.perf_counter(), 0, 0.0
    while step < plan.last_step:
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            optim.set_lr(optimizer, plan.lr_at(step), step)
            loss = F.cross_entropy(
                model(images), labels, label_smoothing=config.train.label_smoothing
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
            step += 1
            if step == plan.last_step:
                break
    seconds = time.perf_counter() - began
    usual = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(betons.mean, betons.std)]
    )
    test = torch.utils.data.DataLoader(
        plain.Images(options.data, betons, config.data.evaluate_on, usual),
        config.train.eval_batch,
        num_workers=workers,
    )
    right, model = 0, model.eval()
    with torch.inference_mode():
        for images, labels in test:
            right += (model(images.to(device)).argmax(1) == labels.to(device)).sum().item()
    options.plain.write_text(
        json.dumps({"training, s": seconds, "top-1, %": 100 * right / len(test.dataset)})
    )


def main() -> None:
    parser = measure.arguments(__doc__, rounds=1)
    parser.usage = "python -m benchmarks.end_to_end [options] [--section.key value ...]"
    parser.add_argument("--config", type=Path, default=Path("configs/speedrun_cpu.yaml"))
    parser.add_argument(
        "--plain", type=Path, help=argparse.SUPPRESS
    )  # be the plain loop, and write what came of it there
    options, overrides = parser.parse_known_args()
    if options.plain:
        return plain_loop(options, overrides)
    contenders = {"ours": ours, "the plain loop": theirs}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, train in contenders.items():
            found[name].append(train(options, overrides))
    rows = [
        {
            "training": name,
            **{key: statistics.median(r[key] for r in results) for key in results[0]},
        }
        for name, results in found.items()
    ]
    for row in rows:
        row["ratio"] = rows[-1]["everything, s"] / row["everything, s"]
    measure.show(f"{options.config}, {options.rounds} rounds", rows, options.json)


if __name__ == "__main__":
    main()
