"""Small data that the tests make themselves, and trainings run as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dist_resnet.data import manifest
from dist_resnet.prepare import betons, shapes

ROOT = Path(__file__).parent.parent
TRAIN, TEST = 600, 230  # 230 does not divide by 3 or 4


@pytest.fixture(scope="session")
def shapes_dir(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "shapes"
    betons.prepare(shapes.make(TRAIN, TEST), out, val=0, seed=0)
    return out


@pytest.fixture(scope="session")
def shapes_manifest(shapes_dir) -> manifest.Manifest:
    return manifest.load(shapes_dir)


class Cli:
    """`dist-resnet` as a process of its own, in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}

    def start(self, *words: object, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "launch", *map(str, words)],
            cwd=self.directory,
            text=True,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def __call__(self, *words: object, timeout: float = 300, **environment: str) -> tuple[int, str]:
        process = self.start(*words, **environment)
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"{words} did not end: {process.communicate()[0]}") from None
        return process.returncode, output


@pytest.fixture
def cli(tmp_path) -> Cli:
    return Cli(tmp_path)


CONFIG = """\
model: {name: resnet8, width: 2}
data: {dir: DATA, dataset: shapes}
batch: {global: 48, per_worker: null}
optim: {lr: 0.05, momentum: 0.9}
schedule: {reference_batch: 48, steps: 30, milestones: [20]}
train: {log_every: 2 steps, evaluate_every: 10 steps, checkpoint_every: 4 steps, eval_batch: 50,
        timeout_s: 60, all_reduce: flat}
tracking: {wandb: disabled, top_losses: 0}
"""  # 12 steps an epoch: checkpoints and evaluations fall into mid-epoch


@pytest.fixture
def config_path(tmp_path, shapes_dir) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG.replace("DATA", str(shapes_dir)))
    return path


def final_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    directory = run_dir / "checkpoints"
    state = torch.load(directory / (directory / "LATEST").read_text().strip(), weights_only=True)
    momenta = {
        f"momentum/{i}": s["momentum_buffer"] for i, s in state["optimizer"]["state"].items()
    }
    return {**state["model"], **momenta}


def assert_identical(a: Path, b: Path) -> None:
    """The same weights, BN statistics and momenta, bit for bit."""
    left, right = final_weights(a), final_weights(b)
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different, f"{len(different)} of {len(left)} tensors differ: {different[:5]}"
