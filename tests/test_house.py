"""The floors of the house: a file imports only from below, and dist_resnet never from launch."""

import ast

from conftest import ROOT

FLOORS = {  # within one floor nothing imports anything, but for the package of models and its members
    "config": 0, "config_file": 1, "signals": 0, "lock": 0, "page": 0, "data": 0, "data.manifest": 0, "data.ffcv": 0,
    "schedule": 1, "stream": 1, "distributed": 1, "models": 2, "models.cifar": 1, "models.imagenet": 1, "models.speedrun": 1, "optim": 1, "casting": 1, "parallel": 2,
    "metrics": 2, "checkpoint": 2, "wandb_run": 1, "tracking": 2, "data.augment": 2, "data.gpu": 2, "data.encoding": 1, "data.betons": 2, "data.staging": 2, "data.decoders": 2,
    "forecast": 2, "progress": 3, "data.shapes": 3, "data.sources": 3, "data.streaming": 3, "data.resident": 3, "figures": 3, "data.loading": 4, "report": 4,
    "train": 5, "graph": 6, "worker": 7,
}
LAUNCH = {"": 0, "hold_sigusr2": 0, "run_dir": 0, "cluster": 0, "task": 0, "verdict": 0, "follow": 0, "sweep": 0, "arguments": 1, "agents": 1, "local": 1,
          "slurm": 2, "place": 2, "planning": 2, "sweeping": 3, "speedrun": 3, "__main__": 4}


def imports(path):
    """Modules that a file imports at its top level, dotted."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
    return found


def modules(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT / package).with_suffix("").parts)
        yield name.removesuffix(".__init__").removesuffix("__init__"), path


def test_workers_import_only_from_floors_below():
    seen = set()
    for name, path in modules("dist_resnet"):
        seen.add(name)
        for imported in imports(path):
            assert not imported.startswith(("launch", "submitit")), f"{path} imports {imported}"
            target = imported.removeprefix("dist_resnet.")
            if imported.startswith("dist_resnet.") and target in FLOORS and target != name:
                assert FLOORS[target] < FLOORS[name], f"{name} imports {target}"
    assert seen == set(FLOORS) | {""}


def test_the_launcher_likewise():
    assert {name for name, _ in modules("launch")} == set(LAUNCH)
    for name, path in modules("launch"):
        for imported in imports(path):
            target = imported.removeprefix("launch.")
            if imported.startswith("launch.") and target in LAUNCH:
                assert LAUNCH[target] < LAUNCH[name], f"launch.{name} imports {target}"


def test_only_distributed_reads_ranks_and_only_wandb_run_imports_wandb():
    for name, path in modules("dist_resnet"):
        text = path.read_text()
        assert name == "distributed" or not any(f'"{v}"' in text for v in ("RANK", "WORLD_SIZE", "LOCAL_RANK")), path
        assert name == "wandb_run" or "wandb" not in imports(path), path
