"""What a search finds for the same number of images: python -m benchmarks.search --out DIR

For every seed TPE with ASHA, as configs/sweeps/search.yaml says, then a random search of as many
whole trainings as its images make. Goes on where it was stopped."""

import argparse
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from dist_resnet.reports import comparison, search
from dist_resnet.reports.search import Search
from dist_resnet.reports.search_figure import draw_search


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, default=Path("configs/sweeps/search.yaml"))
    parser.add_argument("--out", type=Path, required=True, help="of the searches, and search.png")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--agents", type=int, default=1)
    options, rest = parser.parse_known_args()
    rows = []
    for seed in range(options.seeds):
        informed = _search(options, rest, "file", seed, [])
        whole = max(r.images for t in informed.trials for r in t.reports)
        count = math.ceil(_images(informed) / whole)
        plain = _search(options, rest, "random", seed, ["--count", str(count)])
        rows += [_row(seed, found) for found in (informed, plain)]
        draw_search([informed, plain], options.out / f"search-{seed}.png")
        print(_table(rows), flush=True)


def _search(
    options: argparse.Namespace, rest: list[str], kind: str, seed: int, words: list[str]
) -> Search:
    directory = options.out / f"{kind}-{seed}"
    command = [sys.executable, "-m", "launch", "sweep", str(options.file), "--search", kind]
    command += ["--seed", str(seed), "--sweep-dir", str(directory), *words]
    subprocess.run([*command, "--agents", str(options.agents), *rest], check=True)
    found = search.read(directory)
    assert found is not None
    return found


def _images(found: Search) -> int:
    return found.best_so_far()[-1][2]


def _row(seed: int, found: Search) -> dict[str, Any]:
    """Of the chosen trial: the best of those that were trained longest."""
    begun = [t for t in found.trials if t.reports]
    sign = 1 if found.maximize else -1
    best = max(begun, key=lambda trial: (trial.reports[-1].rung, sign * trial.reports[-1].value))
    done = comparison.read_summary(found.path / best.name) or {}
    return {
        "seed": seed,
        "search": f"{found.kind}, {len(begun)} trials",
        "whole": sum(trial.state == "complete" for trial in begun),
        "images, M": f"{_images(found) / 1e6:.2f}",
        "machine hours": f"{found.best_so_far()[-1][0]:.2f}",
        found.metric: f"{best.reports[-1].value:.4f}",
        "test top-1": f"{done['test_top1']:.4f}" if "test_top1" in done else "...",
        "chosen": ", ".join(f"{key} {value}" for key, value in best.values.items()),
    }


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


if __name__ == "__main__":
    main()
