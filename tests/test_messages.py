"""What the documentation quotes of messages is what is printed."""

import ast
import re

import pytest
from conftest import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))
PRINTED = "what is printed"  # a table's second column
PIECES = r"\.\.\.|\d[\d.,]*|\([^()]*\)|[:;.] |(?<== ).*?(?=:)"  # between them, the same every time


def said() -> str:
    """All that our code can print: strings as Python joins them, with \0 for values; scripts."""
    found = []
    for folder in ("dist_resnet", "launch", "slurm"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [p.value if isinstance(p, ast.Constant) else "\0" for p in node.values]
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
        found += [path.read_text() for path in (ROOT / folder).rglob("*.sh")]
    return "\n".join(found)


def quoted(page):
    """The messages of its tables of failures."""
    in_table = False
    for line in page.read_text().splitlines():
        cells = line.strip("|").split(" | ")
        in_table = line.startswith("|") and (in_table or PRINTED in line)
        if in_table and len(cells) == 3 and "SLURM's own" not in cells[1]:
            yield from re.findall(r"`([^`]+)`", cells[1])


@pytest.mark.parametrize(
    "page", [p for p in PAGES if PRINTED in p.read_text()], ids=lambda p: p.stem
)
def test_each_quoted_message_is_in_the_source(page):
    everything, count = said(), 0
    for message in quoted(page):
        for piece in re.split(PIECES, message):
            if len(piece.strip()) > 5:
                count += 1
                assert piece.strip() in everything, f"{message!r}: no source says {piece!r}"
    assert count > 5
