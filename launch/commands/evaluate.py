"""`dist-resnet evaluate`: a checkpoint of a run, exactly."""

import argparse
import json
from pathlib import Path

from dist_resnet.runtime import terminal


def options(parser: argparse.ArgumentParser) -> None:
    parser.description = "Evaluate a checkpoint, exactly."
    parser.add_argument("run_dir", type=Path)
    parser.add_argument(
        "--split", choices=("train", "val", "test"), help="(default: data.evaluate_on)"
    )
    parser.add_argument(
        "--checkpoint", choices=("latest", "best"), default="latest", help="of the run"
    )
    parser.add_argument(
        "--per-class",
        action="store_true",
        help="also the accuracy of each class, and which are taken for which",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def evaluate(options: argparse.Namespace) -> int:
    from launch.jobs.task import single_worker

    if not (options.run_dir / "config.yaml").exists():
        raise ValueError(f"{options.run_dir} is not a run directory: it has no config.yaml")
    single_worker()
    from dist_resnet import worker

    with terminal.for_json(options.json):
        split, means, confusion = worker.evaluate(
            options.run_dir, options.checkpoint.upper(), options.split, options.per_class
        )
    if options.json:
        figures = {"checkpoint": options.checkpoint, "split": split}
        figures |= {name: getattr(means, name) for name in ("loss", "top1", "top5", "samples")}
        print(json.dumps(figures | (confusion.to_dict() if confusion else {})))
        return 0
    print(
        f"{options.checkpoint}, {split}: loss {means.loss:.4f}, top-1 {100 * means.top1:.2f} %, "
        f"top-5 {100 * means.top5:.2f} % of {means.samples:,} samples"
    )
    if confusion is not None:
        from rich.console import Console

        Console(width=160).print(confusion.table())
    return 0
