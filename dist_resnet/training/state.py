"""The state of a training, as a checkpoint holds it: captured, and taken up again."""

from pathlib import Path
from typing import Any

from dist_resnet.config import differences
from dist_resnet.data.manifest import Manifest
from dist_resnet.training.loop import Training
from dist_resnet.weights.card import Card


def capture(run: Training, betons: Manifest) -> dict[str, Any]:
    """Everything that the rest of the training depends on, and what it must agree with. Every rank
    calls."""
    network = run.model.module.state_dict()
    network.update(run.ema.averaged)
    return {
        "model": network,
        "ema_of": run.ema.trained,
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "lookahead": run.lookahead.slow,
        "progress": run.progress.state(),
        "sums": run.sums.table(run.world),
        "config": run.config.to_dict(),
        "precision": run.config.train.precision,
        "card": Card.of(run.config, betons).to_dict(),
        "fast_paths": run.fast_paths,
        "devices": run.devices,
        "wandb_id": run.tracker.wandb.id,
        "data": betons.digest(),
        "world_size": run.world.size,
        "global_batch": run.plan.global_batch,
    }


def changes(saved: dict[str, Any] | None, run: Training) -> dict[str, tuple[Any, Any]]:
    """The settings that this start has as others than the checkpoint: key -> (there, now)."""
    return differences(saved["config"], run.config) if saved else {}


def restore(run: Training, saved: dict[str, Any], run_dir: Path, betons: Manifest) -> None:
    """Make a training, as built, what `capture` found. Raises ValueError where data or batch are
    others, or where it is past train.max_steps."""
    require_same_betons(saved, betons, run_dir)
    require_same_batch(saved, run, run_dir)
    reached = saved["progress"]["step"]
    if reached > run.plan.last_step:
        raise ValueError(
            f"train.max_steps = {run.config.train.max_steps}: RUN_DIR {run_dir} has reached step "
            f"{reached}; give as many or more"
        )
    run.model.module.load_state_dict(saved["model"])
    run.optimizer.load_state_dict(saved["optimizer"])
    for group in run.optimizer.param_groups:
        group["lr"] = float(group["lr"])  # a CUDA graph's is a tensor
    run.scaler.load_state_dict(saved["scaler"])
    run.lookahead.restore(saved["lookahead"])
    run.ema.restore(saved["ema_of"])
    run.progress.restore(saved["progress"])
    run.sums.restore(saved["sums"], run.world)


def require_same_betons(saved: dict[str, Any], betons: Manifest, run_dir: Path) -> None:
    if saved["data"] != betons.digest():
        raise ValueError(
            f"RUN_DIR {run_dir} was trained on other betons (digest {saved['data']}) than "
            "data.dir holds now "
            f"({betons.digest()}): restore them, or give another --run-dir"
        )


def require_same_batch(saved: dict[str, Any], run: Training, run_dir: Path) -> None:
    if saved["global_batch"] != run.plan.global_batch:
        before = saved["world_size"]
        raise ValueError(
            f"RUN_DIR {run_dir} was trained with a global batch of {saved['global_batch']} "
            f"({before} "
            f"workers), and {run.world.size} workers make {run.plan.global_batch}: use {before} "
            f"workers again, or give another --run-dir (--batch.virtual_workers {before} from the "
            "start makes the result independent of the number of workers, --batch.global the batch)"
        )
