"""RUN_DIR/top_losses.npz: rows of a table with images, kept for a later `sync`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

FILE = "top_losses.npz"


def write(rows: Sequence[dict[str, Any]], run_dir: Path) -> None:
    """rows: one or more, of the same keys; numbers, texts, and arrays of one shape."""
    columns: dict[str, Any] = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    np.savez_compressed(run_dir / FILE, **columns)


def read(run_dir: Path) -> list[dict[str, Any]]:
    """What was written, in the same order; none where there is no such file."""
    if not (run_dir / FILE).exists():
        return []
    with np.load(run_dir / FILE) as columns:
        names = columns.files
        values = [column if column.ndim > 1 else column.tolist() for column in columns.values()]
    return [dict(zip(names, row)) for row in zip(*values)]
