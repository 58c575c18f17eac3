"""Reads run directories, also of runs in progress, and compares them. No torch."""

import csv
import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from dist_resnet import config_file
from dist_resnet.config import Config, differences
from dist_resnet.page import Row, page
from dist_resnet.tracking import read_metrics

KEPT_APART = ("train.seed", "tracking.group", "tracking.tags", "data.dir")  # not what an experiment is about


@dataclass(frozen=True)
class Run:
    path: Path
    config: Config
    results: dict[str, Any]  # column -> value; None: not known yet
    complete: bool


@dataclass(frozen=True)
class Comparison:
    """Runs, the best final top-1 first, and the keys in which their configurations differ."""

    runs: list[Run]
    changed: list[str]

    def cells(self, run: Run) -> dict[str, Any]:
        """A row of the table: the keys that differ, then the results."""
        nested = run.config.to_dict()
        return {**{key: nested[key.split(".")[0]][key.split(".")[1]] for key in self.changed}, **run.results}


def compare(paths: Sequence[Path]) -> Comparison:
    """Compare RUN_DIRs; a directory that holds some, such as a sweep's, stands for all of them.

    Raises ValueError for a path that is neither."""
    found = [run_dir for path in paths for run_dir in find(path)]
    configs = {run_dir: config_file.load(run_dir / "config.yaml") for run_dir in dict.fromkeys(found)}
    first = next(iter(configs.values()))
    changed = sorted({key for config in configs.values() for key in differences(first, config)})
    summaries = {run_dir: read_summary(run_dir) for run_dir in configs}
    goal = _goal([s for s in summaries.values() if s])
    runs = [Run(d, config, _results(d, summaries[d], goal), summaries[d] is not None) for d, config in configs.items()]
    return Comparison(sorted(runs, key=lambda run: -(run.results["top-1"] or 0)), changed)


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


def over_seeds(comparison: Comparison) -> list[dict[str, Any]]:
    """For settings that were run with several seeds: what differs, the number of seeds, mean and standard deviation of the
    final top-1 (of the sample, n - 1), the best first."""
    keys = [key for key in comparison.changed if key not in KEPT_APART]
    groups: dict[str, list[Run]] = {}
    for run in comparison.runs:
        if run.complete:
            groups.setdefault(json.dumps([comparison.cells(run)[key] for key in keys]), []).append(run)
    rows = []
    for runs in groups.values():
        if len(runs) > 1:
            top1 = [run.results["top-1"] for run in runs]
            rows.append({**{key: comparison.cells(runs[0])[key] for key in keys}, "seeds": len(runs),
                         "top-1": statistics.mean(top1), "std of top-1": statistics.stdev(top1)})
    return sorted(rows, key=lambda row: -row["top-1"])


def tables(comparison: Comparison) -> list[Table]:
    """For the console: the runs, and means over seeds where there are any."""
    made = [_table("run", [{"run": run.path.name, **comparison.cells(run)} for run in comparison.runs],
                   "top-1 and top-5 of the last evaluation; ... marks what is not known yet")]
    means = over_seeds(comparison)
    return made + ([_table("mean over seeds", means, "standard deviation of the sample")] if means else [])


def as_csv(comparison: Comparison) -> str:
    """Unrounded; empty where not known yet."""
    rows = [{"run": str(run.path), "complete": run.complete, **comparison.cells(run)} for run in comparison.runs]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_json(comparison: Comparison) -> str:
    runs = [{"run": str(run.path), "complete": run.complete, **comparison.cells(run)} for run in comparison.runs]
    return json.dumps({"changed": comparison.changed, "runs": runs, "over_seeds": over_seeds(comparison)}, indent=1) + "\n"


def as_markdown(comparison: Comparison) -> str:
    parts = [[{"run": run.path.name, **comparison.cells(run)} for run in comparison.runs], over_seeds(comparison)]
    return "\n".join(_markdown(rows) for rows in parts if rows)


def as_html(comparison: Comparison, title: str) -> str:
    rows = []
    for run in comparison.runs:
        cells = {key: _page_cell(value) if key in comparison.changed else value for key, value in comparison.cells(run).items()}
        rows.append(Row(run.path.name, cells, _page_curves(read_metrics(run.path)), run.complete))
    return page(title, rows, changed=comparison.changed)


def _page_cell(value: Any) -> Any:
    return value if isinstance(value, (int, float, str)) else "null" if value is None else str(value)


def _page_curves(records: Sequence[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    metrics = ("train/loss", "test/loss", "train/top1", "test/top1", "train/top5", "test/top5", "lr", "images_per_second", "grad_norm")
    return {m: [(r["step"], r[m]) for r in records if r.get(m) is not None] for m in metrics}


def _goal(summaries: Sequence[dict[str, Any]]) -> int | None:
    """The accuracy, in per cent, whose time is shown: the highest threshold that most complete runs have reached."""
    reached = [int(percent) for s in summaries for percent, seconds in s["seconds_to_top1"].items() if seconds is not None]
    often = [percent for percent in set(reached) if 2 * reached.count(percent) > len(summaries)]
    return max(often or reached, default=None)


def _results(run_dir: Path, done: dict[str, Any] | None, goal: int | None) -> dict[str, Any]:
    time_to = {f"minutes to {goal} %": None} if goal else {}
    if done:
        seconds = done["seconds_to_top1"].get(str(goal))
        return {"data": done["dataset"], "steps": done["steps"], "top-1": done["test_top1"], "top-5": done["test_top5"],
                "best top-1": done["best_test_top1"], **{key: seconds and seconds / 60 for key in time_to},
                "images/s": done["images_per_second"], "hours": sum(done["seconds"].values()) / 3600}
    records = read_metrics(run_dir)
    tests = [r for r in records if r.get("test/top1") is not None]
    last, best = (tests[-1], max(r["test/top1"] for r in tests)) if tests else ({}, None)
    trained = next((r for r in reversed(records) if "lr" in r), {})
    return {"data": None, "steps": trained.get("step"), "top-1": last.get("test/top1"), "top-5": last.get("test/top5"),
            "best top-1": best, **time_to, "images/s": trained.get("images_per_second"), "hours": trained.get("hours")}


def _table(title: str, rows: Sequence[dict[str, Any]], caption: str) -> Table:
    made = Table(*rows[0], title=None if "run" in rows[0] else title, caption=caption)
    for row in rows:
        made.add_row(*(_text(name, value) for name, value in row.items()))
    return made


def _markdown(rows: Sequence[dict[str, Any]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([_text(name, value) for name, value in row.items()] for row in rows)]
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |\n" for line in lines)


def _text(name: str, value: Any) -> str:
    if "top-1" in name or "top-5" in name:
        return "..." if value is None else f"{100 * value:.2f} %"
    if value is None:
        return "null" if "." in name else "..."
    form = "{:.1f}" if name.startswith("minutes") else {"images/s": "{:,.0f}", "hours": "{:.3f}", "steps": "{:,}"}.get(name, "{}")
    return form.format(value)
