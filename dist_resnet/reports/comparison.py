"""Reads run directories, also of runs in progress, and compares them: what differs, what came of
it, means over seeds."""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_resnet.config import Config, config_file, differences
from dist_resnet.reports import search
from dist_resnet.reports.search import Search, Trial
from dist_resnet.tracking import starts
from dist_resnet.tracking.tracker import read_metrics

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Run:
    path: Path
    config: Config
    results: dict[str, Any]  # column -> value; None: not known yet
    complete: bool

    @property
    def top1(self) -> float | None:
        return self.results["top-1"]


@dataclass(frozen=True)
class Comparison:
    """Runs, the best final top-1 first, the keys in which their configurations differ, and the
    searches that some of them are trials of."""

    runs: list[Run]
    changed: list[str]
    searches: list[Search]

    def name(self, run: Run) -> str:
        """Its directory's, with that of the sweep where several have one of that name."""
        names = [other.path.name for other in self.runs]
        alone = names.count(run.path.name) == 1
        return run.path.name if alone else f"{run.path.parent.name}/{run.path.name}"

    def cells(self, run: Run) -> dict[str, Any]:
        """A row of the table: the results, then the keys that differ; None for a key that the run's
        family does not have."""
        values = run.config.flat()
        return {**run.results, **{key: values.get(key) for key in self.changed}}

    def settings(self, run: Run) -> dict[str, Any]:
        """The keys that differ and that an experiment is about: not the seed, nor how it was
        run."""
        values = run.config.flat()
        apart = {"train.seed"} | run.config.may_change() - {"train.max_steps"}
        return {key: values.get(key) for key in self.changed if key not in apart}


def compare(paths: Sequence[Path]) -> Comparison:
    """Compare RUN_DIRs; a directory that holds some, such as a sweep's, stands for all of them.

    Raises ValueError for a path that is neither."""
    found = [run_dir for path in paths for run_dir in find(path)]
    configs = {d: config_file.load(d / "config.yaml") for d in dict.fromkeys(found)}
    first = next(iter(configs.values()))
    changed = sorted({key for config in configs.values() for key in differences(first, config)})
    summaries = {run_dir: read_summary(run_dir) for run_dir in configs}
    goal = _goal([s for s in summaries.values() if s])
    finals = sorted({c.train.final_split for c in configs.values() if c.train.final_split})
    runs = [
        Run(d, config, _results(d, config, summaries[d], goal, finals), summaries[d] is not None)
        for d, config in configs.items()
    ]
    if len({s.get("precision") for s in summaries.values() if s}) > 1:
        runs = [_with_precision(run, summaries[run.path]) for run in runs]
    searches = [begun for path in paths if (begun := search.read(path))]
    if searches:
        trials = {s.path / t.name: t for s in searches for t in s.trials}
        runs = [dataclasses.replace(r, results=_with_rung(r, trials.get(r.path))) for r in runs]
    return Comparison(sorted(runs, key=lambda run: -(run.top1 or 0)), changed, searches)


def _with_rung(run: Run, trial: Trial | None) -> dict[str, Any]:
    """The results, and the evaluations until the rung of its search that the run has reached."""
    last = trial.last if trial else None
    return {**run.results, "evaluations": last.iteration if last else None}


def _with_precision(run: Run, done: dict[str, Any] | None) -> Run:
    """What train.precision was settled as: for runs that differ in it, whatever they asked for."""
    settled = done.get("precision") if done else None
    return dataclasses.replace(run, results={**run.results, "precision": settled})


def find(path: Path) -> list[Path]:
    if (path / "config.yaml").exists():
        return [path]
    inside = sorted(p.parent for p in path.glob("*/config.yaml"))
    if not inside:
        raise ValueError(f"{path} is not a run directory, nor holds any: there is no config.yaml")
    return inside


def read_summary(run_dir: Path) -> dict[str, Any] | None:
    """summary.json, or None for a run that is not complete."""
    path = run_dir / "summary.json"
    return json.loads(path.read_text()) if path.exists() else None


def by_commit(comparison: Comparison) -> dict[str, list[Path]]:
    """Commit -> the runs that it has trained, or a part of: a run of several commits is under
    each."""
    found: dict[str, list[Path]] = {}
    for run in comparison.runs:
        for commit in dict.fromkeys(start.get("commit") for start in starts.read(run.path)):
            if commit:
                found.setdefault(commit, []).append(run.path)
    return found


