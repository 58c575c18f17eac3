"""Small data that the tests make themselves, and trainings run as a user runs them."""

import contextlib
import gc
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # for torch: waiting threads would spin

import torch
from worker_pool import WorkerPool

from dist_resnet.data import manifest
from dist_resnet.prepare import betons, shapes
from dist_resnet.tracking.tracker import read_metrics
from launch.__main__ import main

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "slurm"))
from local_cluster import LocalCluster  # noqa: E402

TRAIN, TEST = 600, 230  # 230 does not divide by 3 or 4


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="to train on")


def pytest_configure(config: pytest.Config) -> None:
    """Trainings take a GPU where they see one: with `--device cpu` they see none."""
    global ON_GPU
    ON_GPU = config.getoption("--device") == "cuda"
    if ON_GPU and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch sees no GPU")
    if not ON_GPU and torch.cuda.is_available():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


ON_GPU = False  # where bits may differ: see `curves` and `assert_identical`


def need_gpus(workers: int) -> None:
    """Skip what wants more workers than there are GPUs."""
    if ON_GPU and workers > torch.cuda.device_count():
        pytest.skip(f"needs {workers} GPUs")


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
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.getenv("PYTHONPATH")])]),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",  # other tests run beside this one
        }

    def start(self, *words: object, **environment: str) -> subprocess.Popen:
        if "--workers-per-node" in words:
            need_gpus(int(words[words.index("--workers-per-node") + 1]))
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


@pytest.fixture
def command(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    """`dist-resnet` in this process, where it starts no other and leaves nothing behind."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(map(str, words)))
        return ended.value.code, "".join(capsys.readouterr())

    return run


CONFIG = """\
model: {name: resnet8, width: 2}
data: {dir: DATA, dataset: shapes}
batch: {global: 48, per_worker: null}
optim: {lr: 0.05, momentum: 0.9}
schedule: {reference_batch: 48, steps: 30, milestones: [20]}
train: {log_every: 2 steps, evaluate_every: 10 steps, checkpoint_every: 4 steps, eval_batch: 50,
        timeout_s: 180, all_reduce: flat}
tracking: {wandb: disabled, top_losses: 0}
"""  # 12 steps an epoch: checkpoints and evaluations fall into mid-epoch


@pytest.fixture
def config_path(tmp_path, shapes_dir) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG.replace("DATA", str(shapes_dir)))
    return path


@pytest.fixture
def small_path(config_path) -> Path:
    """With steps a quarter as long, where nobody waits for one."""
    config_path.write_text(config_path.read_text().replace("width: 2", "width: 1"))
    return config_path


LONGEST = (
    "test_gpu_kit",
    "test_slurm_harms",
    "test_search",
    "test_training",
    "test_slurm",
    "test_sweep_agents",
    "test_slurm_sites",
    "test_equal_trainings",
    "test_virtual_workers",
    "test_imagenet",
    "test_doctor",
    "test_sweeps",
    "test_fast_paths",
    "test_cli",
)  # files, which pytest-xdist hands out whole: these first


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gc.freeze()  # what is imported: no collection need visit it
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


TIMES = (
    "images_per_second",
    "data_wait",
    "hours",
    "hours_left",
    "test/images_per_second",
    "val/images_per_second",
)


def curves(run_dir: Path) -> list[dict]:
    """Every record, but for what depends on time; on a GPU, which may add in another order every
    time, the steps and what was recorded of them."""
    records = [{k: v for k, v in r.items() if k not in TIMES} for r in read_metrics(run_dir)]
    return [{k: k == "step" and v for k, v in r.items()} for r in records] if ON_GPU else records


def wait_for_step(
    run_dir: Path, step: int, process: subprocess.Popen | None = None, seconds: float = 120
) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if any(r["step"] >= step for r in read_metrics(run_dir)):
            return
        assert process is None or process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached")


def without_last_checkpoint(
    run_dir: Path, copy: Path, damage: Callable[[Path], object] = Path.unlink
) -> None:
    """A copy of a finished run that looks as if it had been killed at its end."""
    shutil.copytree(run_dir, copy, ignore=shutil.ignore_patterns("summary.json", "lock*"))
    damage(copy / "checkpoints" / (copy / "checkpoints/LATEST").read_text().strip())


def workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    """The worker processes of a `dist-resnet train` on this machine."""
    found = []
    for controller in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it may end meanwhile
            if {"launch.jobs.forks", "submitit.local._local"} & set(controller.cmdline()):
                found += controller.children()
    return found


@pytest.fixture(scope="session")
def workers():
    """Worker processes for what needs no launcher."""
    pool = WorkerPool(need_gpus)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def slurm_cluster():
    """A SLURM of two nodes, one for all that run in this process."""
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as folder,
        LocalCluster(Path(folder)) as running,
    ):
        yield running


@pytest.fixture(scope="session")
def overrides(shapes_dir):
    """A small network and short run in place of slurm/resnet110.sh's."""
    settings = {
        "model.name": "resnet8",
        "model.width": 3,
        "data.dir": shapes_dir,
        "data.dataset": "shapes",
        "batch.per_worker": 12,
        "batch.virtual_workers": 4,
        "train.device": "auto" if ON_GPU else "cpu",  # a local cluster's GPUs are pretended
        "train.max_steps": 60,
        "train.log_every": "2 steps",
        "train.evaluate_every": "20 steps",
        "train.checkpoint_every": "4 steps",
        "tracking.wandb": "disabled",
        "tracking.top_losses": 0,
    }
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


@pytest.fixture(scope="session")
def straight(tmp_path_factory, overrides):
    """The same run, uninterrupted, by two workers that the local launcher starts."""
    directory = tmp_path_factory.mktemp("straight")
    words = [*overrides, "--run-dir", "run", "--workers-per-node", 2]
    code, output = Cli(directory)("train", ROOT / "configs/resnet110.yaml", *words)
    assert code == 0, output
    return directory / "run"


def final_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    directory = run_dir / "checkpoints"
    state = torch.load(directory / (directory / "LATEST").read_text().strip(), weights_only=True)
    momenta = {
        f"momentum/{i}/{name}": torch.as_tensor(value)
        for i, values in state["optimizer"]["state"].items()
        for name, value in values.items()
    }
    return {**state["model"], **momenta}


def assert_identical(a: Path, b: Path) -> None:
    """The same weights, BN statistics and momenta, bit for bit; on a GPU within a tenth."""
    left, right = final_weights(a), final_weights(b)
    assert left.keys() == right.keys()
    if ON_GPU:
        one, other = (torch.cat([t.double().flatten() for t in w.values()]) for w in (left, right))
        assert (one - other).norm() < 0.1 * other.norm()
        return
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different, f"{len(different)} of {len(left)} tensors differ: {different[:5]}"
