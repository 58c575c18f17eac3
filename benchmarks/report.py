"""All that benchmarks/gpu.sh has found, as one file to read and one to compare: python -m
benchmarks.report OUT"""

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure

COLUMNS = ("steps", "samples", "test_top1", "images_per_second", "fast_paths", "seconds")


def tables(out: Path) -> dict[str, Any]:
    """name -> {title, machine, torch, rows}, as `measure.show` has written them."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json"))}
    return {name: table for name, table in found.items() if "rows" in table}


def trainings(out: Path) -> dict[str, Any]:
    """Run directory below OUT -> its summary."""
    paths = sorted(out.rglob("summary.json"))
    return {str(path.parent.relative_to(out)): json.loads(path.read_text()) for path in paths}


def markdown(tables: dict[str, Any], trainings: dict[str, Any], logs: dict[str, str]) -> str:
    lines = [f"# {measure.machine()}, torch {torch.__version__}, {platform.platform()}", ""]
    for name, table in tables.items():
        lines += [f"## {name}: {table['title']}", "", *_rows(table["rows"]), ""]
    rows = [
        {"training": name, **{column: summary[column] for column in COLUMNS}}
        for name, summary in trainings.items()
    ]
    if rows:
        lines += ["## Trainings", "", *_rows(rows), ""]
    for name, log in logs.items():
        lines += [f"## {name}", "", "```", *log.splitlines()[-20:], "```", ""]
    return "\n".join(lines)


def _rows(rows: list[dict[str, Any]]) -> list[str]:
    texts = [[_text(value) for value in row.values()] for row in rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *texts]
    return [f"| {' | '.join(line)} |" for line in lines]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    found, runs = tables(out), trainings(out)
    logs = {path.stem: path.read_text() for path in sorted(out.glob("*.txt"))}
    (out / "report.md").write_text(markdown(found, runs, logs))
    content = {"machine": measure.machine(), "tables": found, "trainings": runs, "logs": logs}
    (out / "report.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"{out}/report.md and report.json: {len(found)} tables, {len(runs)} trainings")


if __name__ == "__main__":
    main()
