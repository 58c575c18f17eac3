"""The rooms of the house: an order of folders, and the picture of it in docs/."""

import sys

from conftest import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import draw_architecture as house


def test_a_room_imports_only_from_floors_below():
    floor = {room: number for number, rooms in enumerate(house.FLOORS) for room in rooms}
    for room, targets in house.imports().items():
        for target in targets:
            assert floor[target] > floor[room], f"{room} imports {target}"


def test_no_circle_between_files():
    paths = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts): file
        for room in house.rooms()
        for file in house.files(room)
    }
    graph = {name: house.modules_imported(path) & set(paths) for name, path in paths.items()}
    done: set[str] = set()

    def visit(name, trail):
        assert name not in trail, " -> ".join([*trail, name])
        if name not in done:
            for imported in graph[name]:
                visit(imported, [*trail, name])
            done.add(name)

    for name in graph:
        visit(name, [])


def test_every_file_is_in_a_room_and_no_room_is_overfull():
    known = {file for room in house.rooms() for file in house.files(room)}
    for package in ("dist_resnet", "launch"):
        there = {p for p in (ROOT / package).rglob("*.py") if p.name != "__init__.py"}
        assert there == {file for file in known if file.is_relative_to(ROOT / package)}
    for room in house.rooms():
        assert len(house.files(room)) <= 11, f"{room} is overfull: give it walls"


def test_the_picture_shows_the_imports_as_they_are():
    drawn = house.PICTURE.read_text()
    assert drawn == house.draw(), "run `python docs/draw_architecture.py`"


def test_workers_know_no_launcher_ranks_have_one_reader_and_wandb_one_importer():
    for path in (ROOT / "dist_resnet").rglob("*.py"):
        text, imported = path.read_text(), house.modules_imported(path)
        assert not any(name.startswith(("launch", "submitit")) for name in imported), path
        reads_ranks = any(f'"{v}"' in text for v in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        assert not reads_ranks or path.stem == "distributed", path
        assert "wandb" not in imported or path.stem == "wandb_run", path
