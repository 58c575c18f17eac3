"""Images per second of 1, 2, 4 ... workers, and what their all-reduce takes: python -m
benchmarks.scaling

Every worker has a GPU of its own, or one CPU core. The forecast is `dist-resnet plan`'s, from the
step of one worker and the latency and bandwidth of the link, both measured here."""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks import measure
from benchmarks.step import ours
from dist_resnet.config import Config, config_file
from dist_resnet.reports import estimate
from dist_resnet.reports.estimate import Link, Step
from dist_resnet.runtime import distributed
from dist_resnet.runtime.distributed import World
from launch.jobs.task import pin

FLAT, BF16 = ("--train.all_reduce", "flat"), ("--train.gradient_type", "bf16")
WAYS: dict[str, tuple[str, ...]] = {
    "DDP's buckets, fp32": (),
    "DDP's buckets, bf16": BF16,
    "DDP's buckets, static graph": ("--train.static_graph", "true"),
    "flat, fp32": FLAT,
    "flat, bf16": (*FLAT, *BF16),
    "ordered, fp32": ("--batch.virtual_workers", "WORLD_SIZE"),
}


def work(options: argparse.Namespace) -> None:
    """One of the workers: rank 0 prints its rates as JSON."""
    if not torch.cuda.is_available():
        pin(
            int(os.environ["LOCAL_RANK"]), len(os.sched_getaffinity(0))
        )  # a core each, however many workers
    config = config_file.load(
        options.config,
        [
            "--data.dir",
            str(options.data),
            "--batch.global",
            "null",
            "--batch.per_worker",
            str(options.batch),
            "--data.loader_threads",
            "1",
            "--data.residency",
            "device",
            *(word if word != "WORLD_SIZE" else os.environ[word] for word in WAYS[options.way]),
        ],
    )
    with distributed.connect("auto", 120) as world:
        found = measured(options, config, world)
        if world.rank == 0:
            print("RESULT", json.dumps(found))


def measured(options: argparse.Namespace, config: Config, world: World) -> dict[str, float]:
    run = measure.build(config, Path("."), world)  # which nothing is written to
    some = ours(run, options.steps)
    some()
    rates = [some() for _ in range(options.repeats)]
    size = sum(p.numel() for p in run.model.parameters())
    return {
        "images/s": sorted(rates)[len(rates) // 2],
        "bytes": 4 * size,
        "all-reduce": all_reduce_seconds(world, size),
        "smallest all-reduce": all_reduce_seconds(world, 1),
    }


def all_reduce_seconds(world: World, numbers: int, times: int = 30) -> float:
    """The median of so many, of float32."""
    buffer, seconds = torch.zeros(numbers, device=world.device), []
    for _ in range(times):
        world.barrier()
        began = time.perf_counter()
        world.sum(buffer)[0].item()
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[times // 2]


def start(options: argparse.Namespace, workers: int, way: str) -> dict[str, float]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [
        sys.executable,
        "-m",
        "benchmarks.scaling",
        "--way",
        way,
        "--config",
        str(options.config),
        "--data",
        str(options.data),
        "--batch",
        str(options.batch),
        "--steps",
        str(options.steps),
        "--repeats",
        str(options.repeats),
    ]
    processes = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(workers),
                "LOCAL_WORLD_SIZE": str(workers),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "GLOO_SOCKET_IFNAME": "lo",
                "OMP_NUM_THREADS": "1",
            },
        )
        for rank in range(workers)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"a worker of {workers} ended with an error: see above")
    return json.loads(outputs[0].split("RESULT ", 1)[1])


def main() -> None:
    parser = measure.arguments(__doc__, rounds=3)
    parser.add_argument("--config", type=Path, default=Path("configs/resnet20.yaml"))
    parser.add_argument("--batch", type=int, default=128, help="per worker (128)")
    parser.add_argument("--steps", type=int, default=10, help="of a measurement (10)")
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="measurements of each start, of which the median is taken (3)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        nargs="+",
        help="how many (1, 2, 4 ... as devices or CPU cores allow)",
    )
    parser.add_argument(
        "--way", choices=WAYS, help=argparse.SUPPRESS
    )  # a worker is to measure this
    options = parser.parse_args()
    if options.way:
        return work(options)
    most = torch.cuda.device_count() or len(os.sched_getaffinity(0))
    counts = options.workers or [2**k for k in range(10) if 2**k <= most]
    kinds = [(count, way) for count in counts for way in (WAYS if count > 1 else ["flat, fp32"])]
    found = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        for kind in kinds:
            found[kind].append(start(options, *kind))
    median = {
        kind: {key: sorted(f[key] for f in results)[len(results) // 2] for key in results[0]}
        for kind, results in found.items()
    }
    alone = median[kinds[0]]["images/s"] / counts[0]
    config, rows = config_file.load(options.config, ["--data.dir", str(options.data)]), []
    for (count, way), figures in median.items():
        link = Link(
            figures["bytes"]
            / max(figures["all-reduce"] - figures["smallest all-reduce"], 1e-9)
            * 2
            * (count - 1)
            / count,
            figures["smallest all-reduce"] / max(1, 2 * (count - 1)),
        )
        told = estimate.estimate(
            config, Step(0.0, 1 / alone), link, figures["bytes"], 50_000, count, options.batch
        )
        rows.append(
            {
                "workers": count,
                "all-reduce": way,
                "images/s": figures["images/s"],
                "efficiency, %": 100 * figures["images/s"] / (count * alone),
                "step, ms": 1e3 * count * options.batch / figures["images/s"],
                "forecast, ms": told["step, ms"],
                "fp32 all-reduce alone, ms": 1e3 * figures["all-reduce"],
            }
        )
    measure.show(f"{config.model.name}, {options.batch} images per worker", rows, options.json)


if __name__ == "__main__":
    main()
