"""Pictures of runs, as PNG: curves, a sweep's results over its parameters, images. No torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dist_resnet.reports.comparison import interval
from dist_resnet.tracking.tracker import read_metrics

NAMED = 10  # curves that have a name in a comparison, at most
SHOWN_KEYS = 5  # keys that the parallel coordinates show, at most
LEGEND = 44  # characters of a run's name in a legend, at most
STYLES: dict[str, dict[str, Any]] = {
    "train": {"lw": 0.8, "alpha": 0.6},
    "test": {"lw": 1.8, "marker": "o", "ms": 3},
    "val": {"lw": 1.8, "marker": "o", "ms": 3},
}


@dataclass(frozen=True)
class Group:
    """Runs that are drawn as one curve: a run, or the seeds of one setting, as their mean; from
    three seeds on with its 95 % interval."""

    run_dirs: Sequence[Path]
    settings: dict[str, Any]  # the keys that differ between the runs compared, and their values
    top1: float | None  # the mean; None where there is none yet

    @property
    def name(self) -> str:
        name = self.run_dirs[0].name
        short = name if len(name) <= LEGEND else f"{name[: LEGEND - 9]}...{name[-6:]}"
        return short + (f" ({len(self.run_dirs)} seeds)" if len(self.run_dirs) > 1 else "")


def draw_curves(run_dirs: Sequence[Path], path: Path, milestones: Sequence[int] = ()) -> Path:
    """Loss and error (per cent) against steps: training thin, evaluation bold; with the milestones
    marked."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    _curves(figure.subplots(1, 2), [Group([d], {}, None) for d in run_dirs], milestones)
    return _save(figure, path)


