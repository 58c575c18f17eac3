"""A search: a sweep's space, from which trials are drawn as results come in; what of it is fixed
once it has begun."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from dist_resnet.config import Config, require, schedule
from dist_resnet.config.schedule import Plan
from dist_resnet.data import manifest
from dist_resnet.reports.search import require_optuna
from launch.executors import local
from launch.executors.resources import Resources, check
from launch.sweeps import definition, rungs
from launch.sweeps.definition import Sweep
from launch.sweeps.rungs import Rungs

METRICS = {"val/top1": "maximize", "val/top5": "maximize", "val/loss": "minimize"}


@dataclass(frozen=True)
class Search:
    """kind: as the command line has it; samples: of the training split; directory: of the journal
    and the RUN_DIRs."""

    sweep: Sweep
    kind: str
    draws: Literal["random", "tpe"]
    rungs: Rungs
    seed: int
    cap: int
    overrides: tuple[str, ...]
    workers: int
    samples: int
    directory: str

    @property
    def metric(self) -> str:
        return self.sweep.content["metric"]["name"]

    @property
    def maximize(self) -> bool:
        return METRICS[self.metric] == "maximize"

    def configuration(self, values: dict[str, Any]) -> tuple[Config, Plan]:
        """Of a trial. Raises ValueError where the configuration refuses the values."""
        config = definition.configuration(self.sweep, values, self.overrides)
        _require_val(config)
        return config, schedule.plan(config, self.workers, self.samples)

    def rung(self, plan: Plan, rung: int) -> tuple[int, int]:
        """(evaluations, steps) after which a trial is at a rung. The last is its full length."""
        evaluations = evaluations_of(plan)
        if rung == self.rungs.last or self.rungs.iterations[rung] >= evaluations:
            return evaluations, plan.last_step
        return self.rungs.iterations[rung], self.rungs.iterations[rung] * plan.evaluate_every

    def fix(self) -> None:
        """Note in the directory what is searched. Raises ValueError where it holds another search;
        only the number of trials may change."""
        content = {k: v for k, v in self.sweep.content.items() if k != "run_cap"}
        fixed = {
            "search": self.kind,
            "seed": self.seed,
            "overrides": list(self.overrides),
            "workers": self.workers,
            "file": content,
        }
        path, text = Path(self.directory) / "search.yaml", yaml.safe_dump(fixed, sort_keys=False)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_suffix(".partial")
            aside.write_text(text)
            aside.replace(path)
        elif path.read_text() != text:
            raise ValueError(
                f"{path.parent} holds another search (see {path}): give another --sweep-dir, or "
                "the file, options and number of workers that it was begun with"
            )


def constants(sweep: Sweep) -> dict[str, Any]:
    """What all trials have."""
    return {key: spec["value"] for key, spec in sweep.parameters.items() if "value" in spec}


def evaluations_of(plan: Plan) -> int:
    return -(-plan.last_step // plan.evaluate_every)


def of(
    sweep: Sweep, directory: Path, options: argparse.Namespace, overrides: Sequence[str]
) -> Search:
    """The search that the command line asks for. Raises ValueError for what cannot be searched."""
    require_optuna()
    kind, method = options.search, sweep.method
    remedy = "is a list of runs: leave out --search, or write random or bayes"
    require(kind != "file" or method != "grid", "method", method, remedy)
    cap = min((n for n in (options.count, sweep.content.get("run_cap")) if n), default=None)
    require(cap is not None, "--search", kind, "has no end: give --count N, or run_cap in the file")
    _require_metric(sweep)
    base = definition.configuration(sweep, constants(sweep), overrides)
    _require_val(base)
    resources = Resources.of(options, base.train.device)
    check(base, resources.workers)
    if not resources.on_slurm:
        local.check(resources.workers * options.agents, base.train.device)
    samples = manifest.load(Path(base.data.dir), base.data.dataset).splits["train"].samples
    plan = schedule.plan(base, resources.workers, samples)
    early = sweep.content.get("early_terminate")
    if kind == "asha" and early is None:
        early = {"type": "hyperband", "min_iter": 1}
    found = rungs.of(early if kind in ("file", "asha") else None, evaluations_of(plan))
    require(
        kind != "asha" or found.rule == "asha",
        "--search asha: early_terminate",
        early,
        "is another rule: give --search file",
    )
    draws: Literal["random", "tpe"] = (
        "tpe" if kind == "tpe" or (kind != "random" and method == "bayes") else "random"
    )
    return Search(
        sweep=sweep,
        kind=kind,
        draws=draws,
        rungs=found,
        seed=options.seed,
        cap=cap or 0,
        overrides=tuple(overrides),
        workers=resources.workers,
        samples=samples,
        directory=str(directory.resolve()),
    )


def _require_metric(sweep: Sweep) -> None:
    metric = sweep.content.get("metric") or {}
    name: str = metric.get("name", "")
    remedy = (
        f"a search chooses on held-out images, never on test: use one of {', '.join(METRICS)}, "
        "with --data.evaluate_on val"
    )
    require(name in METRICS, "metric: name", name, remedy)
    goal = metric.get("goal", "minimize")  # W&B's default
    require(goal == METRICS[name], f"metric: goal of {name}", goal, f"must be {METRICS[name]}")


def _require_val(config: Config) -> None:
    require(
        config.data.evaluate_on == "val",
        "data.evaluate_on",
        config.data.evaluate_on,
        "a search chooses on held-out images: set --data.evaluate_on val (and, to have the test's "
        "figure of whole trials too, --train.final_split test)",
    )
