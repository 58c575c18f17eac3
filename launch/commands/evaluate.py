"""`dist-resnet evaluate`: a checkpoint of a run, exactly."""

import argparse
from pathlib import Path


def options(parser: argparse.ArgumentParser) -> None:
    parser.description = "Evaluate a checkpoint, exactly."
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--split", choices=("train", "val", "test"), help="(data.evaluate_on)")
    parser.add_argument("--checkpoint", choices=("latest", "best"), default="latest")
    parser.add_argument(
        "--per-class",
        action="store_true",
        help="also the accuracy of each class, and which are taken for which",
    )


def evaluate(options: argparse.Namespace) -> int:
    from launch.jobs.task import single_worker

    if not (options.run_dir / "config.yaml").exists():
        raise ValueError(f"{options.run_dir} is not a run directory: it has no config.yaml")
    single_worker()
    from dist_resnet import worker

    split, means, confusion = worker.evaluate(
        options.run_dir, options.checkpoint.upper(), options.split, options.per_class
    )
    print(
        f"{options.checkpoint}, {split}: loss {means.loss:.4f}, top-1 {100 * means.top1:.2f} %, "
        f"top-5 {100 * means.top5:.2f} % of {means.samples:,} samples"
    )
    if confusion is not None:
        from rich.console import Console

        Console(width=160).print(confusion.table())
    return 0