def seeds_of(comparison: Comparison) -> list[list[Run]]:
    """The complete runs that differ in nothing but the seed: same settings, data and world size. A
    seed counts once."""
    groups: dict[str, dict[int, Run]] = {}
    for run in comparison.runs:
        if run.complete:
            same = ("data", "workers", "precision")
            about = [comparison.settings(run), *(run.results.get(key) for key in same)]
            seeds = groups.setdefault(json.dumps(about), {})
            seeds.setdefault(run.config.train.seed, run)
    return [list(group.values()) for group in groups.values()]


def over_seeds(comparison: Comparison) -> list[dict[str, Any]]:
    """For settings that were run with several seeds, the best first: what differs, the number of
    seeds; of the final top-1 the mean, the sample's standard deviation and half of the 95 %
    interval of the mean (Student's t); and whether that interval and the first row's have nothing
    in common."""
    rows = []
    for runs in seeds_of(comparison):
        if len(runs) > 1:
            top1 = [run.top1 or 0.0 for run in runs]
            mean, std, half = statistics.mean(top1), statistics.stdev(top1), interval(top1)
            row = {"top-1": mean, "± 95 %": half, "std of top-1": std, "seeds": len(runs)}
            rows.append(
                {**row, **comparison.settings(runs[0]), "workers": runs[0].results["workers"]}
            )
    rows.sort(key=lambda row: -row["top-1"])
    for row in rows:
        first = rows[0]
        row["apart from the first"] = (
            row["top-1"] + row["± 95 %"] < first["top-1"] - first["± 95 %"]
        )
    return rows


def interval(values: Sequence[float]) -> float:
    """Half the width of the 95 % confidence interval of the mean of two values or more (Student
    1908)."""
    from mpmath import betainc, findroot  # only where there are seeds

    freedom = len(values) - 1

    def beyond(t: float) -> float:
        """How much more often than allowed |T| is larger than t."""
        part = freedom / (freedom + t**2)
        return betainc(freedom / 2, 0.5, 0, part, regularized=True) - (1 - CONFIDENCE)

    t = findroot(beyond, (1.9, 13), solver="anderson")  # 12.7 for two values, 1.96 for very many
    return float(t) * statistics.stdev(values) / len(values) ** 0.5


def _goal(summaries: Sequence[dict[str, Any]]) -> int | None:
    """The accuracy, in per cent, whose time is shown: the highest threshold that most complete runs
    have reached."""
    reached = [
        int(percent)
        for summary in summaries
        for percent, seconds in summary["seconds_to_top1"].items()
        if seconds is not None
    ]
    often = [percent for percent in set(reached) if 2 * reached.count(percent) > len(summaries)]
    return max(often or reached, default=None)


def _results(
    run_dir: Path,
    config: Config,
    done: dict[str, Any] | None,
    goal: int | None,
    finals: Sequence[str],
) -> dict[str, Any]:
    """Column -> value. The accuracies are those of the split that the run evaluates on; `finals`:
    what any of the runs compared is evaluated on at its end besides."""
    split, own = config.data.evaluate_on, config.train.final_split
    if done:
        seconds = done["seconds_to_top1"].get(str(goal))
        time_to = {f"minutes to {goal} %": seconds and seconds / 60} if goal else {}
        return {
            "top-1": done[f"{split}_top1"],
            "top-5": done[f"{split}_top5"],
            "best top-1": done[f"best_{split}_top1"],
            **{f"final {s} top-1": done[f"{s}_top1"] if s == own else None for s in finals},
            **time_to,
            "split": split,
            "hours": sum(done["seconds"].values()) / 3600,
            "images/s": done["images_per_second"],
            "steps": done["steps"],
            "workers": done["world_size"],
            "parameters": done["parameters"],
            "data": done["dataset"],
        }
    records = read_metrics(run_dir)
    evaluations = [r for r in records if r.get(f"{split}/top1") is not None]
    last = evaluations[-1] if evaluations else {}
    trained: dict[str, Any] = next((r for r in reversed(records) if "lr" in r), {})
    return {
        "top-1": last.get(f"{split}/top1"),
        "top-5": last.get(f"{split}/top5"),
        "best top-1": max((r[f"{split}/top1"] for r in evaluations), default=None),
        **{f"final {s} top-1": None for s in finals},
        **({f"minutes to {goal} %": None} if goal else {}),
        "split": split,
        "hours": trained.get("hours"),
        "images/s": trained.get("images_per_second"),
        "steps": trained.get("step"),
        "workers": None,
        "parameters": None,
        "data": None,
    }
