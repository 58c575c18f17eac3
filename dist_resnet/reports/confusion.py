"""Which classes are answered right, and which are taken for which."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

WHOLE = 20  # with more classes the matrix is no longer shown


@dataclass(frozen=True)
class Confusion:
    classes: list[str]
    counts: np.ndarray  # int64 (classes, classes): images of a label (row) by answer (column)

    @classmethod
    def of(cls, classes: list[str], labels: np.ndarray, answers: np.ndarray) -> "Confusion":
        """labels, answers: int64 (N,)."""
        n = len(classes)
        return cls(classes, np.bincount(labels * n + answers, minlength=n * n).reshape(n, n))

    @property
    def accuracy(self) -> float:
        return float(np.trace(self.counts) / max(self.counts.sum(), 1))

    def per_class(self) -> list[dict[str, Any]]:
        """For each class that has images: their number, the share that is answered right, and what
        the others are taken for most often (None where all are right)."""
        rows = []
        for label, name in enumerate(self.classes):
            row = self.counts[label]
            total, wrong = int(row.sum()), row.copy()
            wrong[label] = 0
            if total:
                other = self.classes[int(wrong.argmax())] if wrong.any() else None
                accuracy = float(row[label] / total)
                rows.append(
                    {
                        "class": name,
                        "images": total,
                        "accuracy": accuracy,
                        "taken_for": other,
                        "times": int(wrong.max()),
                    }
                )
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        return {
            "accuracy": self.accuracy,
            "images": int(self.counts.sum()),
            "per_class": self.per_class(),
            "classes": self.classes,
            "confusion": self.counts.tolist(),
        }

    def table(self) -> Table:
        """The matrix with each class's accuracy; of more than twenty classes, a row for each, the
        worst first."""
        return self._matrix() if len(self.classes) <= WHOLE else self._worst_first()

    def _matrix(self) -> Table:
        table = Table("label \\ answer", title="images by label and answer", title_justify="left")
        shown = {row["class"]: row["accuracy"] for row in self.per_class()}
        for name in (*self.classes, "right, %"):
            table.add_column(name, justify="right", overflow="fold")
        for name, row in zip(self.classes, self.counts):
            if name in shown:
                table.add_row(name, *map(str, row), f"{100 * shown[name]:.1f}")
        return table

    def _worst_first(self) -> Table:
        table = Table("class", "images", "right, %", "most often taken for")
        for row in sorted(self.per_class(), key=lambda row: row["accuracy"]):
            other = f"{row['taken_for']} ({row['times']})" if row["taken_for"] else ""
            accuracy = f"{100 * row['accuracy']:.1f}"
            table.add_row(row["class"], str(row["images"]), accuracy, other)
        return table
