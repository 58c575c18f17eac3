"""What recomputing activations saves and costs: python -m benchmarks.memory [--section.key value
...]

Every measurement is a process of its own. Memory is what the training takes at its highest beyond
what it has before its first step: of the GPU, once cuDNN has chosen its algorithms, or else
resident memory of the process. Without a CUDA graph, which holds its memory before that."""

import argparse
import json
import resource
import subprocess
import sys

import psutil
import torch

from benchmarks import measure
from benchmarks.step import ours
from launch.jobs.task import single_worker

MIB = 2**20


def work(options: argparse.Namespace, chosen: list[str]) -> None:
    single_worker()
    with measure.built(
        0,
        1,
        "configs/resnet1202.yaml",
        [
            "--data.dir",
            str(options.data),
            "--batch.per_worker",
            str(options.batch),
            "--tracking.wandb",
            "disabled",
            *chosen,
        ],
    ) as run:
        device = run.world.device
        before = (
            torch.cuda.memory_allocated(device)
            if device.type == "cuda"
            else psutil.Process().memory_info().rss
        )
        some = ours(run, options.steps)
        some()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)  # cuDNN has tried its algorithms
        rates = [some() for _ in range(2)]
        most = (
            torch.cuda.max_memory_allocated(device)
            if device.type == "cuda"
            else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        )
        print("RESULT", json.dumps({"images/s": max(rates), "MiB": (most - before) / MIB}))


def start(options: argparse.Namespace, overrides: list[str]) -> dict[str, float]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.memory",
        "--work",
        "--data",
        str(options.data),
        "--batch",
        str(options.batch),
        "--steps",
        str(options.steps),
        *overrides,
    ]
    return json.loads(
        subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split(
            "RESULT ", 1
        )[1]
    )


def main() -> None:
    parser = measure.arguments(__doc__, rounds=3)
    parser.add_argument("--models", nargs="+", default=["resnet110", "resnet1202"])
    parser.add_argument("--batch", type=int, default=128, help="(128)")
    parser.add_argument(
        "--steps",
        type=int,
        default=2,
        help="of a measurement, of which there are three in each round (2)",
    )
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.usage = "python -m benchmarks.memory [options] [--section.key value ...]"
    options, chosen = parser.parse_known_args()
    if options.work:
        return work(options, chosen)
    rows = []
    for name in options.models:
        found: dict[str, list[dict[str, float]]] = {"false": [], "true": []}
        for _ in range(options.rounds):
            for recomputed, results in found.items():
                results.append(
                    start(
                        options,
                        [
                            "--model.name",
                            name,
                            "--train.activation_checkpointing",
                            recomputed,
                            "--train.cuda_graph",
                            "false",
                            *chosen,
                        ],
                    )
                )
        median = {
            kind: {key: sorted(f[key] for f in results)[len(results) // 2] for key in results[0]}
            for kind, results in found.items()
        }
        for kind, figures in median.items():
            rows.append(
                {
                    "network": name,
                    "batch": options.batch,
                    "activation_checkpointing": kind,
                    "memory, MiB": figures["MiB"],
                    "images/s": figures["images/s"],
                    "of the speed without, %": 100
                    * figures["images/s"]
                    / median["false"]["images/s"],
                }
            )
    measure.show("memory and speed of training steps of one worker", rows, options.json)


if __name__ == "__main__":
    main()
