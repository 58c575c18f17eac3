"""`sbatch slurm/resnet110.sh`, as it is, on a real SLURM of two nodes on this machine."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from conftest import ROOT, Cli, assert_identical
from dist_resnet.tracking import read_metrics

sys.path.insert(0, str(ROOT / "slurm"))
from local_cluster import LocalCluster  # noqa: E402

SCRIPT = ROOT / "slurm/resnet110.sh"


@pytest.fixture(scope="module")
def cluster():
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, LocalCluster(Path(folder)) as running:
        yield running


@pytest.fixture(scope="module")
def overrides(shapes_dir):
    """A small network and short run in place of the recipe's."""
    return [str(word) for word in (
        "--model.name", "resnet8", "--data.dir", shapes_dir, "--data.dataset", "shapes", "--batch.per_worker", "null",
        "--batch.global", 48, "--train.max_steps", 30, "--train.log_every", "2 steps", "--train.evaluate_every", "10 steps",
        "--train.checkpoint_every", "4 steps")]


@pytest.fixture(scope="module")
def straight(tmp_path_factory, overrides):
    """The same run, uninterrupted, by four workers that the local launcher starts."""
    directory = tmp_path_factory.mktemp("straight")
    code, output = Cli(directory)("train", ROOT / "configs/resnet110.yaml", *overrides, "--run-dir", "run", "--workers-per-node", 4)
    assert code == 0, output
    return directory / "run"


class Job:
    def __init__(self, cluster, run_dir, overrides):
        self.cluster, self.run_dir, self.output = cluster, run_dir, run_dir.parent / "batch.out"
        environment = {**cluster.environment, "DIST_RESNET_PYTHON": sys.executable}
        submitted = subprocess.run(["sbatch", "--parsable", f"--output={self.output}", str(SCRIPT), *overrides, "--run-dir", str(run_dir)],
                                   cwd=ROOT, env=environment, capture_output=True, text=True)
        assert submitted.returncode == 0, submitted.stderr
        self.id = submitted.stdout.strip()

    def field(self, name):
        shown = self.cluster.command("scontrol", "show", "job", self.id)
        return shown.split(f"{name}=", 1)[1].split()[0]

    def wait_for_step(self, step, seconds=120):
        self._until(lambda: any(r["step"] >= step for r in read_metrics(self.run_dir)), seconds)

    def wait_for_end(self, seconds=240):
        """SLURM makes a requeued job wait for two minutes; its owner may start it at once."""
        def ended():
            if self.field("JobState") == "PENDING" and self.field("Reason") == "BeginTime":
                subprocess.run(["scontrol", "update", f"JobId={self.id}", "StartTime=now"], env=self.cluster.environment)
            return self.field("JobState") in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self._until(ended, seconds)
        return self.field("JobState")

    def _until(self, condition, seconds):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"job {self.id} is {self.field('JobState')}:\n{self.log()}"
            time.sleep(0.2)

    def log(self):
        logs = sorted(self.run_dir.glob("logs/*_log.out")) if self.run_dir.exists() else []
        return "\n".join(f"--- {p}\n{p.read_text()[-3000:]}" for p in (self.output, *logs) if p.exists())


def test_it_runs_on_two_nodes_and_leaves_everything(cluster, overrides, straight, tmp_path):
    job = Job(cluster, tmp_path / "run", overrides)
    assert job.wait_for_end() == "COMPLETED", job.log()
    summary = json.loads((job.run_dir / "summary.json").read_text())
    assert (summary["world_size"], summary["steps"]) == (4, 30) and (job.run_dir / "curves.png").exists()
    assert len(list(job.run_dir.glob("wandb/offline-run-*/run-*.wandb"))) == 1
    assert {p.name.split("_")[1] for p in job.run_dir.glob("logs/*_log.out")} == {"0", "1", "2", "3"}
    assert_identical(straight, job.run_dir)


def test_preempted_it_requeues_and_ends_bit_identical(cluster, overrides, straight, tmp_path):
    job = Job(cluster, tmp_path / "run", overrides)
    job.wait_for_step(8)
    cluster.command("scancel", "--signal=USR2", job.id)
    assert job.wait_for_end() == "COMPLETED", job.log()
    assert job.field("Restarts") == "1" and "preempted: saved at step" in job.log() and "resuming at step" in job.log()
    assert_identical(straight, job.run_dir)
