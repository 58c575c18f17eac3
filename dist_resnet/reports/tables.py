"""A comparison as text: for a terminal of any width, CSV, JSON, Markdown, and the page for a
browser."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from dist_resnet.reports.comparison import Comparison, Run, over_seeds
from dist_resnet.reports.page import Row, page
from dist_resnet.tracking.tracker import read_metrics

NAME_WIDTH = 24  # of a run's name, at least; longer ones are folded
TURNED_WIDTH = 12  # of a run's column where the table is turned round, at least
BORDERS = 3  # characters that a column takes besides its cells
CAPTION = (
    "top-1 and top-5 of the last evaluation, on the split named; ... marks what is not known yet"
)


def tables(comparison: Comparison, width: int) -> list[Table]:
    """For a terminal of so many columns: the runs, and means over seeds where there are any. Where
    a row does not fit, the table is turned round: a row for each result and key, a column for each
    run."""
    rows = [{"run": comparison.name(run), **comparison.cells(run)} for run in comparison.runs]
    means = over_seeds(comparison)
    return [
        *_fitted(rows, width, CAPTION),
        *(_fitted(means, width, "mean over seeds, 95 % interval (Student's t)") if means else []),
    ]


def _fitted(rows: Sequence[dict[str, Any]], width: int, caption: str) -> list[Table]:
    texts = [{name: _text(name, value) for name, value in row.items()} for row in rows]
    if _width(texts) <= width:
        made = Table(caption=caption)
        for name in texts[0]:
            made.add_column(name, overflow="fold", no_wrap=name != "run")
        for row in texts:
            made.add_row(*row.values())
        return [made]
    return _turned(texts, width, caption)


def _width(rows: Sequence[dict[str, str]]) -> int:
    """Columns that the table takes with no cell but a run's name folded."""
    widest = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    if "run" in widest:
        widest["run"] = min(widest["run"], NAME_WIDTH)
    return 1 + sum(BORDERS + columns for columns in widest.values())


def _turned(rows: Sequence[dict[str, str]], width: int, caption: str) -> list[Table]:
    """As many runs side by side as fit, the others below."""
    heads = max(len(name) for name in rows[0])
    cells = max(len(text) for row in rows for name, text in row.items() if name != "run")
    room = width - 1 - BORDERS - heads
    column = max(1, min(max(cells, TURNED_WIDTH), room - BORDERS))
    beside = max(1, room // (BORDERS + column))
    made = []
    for start in range(0, len(rows), beside):
        part = rows[start : start + beside]
        table = Table(caption=caption if start + beside >= len(rows) else None)
        table.add_column("run" if "run" in part[0] else "", no_wrap=True)
        for number, row in enumerate(part, start + 1):
            table.add_column(row.get("run", str(number)), overflow="fold", width=column)
        for name in part[0]:
            if name != "run":
                table.add_row(name, *(row[name] for row in part))
        made.append(table)
    return made


def as_csv(comparison: Comparison) -> str:
    """Unrounded; empty where not known yet."""
    rows = _records(comparison)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_json(comparison: Comparison) -> str:
    content = {
        "changed": comparison.changed,
        "runs": _records(comparison),
        "over_seeds": over_seeds(comparison),
    }
    return json.dumps(content, indent=1) + "\n"


def _records(comparison: Comparison) -> list[dict[str, Any]]:
    return [
        {"run": str(run.path), "complete": run.complete, **comparison.cells(run)}
        for run in comparison.runs
    ]


def as_markdown(comparison: Comparison) -> str:
    runs = [{"run": comparison.name(run), **comparison.cells(run)} for run in comparison.runs]
    return "\n".join(_markdown(rows) for rows in (runs, over_seeds(comparison)) if rows)


def _markdown(rows: Sequence[dict[str, Any]]) -> str:
    cells = [[_text(name, value) for name, value in row.items()] for row in rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *cells]
    return "".join(
        f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |\n" for line in lines
    )


def as_html(comparison: Comparison, title: str, pictures: Sequence[Path] = ()) -> str:
    rows = [_page_row(comparison, run) for run in comparison.runs]
    means, changed = over_seeds(comparison), comparison.changed
    return page(title, rows, changed=changed, over_seeds=means, pictures=pictures)


def _page_row(comparison: Comparison, run: Run) -> Row:
    cells = {
        key: _page_cell(value) if key in comparison.changed else value
        for key, value in comparison.cells(run).items()
    }
    return Row(comparison.name(run), cells, _page_curves(run), run.complete)


def _page_cell(value: Any) -> Any:
    return (
        value if isinstance(value, (int, float, str)) else "null" if value is None else str(value)
    )


def _page_curves(run: Run) -> dict[str, list[tuple[int, float]]]:
    split = run.config.data.evaluate_on
    metrics = [f"{part}/{name}" for name in ("loss", "top1", "top5") for part in ("train", split)]
    metrics += ["lr", "images_per_second", "grad_norm"]
    records = read_metrics(run.path)
    return {m: [(r["step"], r[m]) for r in records if r.get(m) is not None] for m in metrics}


def _text(name: str, value: Any) -> str:
    if value is None:
        return "null" if "." in name else "..."
    if "top-1" in name or "top-5" in name or ("%" in name and not name.startswith("minutes")):
        return f"{100 * value:.2f} %"
    if isinstance(value, bool):
        return ("true" if value else "false") if "." in name else "yes" if value else "no"
    if name.startswith("minutes"):
        return f"{value:.1f}"
    forms = {"images/s": "{:,.0f}", "hours": "{:.3f}", "steps": "{:,}", "parameters": "{:,}"}
    return forms.get(name, "{}").format(value)
