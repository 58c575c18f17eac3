"""`sbatch slurm/resnet110.sh`, as it is, on a real SLURM of two nodes on this machine."""

import json
import random
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from conftest import ROOT, Cli, assert_identical
from dist_resnet.tracking import read_metrics

sys.path.insert(0, str(ROOT / "slurm"))
from local_cluster import LocalCluster  # noqa: E402

SCRIPT = ROOT / "slurm/resnet110.sh"
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


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
    def __init__(self, cluster, run_dir, overrides, *options):
        self.cluster, self.run_dir, self.output = cluster, run_dir, run_dir.parent / "batch.out"
        environment = {**cluster.environment, "DIST_RESNET_PYTHON": sys.executable}
        submitted = subprocess.run(["sbatch", "--parsable", f"--output={self.output}", *options, str(SCRIPT), *overrides, "--run-dir", str(run_dir)],
                                   cwd=ROOT, env=environment, capture_output=True, text=True)
        assert submitted.returncode == 0, submitted.stderr
        self.id = submitted.stdout.strip()

    def field(self, name):
        shown = self.cluster.command("scontrol", "show", "job", self.id)
        return shown.split(f"{name}=", 1)[1].split()[0]

    def wait_for_step(self, step, seconds=120):
        self._until(lambda: any(r["step"] >= step for r in read_metrics(self.run_dir)), seconds)

    def wait_for_end(self, seconds=240):
        """SLURM makes a requeued job wait for two minutes; its owner may start it sooner, but not before the node has
        reported the end of the earlier start, which would be taken for the end of the new one."""
        def ended():
            if self.field("JobState") == "PENDING" and self.field("Reason") == "BeginTime":
                time.sleep(4)
                subprocess.run(["scontrol", "update", f"JobId={self.id}", "StartTime=now", "TimeLimit=10"], env=self.cluster.environment)
            if self.field("JobState") not in ENDS:
                return False
            time.sleep(2)  # a job about to be requeued may look as if it had failed
            return self.field("JobState") in ENDS
        self._until(ended, seconds)
        return self.field("JobState")

    def workers(self):
        """This job's worker processes, of all nodes."""
        return [p for p in psutil.process_iter(["name", "cmdline"])
                if p.info["name"].startswith("python") and p.info["cmdline"][-3:-1] == ["-m", "submitit.core._submit"] and str(self.run_dir) in p.info["cmdline"][-1]]

    def _until(self, condition, seconds):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"job {self.id} is {self.field('JobState')}:\n{self.log()}"
            time.sleep(0.2)

    def log(self):
        logs = sorted(self.run_dir.glob("logs/*_log.out")) if self.run_dir.exists() else []
        return "\n".join(f"--- {p}\n{p.read_text()}" for p in (self.output, *logs) if p.exists())


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


def test_at_its_time_limit_it_saves_and_goes_on(cluster, overrides, straight, tmp_path):
    """The signal comes while Python is starting. (A job of less than ten minutes always looks timed out to submitit.)"""
    job = Job(cluster, tmp_path / "run", overrides, "--time=2", "--signal=USR2@118")
    assert job.wait_for_end() == "COMPLETED", job.log()
    assert job.field("Restarts") == "1" and "preempted: saved at step" in job.log() and "resuming at step" in job.log(), job.log()
    assert_identical(straight, job.run_dir)


def test_a_killed_worker_ends_the_job_says_so_and_it_goes_on(cluster, overrides, straight, tmp_path):
    job = Job(cluster, tmp_path / "run", overrides)
    job.wait_for_step(8)
    workers = job.workers()
    assert len(workers) == 4
    random.choice(workers).kill()
    assert job.wait_for_end() == "COMPLETED", job.log()
    assert job.field("Restarts") == "1"
    assert "start 1 of job" in job.output.read_text() and "ended without a word" in job.output.read_text()
    assert_identical(straight, job.run_dir)


def test_an_exception_is_told_with_rank_and_node_and_not_requeued(cluster, overrides, tmp_path):
    job = Job(cluster, tmp_path / "run", [*overrides, "--schedule.warmup_lr", "1e30", "--train.precision", "fp32"])
    assert job.wait_for_end() == "FAILED", job.log()
    told = job.output.read_text()
    assert job.field("Restarts") == "0" and "not finite" in told and "rank" in told and " on n" in told, told


def test_a_node_that_goes_down_costs_only_the_steps_since_the_checkpoint(cluster, overrides, straight, tmp_path):
    job = Job(cluster, tmp_path / "run", overrides)
    job.wait_for_step(8)
    cluster.command("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")
    cluster.command("scontrol", "update", "NodeName=n2", "State=RESUME")
    assert job.wait_for_end() == "COMPLETED", job.log()
    assert job.field("Restarts") == "1"
    assert_identical(straight, job.run_dir)


def test_scancel_saves_and_ends_for_good(cluster, overrides, straight, tmp_path):
    job = Job(cluster, tmp_path / "run", overrides)
    job.wait_for_step(8)
    cluster.command("scancel", job.id)
    assert job.wait_for_end() == "CANCELLED" and "terminated: saved at step" in job.log(), job.log()
    again = Job(cluster, job.run_dir, overrides)
    assert again.wait_for_end() == "COMPLETED", again.log()
    assert_identical(straight, job.run_dir)
