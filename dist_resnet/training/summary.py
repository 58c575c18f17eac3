"""summary.json: the result of a run that has reached its end, and what it was made with."""

import json
import os
from pathlib import Path
from typing import Any

from dist_resnet.tracking import starts
from dist_resnet.training.loop import Training
from dist_resnet.training.progress import THRESHOLDS


def summary(run: Training, dataset: str) -> dict[str, Any]:
    """Accuracies are the last evaluation's, under the name of its split ('test_top1' or
    'val_top1'); the best apart."""
    progress, split = run.progress, run.config.data.evaluate_on
    seconds = progress.clock.booked()
    samples = progress.step * run.plan.global_batch
    to_top1 = {str(p): progress.seconds_to_top1.get(str(p)) for p in THRESHOLDS}
    return {
        "dataset": dataset,
        "model": run.config.model.name,
        "world_size": run.world.size,
        "device": run.world.device.type,
        "precision": run.config.train.precision,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "fast_paths": run.fast_paths,
        "steps": progress.step,
        "samples": samples,
        "evaluated_on": split,
        **{f"{split}_{name}": progress.evaluated[name] for name in ("loss", "top1", "top5")},
        f"best_{split}_top1": progress.best_top1,
        "best_step": progress.best_step,
        "images_per_second": samples / seconds["training"],
        "seconds": seconds,
        "seconds_to_top1": to_top1,
        "versions": starts.versions(),
        "git_commit": starts.commit(),
    }


def write(run_dir: Path, content: dict[str, Any]) -> None:
    """Whole or not at all: a run with a summary is complete."""
    aside = run_dir / "summary.json.partial"
    aside.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(aside, run_dir / "summary.json")
