"""The picture of a search, as PNG: what was found at which cost, the rungs, what mattered. No
torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dist_resnet.reports.search import Search, Trial

SHOWN = 6  # parameters that the parallel coordinates show, at most
LOG = 20  # largest / smallest value, from which an axis is logarithmic


def draw_search(searches: Sequence[Search], path: Path) -> Path:
    """Best value so far against machine hours, of all searches; of the first its rungs as a
    staircase, the importance of its parameters, and parallel coordinates coloured by rung."""
    figure = Figure(figsize=(12, 9.2), layout="constrained")
    axes = figure.subplots(2, 2)
    _best_so_far(axes[0][0], searches)
    _staircase(axes[0][1], searches[0])
    _importance(axes[1][0], searches[0])
    _parallel(axes[1][1], searches[0])
    aside = path.with_suffix(".partial.png")
    figure.savefig(aside, dpi=130)
    aside.replace(path)
    return path


def _best_so_far(axis: Axes, searches: Sequence[Search]) -> None:
    for number, search in enumerate(searches):
        points = search.best_so_far()
        if points:
            hours, best, images = zip(*points)
            label = f"{search.name} ({search.kind}, {images[-1] / 1e6:.2g} M images)"
            axis.step(hours, best, where="post", color=f"C{number}", label=label, lw=1.8)
            axis.plot(hours[-1], best[-1], "o", color=f"C{number}", ms=5)
    axis.set(
        xlabel="machine hours, all trials together",
        ylabel=searches[0].metric,
        title=f"best {searches[0].metric} so far",
    )
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, loc="best")


def _staircase(axis: Axes, search: Search) -> None:
    """A line per trial over the evaluations that it was trained for; below each rung, how many
    have reached it."""
    last = search.of_last_rung()
    reached = [trial for trial in search.trials if trial.reports]
    for trial in sorted(reached, key=lambda trial: len(trial.reports)):
        steps = [report.iteration for report in trial.reports]
        values = [report.value for report in trial.reports]
        colour = _colour(trial, last)
        axis.plot(steps, values, drawstyle="steps-post", color=colour, marker="o", ms=4, lw=1.2)
    rungs = sorted({report.iteration for trial in reached for report in trial.reports})
    counts = [sum(any(r.iteration == n for r in t.reports) for t in reached) for n in rungs]
    if rungs and rungs[-1] / rungs[0] > LOG / 4:
        axis.set_xscale("log")
    axis.xaxis.set_minor_locator(ticker.NullLocator())
    axis.set_xticks(rungs, [f"{n}\n{c} trials" for n, c in zip(rungs, counts)], fontsize=8)
    axis.set(
        xlabel="evaluations", ylabel=search.metric, title=f"{search.name}: rungs, and who got there"
    )
    axis.grid(alpha=0.25)


def _importance(axis: Axes, search: Search) -> None:
    shares = search.importance()
    names = sorted(shares, key=lambda name: shares[name])
    axis.barh(names, [100 * shares[name] for name in names], color="C0")
    reached = sum(trial.at(0) is not None for trial in search.trials)
    title = f"importance, % (PED-ANOVA over the {reached} results of rung 0)"
    axis.set(title=title if names else "importance: too few results yet", xlim=(0, 100))
    axis.grid(alpha=0.25, axis="x")


def _parallel(axis: Axes, search: Search) -> None:
    """A line per trial through its values and its last result, coloured by the rung reached."""
    trials = sorted((t for t in search.trials if t.last), key=lambda trial: len(trial.reports))
    differ = [
        key
        for key in dict.fromkeys(key for trial in trials for key in trial.values)
        if len({str(trial.values.get(key)) for trial in trials}) > 1
    ]
    keys, last = differ[:SHOWN], search.of_last_rung()
    columns = [_heights([trial.values.get(key) for trial in trials]) for key in keys]
    columns.append(_heights([trial.last.value if trial.last else None for trial in trials]))
    for row, trial in enumerate(trials):
        line = [heights[row] for heights, _ in columns]
        axis.plot(range(len(line)), line, color=_colour(trial, last), alpha=0.85, lw=1.3)
    for x, (_, labels) in enumerate(columns):
        axis.axvline(x, color="grey", lw=0.6)
        for height, label in labels:
            axis.text(x + 0.03, height, label, fontsize=7, va="center")
    for rung in range(last + 1):
        axis.plot([], [], color=colormaps["viridis"](rung / max(1, last)), label=f"rung {rung}")
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=last + 1)
    names = [*keys, search.metric]
    axis.set_xticks(range(len(names)), names, fontsize=7, rotation=12 if len(names) > 3 else 0)
    more = f" ({len(differ) - SHOWN} more keys differ)" if len(differ) > SHOWN else ""
    axis.set(xlim=(-0.2, max(1, len(keys)) + 0.5), ylim=(-0.15, 1.08))
    axis.set(yticks=[], title=f"each trial's way, by the rung it reached{more}")


def _heights(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """(height of each value in [0, 1], labels of an axis): numbers by size, logarithmic where they
    spread widely; words in their order. What a trial does not have lies below."""
    known = [v for v in values if v is not None]
    if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in known):
        low, high = min(known), max(known)
        at = np.log if low > 0 and high / low > LOG else float
        span = (at(high) - at(low)) or 1.0
        labels = [(0.0, f"{low:.3g}"), (1.0, f"{high:.3g}")]
        return [-0.1 if v is None else float((at(v) - at(low)) / span) for v in values], labels
    names = sorted({str(v) for v in known})
    place = {name: index / max(1, len(names) - 1) for index, name in enumerate(names)}
    heights = [-0.1 if v is None else place[str(v)] for v in values]
    return heights, [(height, name) for name, height in place.items()]


def _colour(trial: Trial, last: int) -> tuple[float, ...]:
    return colormaps["viridis"](trial.reports[-1].rung / max(1, last))
