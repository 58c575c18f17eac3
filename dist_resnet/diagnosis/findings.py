"""What an examination finds: one line a check in a file of each rank, and all ranks' together. No
torch.

A line is written before each check and after it, so that a check that ends the process is known."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CONFIG = "doctor.yaml"  # of the training that is to run, beside them
GOOD, SKIPPED, WARNING, BAD = "good", "skipped", "warning", "bad"
LEVELS = (SKIPPED, GOOD, WARNING, BAD)  # the worst last


@dataclass(frozen=True)
class Finding:
    name: str
    level: str
    figure: str  # what was seen or measured
    remedy: str = ""


class Ill(Exception):
    """Raised by a check: what it saw, and its own remedy where it knows a better one than is
    general. level: WARNING where a training can do without."""

    def __init__(self, figure: str, remedy: str = "", level: str = BAD) -> None:
        super().__init__(figure)
        self.figure, self.remedy, self.level = figure, remedy, level


class NotHere(Exception):
    """Raised by a check that has nothing to check here, such as a GPU's."""


class Report:
    """The findings of one rank, in a file that grows."""

    def __init__(self, directory: Path, rank: int, where: str) -> None:
        self.rank, self._path = rank, path_of(directory, rank)
        self._write({"where": where})

    def check(self, name: str, remedy: str, function: Callable[..., str], *arguments: Any) -> None:
        """function: returns what it has seen, where that is as it should be."""
        self._write({"trying": name})
        try:
            finding = Finding(name, GOOD, function(*arguments))
        except NotHere as reason:
            finding = Finding(name, SKIPPED, str(reason))
        except Ill as ill:
            finding = Finding(name, ill.level, ill.figure, ill.remedy or remedy)
        except ValueError as mistake:  # ours: it names the remedy
            finding = Finding(name, BAD, str(mistake))
        except Exception as error:  # whatever a broken environment raises
            finding = Finding(name, BAD, one_line(error), remedy)
        self._write(asdict(finding))
        if self.rank == 0:
            print(f"{finding.level:<8} {name}: {finding.figure}", flush=True)

    def _write(self, line: dict[str, Any]) -> None:
        with open(self._path, "a") as file:
            file.write(json.dumps(line) + "\n")


def one_line(error: Exception) -> str:
    """Without the place in torch's own source."""
    text = re.sub(r"\[enforce fail at [^\]]*\] ", "", f"{type(error).__name__}: {error}")
    return " ".join(text.split())[:300]


def path_of(directory: Path, rank: int) -> Path:
    return directory / f"rank_{rank}.jsonl"


def together(directory: Path, ranks: Iterable[int], same: Iterable[str] = ()) -> list[Finding]:
    """One finding a check: the worst of all ranks', with where that was. Checks named in `same`
    must have seen the same on every rank."""
    by_name: dict[str, list[tuple[str, Finding]]] = {}
    silent = []
    for rank in ranks:
        found, where = _read(path_of(directory, rank))
        if not found:
            silent.append(rank)
        for finding in found:
            by_name.setdefault(finding.name, []).append((f"rank {rank}{where}", finding))
    merged = [_merged(name, seen, name in same) for name, seen in by_name.items()]
    if silent:
        merged.insert(0, _silence(silent))
    return merged


def _silence(ranks: list[int]) -> Finding:
    listed = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return Finding(
        "every rank answers",
        BAD,
        f"{len(ranks)} have not written: rank {listed}",
        "see their logs; is the folder on a file system that all nodes share and may write?",
    )


def _merged(name: str, seen: list[tuple[str, Finding]], same: bool) -> Finding:
    where, worst = max(seen, key=lambda pair: LEVELS.index(pair[1].level))
    if worst.level in (WARNING, BAD):
        ill = sum(finding.level == worst.level for _, finding in seen)
        place = where if ill == 1 else f"{where} and {ill - 1} more"
        shown = f"{worst.figure} ({place})" if len(seen) > 1 else worst.figure
        return Finding(name, worst.level, shown, worst.remedy)
    figures = {finding.figure: where for where, finding in reversed(seen)}
    if same and len(figures) > 1:
        listed = "; ".join(f"{where}: {figure}" for figure, where in figures.items())
        return Finding(name, BAD, listed, "use one environment on all nodes, on a shared disk")
    return worst


def _read(path: Path) -> tuple[list[Finding], str]:
    """(findings, ' on <node>') of a rank."""
    found: list[Finding] = []
    where, trying = "", None
    for line in path.read_text().splitlines() if path.exists() else []:
        record = json.loads(line)
        if "where" in record:
            where = record["where"]
        elif "trying" in record:
            trying = record["trying"]
        else:
            found.append(Finding(**record))
            trying = None
    if trying is not None:
        figure = "the process ended during this check"
        found.append(Finding(trying, BAD, figure, "see its log: killed, out of memory, or hanging"))
    return found, f" on {where}" if where else ""
