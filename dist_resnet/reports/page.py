"""One HTML page that compares runs: a table, curves, parallel coordinates. It needs no network;
standard library only."""

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TEMPLATE = Path(__file__).with_name("page.html")
POINTS = 1000  # of one curve, at most
Cell = float | int | str | bool | None


@dataclass(frozen=True)
class Row:
    name: str
    cells: dict[str, Cell]  # column -> value, in column order; None: not known yet
    curves: dict[
        str, list[tuple[int, float]]
    ]  # metric, such as "test/top1" -> [(step, value), ...]
    complete: bool = True


def page(
    title: str,
    rows: Sequence[Row],
    *,
    changed: Sequence[str] = (),
    result: str = "top-1",
    over_seeds: Sequence[dict[str, Cell]] = (),
    pictures: Sequence[Path] = (),
) -> str:
    """The page's text.

    changed: the columns that are configuration keys; the others are results.
    result: the column that the table is sorted by at first and the parallel coordinates are
    coloured by.
    over_seeds: rows of a table of means, the best first.
    pictures: PNG files, which the page then holds."""
    columns = list(dict.fromkeys(column for row in rows for column in row.cells))
    data = {
        "title": title,
        "columns": columns,
        "changed": [c for c in changed if c in columns],
        "result": result,
        "runs": [_run(row, columns) for row in rows],
        "pictures": [base64.b64encode(path.read_bytes()).decode() for path in pictures],
        "overSeeds": [{name: _cell(value) for name, value in row.items()} for row in over_seeds],
    }
    return TEMPLATE.read_text(encoding="utf-8").replace("{{data}}", _embedded(data))


def _run(row: Row, columns: Sequence[str]) -> dict[str, object]:
    curves = {metric: _thinned(points) for metric, points in row.curves.items()}
    return {
        "name": row.name,
        "complete": row.complete,
        "cells": {c: _cell(row.cells.get(c)) for c in columns},
        "curves": {metric: points for metric, points in curves.items() if points},
    }


def _cell(value: Cell) -> Cell:
    return (
        str(value) if isinstance(value, float) and not math.isfinite(value) else value
    )  # JSON has no nan


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The finite points; of a long curve the lowest and the highest of each stretch, and the last
    point."""
    finite = [(step, float(f"{value:.6g}")) for step, value in points if math.isfinite(value)]
    if len(finite) <= POINTS:
        return finite
    length = math.ceil(2 * len(finite) / (POINTS - 2))
    stretches = [finite[i : i + length] for i in range(0, len(finite), length)]
    kept = {
        pick(stretch, key=lambda point: point[1]) for stretch in stretches for pick in (min, max)
    }
    return sorted(kept | {finite[-1]})


def _embedded(data: object) -> str:
    """JSON, in ASCII, that no text in it can break out of a <script> element."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
