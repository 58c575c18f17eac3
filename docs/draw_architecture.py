"""Draws docs/architecture.svg from the imports: python docs/draw_architecture.py

A room is a folder, or a file that stands alone. Rooms of a floor do not import each other, and what
a room imports lies on a floor below its own. Arrows that follow from others are left out."""

import ast
import gc
import sys
from functools import cache
from html import escape
from pathlib import Path

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs/architecture.svg"
FLOORS = [  # from the top
    ["dist_resnet/__main__.py", "dist_resnet/notebook.py"],
    ["launch/__main__.py"],
    ["launch/commands"],
    ["launch/sweeps"],
    ["launch/executors", "launch/inspection"],
    ["launch/jobs"],
    ["dist_resnet/worker.py"],
    ["dist_resnet/acceleration", "dist_resnet/diagnosis"],
    ["dist_resnet/prepare", "dist_resnet/training", "dist_resnet/reports"],
    ["dist_resnet/weights"],
    ["dist_resnet/data", "dist_resnet/models", "dist_resnet/tracking"],
    ["dist_resnet/runtime", "dist_resnet/config"],
]
WIDTH, GAP, LINE, HEAD = 1000, 46, 15, 26  # pixels


def files(room: str) -> list[Path]:
    path = ROOT / room
    found = [path] if path.suffix else sorted(path.glob("*.py"))
    return [file for file in found if path.suffix or file.name != "__init__.py"]


def rooms() -> list[str]:
    return [room for floor in FLOORS for room in floor]


@cache
def modules_imported(path: Path) -> frozenset[str]:
    """Dotted names, at the top of the file or inside of functions."""
    found: set[str] = set()
    gc.disable()  # a finaliser that runs meanwhile upsets CPython 3.11's parser (SystemError)
    try:
        tree = ast.parse(path.read_text())
    finally:
        gc.enable()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def room_of(module: str) -> str | None:
    for room in rooms():
        name = room.removesuffix(".py").replace("/", ".")
        if module == name or module.startswith(f"{name}."):
            return room
    return None


def imports() -> dict[str, set[str]]:
    """Room -> the other rooms that it imports from."""
    found: dict[str, set[str]] = {}
    for room in rooms():
        paths = [*files(room), *((ROOT / room).glob("__init__.py"))]
        targets = {room_of(module) for path in paths for module in modules_imported(path)}
        found[room] = {target for target in targets if target and target != room}
    return found


def reached(room: str, graph: dict[str, set[str]]) -> set[str]:
    """Everything that the room imports, by whatever way."""
    return graph[room] | {far for near in graph[room] for far in reached(near, graph)}


def arrows(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The imports without those that follow from others."""
    return [
        (room, target)
        for room, targets in graph.items()
        for target in sorted(targets)
        if not any(target in reached(other, graph) for other in targets - {target})
    ]


def draw() -> str:
    boxes: dict[str, tuple[float, float, float, float]] = {}  # x, y, width, height
    y = 12.0
    for floor in FLOORS:
        width = min(300.0, (WIDTH - 24 - 24 * (len(floor) - 1)) / len(floor))
        left = (WIDTH - len(floor) * width - 24 * (len(floor) - 1)) / 2
        height = max(HEAD + 8 + LINE * len(_rows(room)) for room in floor)
        for place, room in enumerate(floor):
            boxes[room] = (left + place * (width + 24), y, width, height)
        y += height + GAP
    lines = [*_arrows(boxes), *_rooms(boxes)]
    style = (
        "text{font:13px sans-serif;text-anchor:middle;fill:#1c2026}.file{font-size:11px;"
        "fill:#56606c}.arrow{fill:none;stroke:#56606c;stroke-width:1.2;marker-end:url(#tip)}"
    )
    tip = (
        '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0L8 4L0 8z" fill="#56606c"/></marker>'
    )
    size = f'viewBox="0 0 {WIDTH} {y - GAP + 12:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    back = '<rect width="100%" height="100%" fill="#fff"/>'
    return "\n".join([head, f"<style>{style}</style><defs>{tip}</defs>{back}", *lines, "</svg>\n"])


def _rooms(boxes: dict[str, tuple[float, float, float, float]]) -> list[str]:
    lines = []
    for room, (x, top, width, height) in boxes.items():
        middle = x + width / 2
        tint = "#eef4fb" if room.startswith("launch") else "#f3f7ee"
        lines.append(
            f'<rect x="{x:.0f}" y="{top:.0f}" width="{width:.0f}" height="{height:.0f}" rx="6" '
            f'fill="{tint}" stroke="#8a94a0"/>'
        )
        lines.append(
            f'<text x="{middle:.0f}" y="{top + 18:.0f}" font-weight="600">{escape(room)}</text>'
        )
        for number, row in enumerate(_rows(room)):
            at = top + HEAD + 12 + LINE * number
            lines.append(f'<text x="{middle:.0f}" y="{at:.0f}" class="file">{escape(row)}</text>')
    return lines


def _arrows(boxes: dict[str, tuple[float, float, float, float]]) -> list[str]:
    """Below the rooms, so that an arrow past a room goes behind it."""
    lines = []
    for source, target in arrows(imports()):
        (sx, sy, sw, sh), (tx, ty, tw, _) = boxes[source], boxes[target]
        start, end = sx + sw / 2, tx + tw / 2
        if abs(start - end) > 1:  # leave and arrive on the side of the other
            start, end = start + (end - start) / 8, end - (end - start) / 8
        begin, stop, bend = sy + sh, ty - 2, (ty - sy - sh) / 2
        lines.append(
            f'<path d="M{start:.0f} {begin:.0f} C{start:.0f} {begin + bend:.0f} {end:.0f} '
            f'{stop - bend:.0f} {end:.0f} {stop:.0f}" class="arrow"/>'
        )
    return lines


def _rows(room: str) -> list[str]:
    """The names of a room's files, some to a line."""
    if room.endswith(".py"):
        return []
    rows = [""]
    for file in files(room):
        if len(rows[-1]) + len(file.stem) > 38:
            rows.append("")
        rows[-1] += (" · " if rows[-1] else "") + file.stem
    return rows


if __name__ == "__main__":
    PICTURE.write_text(draw())
    print(f"written: {PICTURE}", file=sys.stderr)
