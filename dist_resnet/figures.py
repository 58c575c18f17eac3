"""Pictures of runs, as PNG: curves, a sweep's results over its parameters, images. No torch."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dist_resnet.tracking import read_metrics

NAMED = 10  # runs whose curves have a name in a comparison, at most


def draw_curves(run_dirs: Sequence[Path], path: Path, milestones: Sequence[int] = ()) -> Path:
    """Loss and error (per cent) against steps: training thin, test bold; with the milestones marked."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    _curves(figure.subplots(1, 2), run_dirs, milestones)
    return _save(figure, path)


def draw_comparison(run_dirs: Sequence[Path], points: Sequence[dict[str, Any]], results: Sequence[float | None], path: Path) -> Path:
    """Curves of all runs; below, where their configurations differ in two keys or more, the final top-1 over the two keys
    that it depends on most, and parallel coordinates over all. More than ten runs have the colour of their top-1 and no names.

    points: for each run, the keys that differ and their values; results: its top-1, None where there is none yet."""
    finished = [(point, result) for point, result in zip(points, results) if result is not None]
    keys = by_importance([p for p, _ in finished], [r for _, r in finished])
    rows = 2 if len(finished) >= 3 and keys else 1
    figure = Figure(figsize=(12, 4.6 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False)
    values = 100 * np.array([result for _, result in finished])
    if len(run_dirs) > NAMED:
        known = {place: _colour(100 * result, values) for place, result in enumerate(results) if result is not None}
        _curves(axes[0], run_dirs, (), [known.get(place, "lightgrey") for place in range(len(run_dirs))])
    else:
        _curves(axes[0], run_dirs, ())
    if rows == 2:
        _over_parameters(axes[1][0], [p for p, _ in finished], values, keys[:2])
        _parallel(axes[1][1], [p for p, _ in finished], values, keys)
    return _save(figure, path)


def draw_images(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Images with what they are and what was answered. rows: "image" uint8 (H, W, 3), "label", "answer",
    "probability of the label"."""
    columns = min(8, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(1.4 * columns, 1.75 * lines), layout="constrained")
    for place, row in enumerate(rows, 1):
        axis = figure.add_subplot(lines, columns, place)
        axis.imshow(row["image"])
        axis.set_axis_off()
        axis.set_title(f"{row['label']}: {row['probability of the label']:.1%}\nanswer: {row['answer']}", fontsize=7)
    return _save(figure, path)


def by_importance(points: Sequence[dict[str, Any]], results: Sequence[float]) -> list[str]:
    """The keys that differ, first the one whose value explains most of the results' variance (eta squared)."""
    keys = [key for key in (points[0] if points else {}) if len({str(p[key]) for p in points}) > 1]
    values = np.array(results, float)

    def explained(key: str) -> float:
        groups = [values[[str(p[key]) == name for p in points]] for name in {str(p[key]) for p in points}]
        return sum(len(g) * (g.mean() - values.mean()) ** 2 for g in groups) / max(values.var() * len(values), 1e-12)

    return sorted(keys, key=explained, reverse=True)


def _curves(axes: Sequence[Axes], run_dirs: Sequence[Path], milestones: Sequence[int], colours: Sequence[Any] = ()) -> None:
    """Without colours each run has one of its own, and its name beside it."""
    for number, run_dir in enumerate(run_dirs):
        records, colour = read_metrics(run_dir), colours[number] if colours else f"C{number % 10}"
        label = f"{run_dir.name}, " if len(run_dirs) > 1 else ""
        for part, style in (("train", {"lw": 0.8, "alpha": 0.6}), ("test", {"lw": 1.8, "marker": "o", "ms": 3})):
            rows = [r for r in records if r.get(f"{part}/loss") is not None]
            steps = [r["step"] for r in rows]
            name = label + part if len(run_dirs) < 6 or part == "test" else None
            axes[0].plot(steps, [r[f"{part}/loss"] for r in rows], color=colour, label=name, **style)
            axes[1].plot(steps, [100 * (1 - r[f"{part}/top1"]) for r in rows], color=colour, label=name, **style)
    for axis, title in zip(axes, ("loss", "top-1 error, %")):
        for milestone in milestones:
            if milestone <= axis.get_xlim()[1]:
                axis.axvline(milestone, color="grey", ls=":", lw=1)
        axis.set(xlabel="step", title=title)
        axis.grid(alpha=0.25)
    if not colours:
        axes[1].legend(fontsize=8 if len(run_dirs) < 6 else 6)
    axes[0].set_yscale("log")
    for which in (axes[0].yaxis.set_major_formatter, axes[0].yaxis.set_minor_formatter):
        which(ticker.LogFormatter(minor_thresholds=(2, 0.5)))


def _over_parameters(axis: Axes, points: Sequence[dict[str, Any]], values: np.ndarray, keys: Sequence[str]) -> None:
    """A heat map over two keys (the mean where runs share a cell), or the values over one."""
    levels = [_levels(points, key) for key in keys]
    if len(keys) == 1:
        places = [levels[0].index(str(p[keys[0]])) for p in points]
        axis.plot(places, values, "o")
        axis.set(xlabel=keys[0], ylabel="top-1, %", title=f"top-1 over {keys[0]}", xticks=range(len(levels[0])), xticklabels=levels[0])
        axis.grid(alpha=0.25)
        return
    grid = np.full((len(levels[1]), len(levels[0])), np.nan)
    for y, first in enumerate(levels[1]):
        for x, second in enumerate(levels[0]):
            here = [v for p, v in zip(points, values) if str(p[keys[0]]) == second and str(p[keys[1]]) == first]
            if here:
                grid[y, x] = np.mean(here)
    shown = axis.imshow(grid, aspect="auto", cmap="viridis", origin="lower")
    middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
    for (y, x), value in np.ndenumerate(grid):
        if np.isfinite(value):
            axis.text(x, y, f"{value:.1f}", ha="center", va="center", fontsize=8, color="white" if value < middle else "black")
    axis.set(xlabel=keys[0], ylabel=keys[1], title="top-1, %", xticks=range(len(levels[0])), xticklabels=levels[0],
             yticks=range(len(levels[1])), yticklabels=levels[1])
    axis.figure.colorbar(shown, ax=axis)


def _parallel(axis: Axes, points: Sequence[dict[str, Any]], values: np.ndarray, keys: Sequence[str]) -> None:
    """A line per run through its values, every axis scaled to [0, 1], coloured by top-1."""
    levels = {key: _levels(points, key) for key in keys}
    for point, value in zip(points, values):
        line = [levels[key].index(str(point[key])) / max(1, len(levels[key]) - 1) for key in keys]
        axis.plot(range(len(keys) + 1), [*line, _height(value, values)], color=_colour(value, values), alpha=0.8)
    for x, key in enumerate(keys):
        axis.axvline(x, color="grey", lw=0.6)
        for place, level in enumerate(levels[key]):
            axis.text(x + 0.02, place / max(1, len(levels[key]) - 1), level, fontsize=7, va="center")
    axis.axvline(len(keys), color="grey", lw=0.6)
    for height, value in ((0, values.min()), (1, values.max())):
        axis.text(len(keys) + 0.02, height, f"{value:.1f} %", fontsize=7, va="center")
    axis.set(xticks=range(len(keys) + 1), xticklabels=[*keys, "top-1"], yticks=[], title="each run's way to its top-1")
    axis.tick_params(axis="x", labelsize=8)


def _height(value: float, values: np.ndarray) -> float:
    """Where it lies between the least and the greatest of the values, 0 to 1."""
    return (value - values.min()) / max(float(np.ptp(values)), 1e-9)


def _colour(value: float, values: np.ndarray) -> tuple[float, ...]:
    return colormaps["viridis"](_height(value, values))


def _levels(points: Sequence[dict[str, Any]], key: str) -> list[str]:
    """The values of a key as text: numbers by size, the rest by name, with numbers in it by size (resnet20 before resnet110)."""
    def order(value: Any) -> tuple:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return (0, value)
        return (1, [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(value))])

    return list(dict.fromkeys(str(v) for v in sorted((p[key] for p in points), key=order)))


def _save(figure: Figure, path: Path) -> Path:
    aside = path.with_suffix(".partial.png")
    figure.savefig(aside, dpi=130)
    aside.replace(path)
    return path