def draw_comparison(groups: Sequence[Group], path: Path) -> Path:
    """Curves of all groups; below, where their configurations differ, the final top-1 over the two
    keys that it depends on most, and parallel coordinates over those that explain most. More than
    ten groups have the colour of their top-1 and no names."""
    finished = [(group.settings, group.top1) for group in groups if group.top1 is not None]
    points, results = [settings for settings, _ in finished], [top1 for _, top1 in finished]
    keys = by_importance(points, results)
    rows = 2 if len(finished) >= 3 and keys else 1
    figure = Figure(figsize=(12, 4.6 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False)
    values = 100 * np.array(results)
    if len(groups) > NAMED:
        colours = ["lightgrey" if g.top1 is None else _colour(100 * g.top1, values) for g in groups]
        _curves(axes[0], groups, (), colours)
    else:
        _curves(axes[0], groups, ())
    if rows == 2:
        _over_parameters(axes[1][0], points, values, keys[:2])
        _parallel(axes[1][1], points, values, keys)
    return _save(figure, path)


def draw_images(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Images with what they are and what was predicted. rows: "image" uint8 (H, W, 3), "label",
    "prediction", "probability" (of the label)."""
    columns = min(8, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(1.4 * columns, 1.75 * lines), layout="constrained")
    for place, row in enumerate(rows, 1):
        axis = figure.add_subplot(lines, columns, place)
        axis.imshow(row["image"])
        axis.set_axis_off()
        axis.set_title(
            f"{row['label']}: {row['probability']:.1%}\npredicted: {row['prediction']}", fontsize=7
        )
    return _save(figure, path)


def by_importance(points: Sequence[dict[str, Any]], results: Sequence[float]) -> list[str]:
    """The keys that differ, first the one whose value explains most of the results' variance (eta
    squared)."""
    keys = [key for key in (points[0] if points else {}) if len({str(p[key]) for p in points}) > 1]
    values = np.array(results, float)

    def explained(key: str) -> float:
        groups = [
            values[[str(p[key]) == name for p in points]] for name in {str(p[key]) for p in points}
        ]
        return sum(len(g) * (g.mean() - values.mean()) ** 2 for g in groups) / max(
            values.var() * len(values), 1e-12
        )

    return sorted(keys, key=explained, reverse=True)


def _curves(
    axes: Sequence[Axes],
    groups: Sequence[Group],
    milestones: Sequence[int],
    colours: Sequence[Any] = (),
) -> None:
    """Without colours each group has one of its own, and its name beside it."""
    for number, group in enumerate(groups):
        colour = colours[number] if colours else f"C{number % 10}"
        records = [read_metrics(run_dir) for run_dir in group.run_dirs]
        for part, style in STYLES.items():
            name = f"{group.name}, {part}" if len(groups) > 1 else part
            label = name if part != "train" or len(groups) < 6 else None
            for axis, metric, value in zip(
                axes, ("loss", "top1"), (lambda v: v, lambda v: 100 * (1 - v))
            ):
                steps, values = _together(records, f"{part}/{metric}")
                if steps:
                    _curve(axis, steps, value(values), {"color": colour, "label": label, **style})
    for axis, title in zip(axes, ("loss", "top-1 error, %")):
        for milestone in milestones:
            if milestone <= axis.get_xlim()[1]:
                axis.axvline(milestone, color="grey", ls=":", lw=1)
        axis.set(xlabel="step", title=title)
        axis.grid(alpha=0.25)
    if not colours:
        axes[1].legend(fontsize=8 if len(groups) < 6 else 6)
    axes[0].set_yscale("log")
    for which in (axes[0].yaxis.set_major_formatter, axes[0].yaxis.set_minor_formatter):
        which(ticker.LogFormatter(minor_thresholds=(2, 0.5)))


def _together(
    records: Sequence[Sequence[dict[str, Any]]], metric: str
) -> tuple[list[int], np.ndarray]:
    """(steps that all runs have recorded, values (runs, steps))."""
    found = [
        {r["step"]: r[metric] for r in of_run if r.get(metric) is not None} for of_run in records
    ]
    steps = sorted(set.intersection(*(set(values) for values in found)))
    return steps, np.array([[values[step] for step in steps] for values in found])


def _curve(axis: Axes, steps: Sequence[int], values: np.ndarray, style: dict[str, Any]) -> None:
    """values: (runs, steps), drawn as their mean; from three runs on with the 95 % interval of the
    mean as a band (that of two, by Student's t, dwarfs the curves)."""
    axis.plot(steps, values.mean(0), **style)
    if len(values) > 2 and "marker" in style:
        half = np.array([interval(column) for column in values.T.tolist()])
        low, high = values.mean(0) - half, values.mean(0) + half
        axis.fill_between(
            steps, np.maximum(low, values.min() / 2), high, color=style["color"], alpha=0.15, lw=0
        )


def _over_parameters(
    axis: Axes, points: Sequence[dict[str, Any]], values: np.ndarray, keys: Sequence[str]
) -> None:
    """A heat map over two keys (the mean where runs share a cell), or the values over one."""
    levels = [_levels(points, key) for key in keys]
    if len(keys) == 1:
        places = [levels[0].index(str(p[keys[0]])) for p in points]
        axis.plot(places, values, "o")
        axis.set(
            xlabel=keys[0],
            ylabel="top-1, %",
            title=f"top-1 over {keys[0]}",
            xticks=range(len(levels[0])),
            xticklabels=levels[0],
        )
        axis.grid(alpha=0.25)
        return
    grid = np.full((len(levels[1]), len(levels[0])), np.nan)
    for y, first in enumerate(levels[1]):
        for x, second in enumerate(levels[0]):
            here = [
                v
                for p, v in zip(points, values)
                if str(p[keys[0]]) == second and str(p[keys[1]]) == first
            ]
            if here:
                grid[y, x] = np.mean(here)
    shown = axis.imshow(grid, aspect="auto", cmap="viridis", origin="lower")
    middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
    for (y, x), value in np.ndenumerate(grid):
        if np.isfinite(value):
            axis.text(
                x,
                y,
                f"{value:.1f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if value < middle else "black",
            )
    axis.set(
        xlabel=keys[0],
        ylabel=keys[1],
        title="top-1, %",
        xticks=range(len(levels[0])),
        xticklabels=levels[0],
        yticks=range(len(levels[1])),
        yticklabels=levels[1],
    )
    axis.figure.colorbar(shown, ax=axis)


def _parallel(
    axis: Axes, points: Sequence[dict[str, Any]], values: np.ndarray, keys: Sequence[str]
) -> None:
    """A line per run through its values, every axis scaled to [0, 1], coloured by top-1."""
    left_out = len(keys) - SHOWN_KEYS
    keys = keys[:SHOWN_KEYS]
    levels = {key: _levels(points, key) for key in keys}
    for point, value in zip(points, values):
        line = [levels[key].index(str(point[key])) / max(1, len(levels[key]) - 1) for key in keys]
        axis.plot(
            range(len(keys) + 1),
            [*line, _height(value, values)],
            color=_colour(value, values),
            alpha=0.8,
        )
    for x, key in enumerate(keys):
        axis.axvline(x, color="grey", lw=0.6)
        for place, level in enumerate(levels[key]):
            axis.text(
                x + 0.02, place / max(1, len(levels[key]) - 1), level, fontsize=7, va="center"
            )
    axis.axvline(len(keys), color="grey", lw=0.6)
    for height, value in ((0, values.min()), (1, values.max())):
        axis.text(len(keys) + 0.02, height, f"{value:.1f} %", fontsize=7, va="center")
    axis.set(
        xticks=range(len(keys) + 1),
        xticklabels=[*keys, "top-1"],
        yticks=[],
        title="each run's way to its top-1"
        + (f" ({left_out} more keys differ)" if left_out > 0 else ""),
    )
    axis.tick_params(axis="x", labelsize=7, labelrotation=15 if len(keys) > 3 else 0)


def _height(value: float, values: np.ndarray) -> float:
    """Where it lies between the least and the greatest of the values, 0 to 1."""
    return (value - values.min()) / max(float(np.ptp(values)), 1e-9)


def _colour(value: float, values: np.ndarray) -> tuple[float, ...]:
    return colormaps["viridis"](_height(value, values))


def _levels(points: Sequence[dict[str, Any]], key: str) -> list[str]:
    """The values of a key as text: numbers by size, the rest by name, with numbers in it by size
    (resnet20 before resnet110)."""

    def order(value: Any) -> tuple:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return (0, value)
        return (
            1,
            [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(value))],
        )

    return list(dict.fromkeys(str(v) for v in sorted((p[key] for p in points), key=order)))


def _save(figure: Figure, path: Path) -> Path:
    aside = path.with_suffix(".partial.png")
    figure.savefig(aside, dpi=130)
    aside.replace(path)
    return path
