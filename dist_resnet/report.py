"""Reads run directories: a table of results, curves of one run or of many. No torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from dist_resnet import config_file
from dist_resnet.config import differences
from dist_resnet.tracking import read_metrics


def read_summary(run_dir: Path) -> dict[str, Any] | None:
    """summary.json, or None for a run that is not complete."""
    path = run_dir / "summary.json"
    return json.loads(path.read_text()) if path.exists() else None


def table(run_dirs: Sequence[Path]) -> Table:
    """A row per run: the keys in which the runs' configurations differ, then results. The best final top-1 comes first."""
    configs = {d: _config(d) for d in run_dirs}
    first = configs[run_dirs[0]]
    keys = sorted({key for c in configs.values() for key in differences(first, c)})
    rows = sorted(((_results(d), d) for d in run_dirs), key=lambda row: -(row[0]["top-1"] or 0))
    result = Table("run", *keys, *rows[0][0], caption="top-1 and top-5 of the last evaluation; ... marks a run that is not complete")
    for results, directory in rows:
        values = [configs[directory].to_dict()[k.split(".")[0]][k.split(".")[1]] for k in keys]
        result.add_row(directory.name, *map(str, values), *(_cell(name, value) for name, value in results.items()))
    return result


def draw_curves(run_dirs: Sequence[Path], path: Path, milestones: Sequence[int] = ()) -> Path:
    """Loss and error (per cent) against steps: training thin, test bold; with the milestones marked. Writes a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for number, run_dir in enumerate(run_dirs):
        records, colour = read_metrics(run_dir), f"C{number % 10}"
        label = f"{run_dir.name}, " if len(run_dirs) > 1 else ""
        for part, style in (("train", {"lw": 0.8, "alpha": 0.6}), ("test", {"lw": 1.8, "marker": "o", "ms": 3})):
            rows = [r for r in records if r.get(f"{part}/loss") is not None]
            steps = [r["step"] for r in rows]
            axes[0].plot(steps, [r[f"{part}/loss"] for r in rows], color=colour, label=label + part, **style)
            axes[1].plot(steps, [100 * (1 - r[f"{part}/top1"]) for r in rows], color=colour, label=label + part, **style)
    for axis, title in zip(axes, ("loss", "top-1 error, %")):
        for milestone in milestones:
            if milestone <= axis.get_xlim()[1]:
                axis.axvline(milestone, color="grey", ls=":", lw=1)
        axis.set(xlabel="step", title=title)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
    axes[0].set_yscale("log")
    for which in (axes[0].yaxis.set_major_formatter, axes[0].yaxis.set_minor_formatter):
        which(ticker.LogFormatter(minor_thresholds=(2, 0.5)))
    aside = path.with_suffix(".partial.png")
    figure.savefig(aside, dpi=130)
    pyplot.close(figure)
    aside.replace(path)
    return path


def draw_images(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """A PNG of images with what they are and what was answered. rows: "image" uint8 (H, W, 3), "label", "answer",
    "probability of the label"."""
    from matplotlib.figure import Figure

    columns = min(8, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(1.4 * columns, 1.75 * lines), layout="constrained")
    for place, row in enumerate(rows, 1):
        axis = figure.add_subplot(lines, columns, place)
        axis.imshow(row["image"])
        axis.set_axis_off()
        axis.set_title(f"{row['label']}: {row['probability of the label']:.1%}\nanswer: {row['answer']}", fontsize=7)
    figure.savefig(path, dpi=120)
    return path


def _config(run_dir: Path):
    if not (run_dir / "config.yaml").exists():
        raise ValueError(f"{run_dir} is not a run directory: it has no config.yaml")
    return config_file.load(run_dir / "config.yaml")


def _results(run_dir: Path) -> dict[str, Any]:
    done = read_summary(run_dir)
    if done:
        return {"data": done["dataset"], "steps": done["steps"], "top-1": done["test_top1"], "top-5": done["test_top5"],
                "best top-1": done["best_test_top1"], "images/s": done["images_per_second"],
                "minutes": sum(done["seconds"].values()) / 60}
    records = read_metrics(run_dir)
    tests = [r for r in records if r.get("test/top1") is not None]
    last, best = (tests[-1], max(r["test/top1"] for r in tests)) if tests else ({}, None)
    trained = next((r for r in reversed(records) if "lr" in r), {})
    return {"data": "...", "steps": trained.get("step"), "top-1": last.get("test/top1"), "top-5": last.get("test/top5"),
            "best top-1": best, "images/s": trained.get("images_per_second"), "minutes": 60 * trained.get("hours", 0)}


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "..."
    if "top-" in name:
        return f"{100 * value:.2f} %"
    return {"images/s": "{:,.0f}", "minutes": "{:.1f}", "steps": "{:,}"}.get(name, "{}").format(value)
