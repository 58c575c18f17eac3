"""A picture of where a network's cost lies, as PNG or SVG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import ticker
from matplotlib.figure import Figure

SHARES = ("parameters", "multiply-adds", "activations, bytes")


def draw_costs(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Parameters, multiply-adds and activations of each row, in the order of the network's work,
    from above. rows: those of `dist-resnet describe`."""
    figure = Figure(figsize=(12, 1.6 + 0.24 * len(rows)), layout="constrained")
    names = [f"{_times(row)}{row['layer']}   {row['output']}" for row in rows]
    for axis, share in zip(figure.subplots(1, len(SHARES), sharey=True), SHARES):
        values = [row[share] for row in rows]
        axis.barh(range(len(rows)), values, color="#3b6ea5")
        axis.set_title(f"{share}: {sum(values):,}", fontsize=10)
        axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=" "))
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_yticks(range(len(rows)), names, fontsize=8)
    axis.invert_yaxis()  # of all three
    figure.suptitle(title)
    figure.savefig(path, dpi=130)


def _times(row: dict[str, Any]) -> str:
    return f"{row['times']} x " if row["times"] > 1 else ""
