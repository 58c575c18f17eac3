"""What was seen beside what was expected, as Markdown that fits into benchmarks/README.md."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.gpu.task import STEP, read

# what an H200 should show: of operations, bytes and launches, and of published runs
EXPECTED = {
    "kernels": "no wrong value; a copy at 4,300 GB/s, ours near it",
    "ways": "every fast path used in all ways that have it; losses of ResNet-20 within 1 %",
    "failed capture": "planted: refused with `.item()`'s own error; the next run: used",
    "deterministic": "the same bits straight, again, and resumed; without the graph perhaps not",
    "killed": "a resume, and complete",
    "doctor": "nothing bad but W&B, where it is not installed",
    "betons": "10 s with two cores",
    "speedrun": "94.0 ± 0.1 % top-1, 2 to 3.5 s of training a run (airbench94: 3.3 s on an A100)",
    "rates": "at 128: ResNet-20 0.4 to 0.8 ms a step, ResNet-110 2.1 to 4.2, without a graph about "
    "10; the plain loop slower again",
    "ResNet-20": "26 to 51 s for 64,000 steps (no less than 12); 91.25 % top-1 (He et al.)",
    "deep": "ResNet-110: 134 to 269 s for 64,000 steps (no less than 67); 93.39 ± 0.16 % top-1",
    "feeding": "16 cores decode 19,000 JPEGs/s; ResNet-50 takes 2,500 to 3,500",
}
NOTE = "One GPU: nothing here shows several. NCCL's all-reduce in the graph is that of one rank."


def write(path: Path, rows: list[Path]) -> None:
    path.write_text(markdown(read(*rows)))


def markdown(rows: list[dict[str, Any]]) -> str:
    machine = {row["what"]: row["seen"] for row in rows if row["step"] == "machine"}
    title = f"# {machine.get('GPU', 'an unknown machine')}, torch {machine.get('torch', '?')}"
    ends = [row for row in rows if row["step"] == STEP]
    lines = [title, "", NOTE, "", *_table(_outcome(end) for end in ends), ""]
    for name in dict.fromkeys(row["step"] for row in rows if row["step"] != STEP):
        own = [{k: v for k, v in row.items() if k != "step"} for row in rows if row["step"] == name]
        lines += [f"## {name}", ""]
        lines += [f"Expected: {EXPECTED[name]}.", ""] if name in EXPECTED else []
        lines += [*_table(own), ""]
    return "\n".join(lines)


def _outcome(end: dict[str, Any]) -> dict[str, Any]:
    expected = EXPECTED.get(end["name"], "")
    return {
        "step": end["name"],
        "outcome": end["failed"] or "done",
        "s": end["seconds"],
        "expected": expected,
    }


def _table(rows: Iterable[dict[str, Any]]) -> list[str]:
    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        return []
    body = [[_text(row.get(column, "")) for column in columns] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *body)]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    text = f"{value:,.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
