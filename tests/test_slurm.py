"""`sbatch slurm/resnet110.sh`, as it is, on a real SLURM of two nodes on this machine."""

import json
import random

import pytest
from conftest import ROOT, Cli, assert_identical
from local_job import (
    Job,
    as_in_a_container,
    sbatch,
)

from dist_resnet.tracking import starts
from dist_resnet.tracking.tracker import read_metrics
from launch.executors import cluster as cluster_file, slurm

pytestmark = pytest.mark.slow


def test_it_runs_on_two_nodes_and_leaves_everything(slurm_cluster, overrides, straight, tmp_path):
    """And its workers read copies of the betons on their node's own disk, which are gone
    afterwards."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    job = sbatch(
        slurm_cluster,
        tmp_path / "run",
        [*overrides, "--data.stage", "true", "--tracking.wandb", "offline"],
        TMPDIR=str(scratch),
    )
    job.wait_for_step(2)
    for node in ("n1", "n2"):
        assert {p.name for p in scratch.glob(f"dist_resnet-{node}-*/*")} == {
            "manifest.json",
            "train.beton",
            "test.beton",
        }, job.log()
    assert job.wait_for_end() == "COMPLETED", job.log()
    assert not list(scratch.glob("dist_resnet-*"))
    summary = json.loads((job.run_dir / "summary.json").read_text())
    assert (summary["world_size"], summary["steps"]) == (4, 60) and (
        job.run_dir / "curves.png"
    ).exists()
    assert len(list(job.run_dir.glob("wandb/offline-run-*/run-*.wandb"))) == 1
    assert {p.name.split("_")[1] for p in job.run_dir.glob("logs/*_log.out")} == {
        "0",
        "1",
        "2",
        "3",
    }
    assert_identical(straight, job.run_dir)


def test_an_exception_is_told_with_rank_and_node_and_not_requeued(
    slurm_cluster, overrides, tmp_path
):
    """In a container, from which only the batch script's own shell reaches SLURM."""
    job = sbatch(
        slurm_cluster,
        tmp_path / "run",
        [*overrides, "--schedule.warmup_lr", "1e30", "--train.precision", "fp32"],
        **as_in_a_container(tmp_path),
    )
    assert job.wait_for_end() == "FAILED", job.log()
    told = job.output.read_text()
    (start,) = starts.read(job.run_dir)
    assert start["outcome"].startswith("failed: the loss is not finite"), start
    assert (
        job.field("Restarts") == "0" and "not finite" in told and "rank" in told and " on n" in told
    ), told


def test_from_a_cluster_file_with_a_worker_that_hangs(
    slurm_cluster, overrides, straight, tmp_path, monkeypatch
):
    """`--wait` shows the log, starts the requeue at once, and ends as the job does."""
    monkeypatch.setenv("SLURM_CONF", slurm_cluster.environment["SLURM_CONF"])
    (tmp_path / "here.yaml").write_text(
        "{gpus_per_node: 1, cpus_per_task: 1, time: 10, setup: [export GREETING=hello, echo "
        "$GREETING]}"
    )
    cli = Cli(tmp_path)
    waiting = cli.start(
        "train",
        ROOT / "configs/resnet110.yaml",
        *overrides,
        "--train.timeout_s",
        25,
        "--run-dir",
        tmp_path / "run",
        "--cluster",
        "here.yaml",
        "--nodes",
        2,
        "--wait",
    )
    job = Job(slurm_cluster, tmp_path / "run", tmp_path / "none", id="1")
    job.until(
        lambda: (
            any(r["step"] >= 8 for r in read_metrics(job.run_dir)) or waiting.poll() is not None
        ),
        120,
    )
    random.choice(job.workers()).suspend()
    output, _ = waiting.communicate(timeout=300)
    assert waiting.returncode == 0, output
    for said in (
        "hello",
        "scancel",
        "start 1 of job",
        "ended without a word",
        "resuming at step",
        "step 60/60",
    ):
        assert said in output, (said, output)
    failures = (tmp_path / "run/logs/failures.txt").read_text()
    assert "start 1 of job" in failures and "which gave no sign" in failures, failures
    assert "where every thread is:" in job.log() and "Current thread 0x" in job.log()
    assert_identical(straight, tmp_path / "run")


def test_every_key_of_a_cluster_file_reaches_the_batch_script(tmp_path):
    (tmp_path / "c.yaml").write_text("""
{partition: p1, account: a1, qos: q1, constraint: c1, exclude: "x[1-2]", gpus_per_node: a100:8,
 cpus_per_task: 7, mem: 60G, time: 90, signal: USR1, signal_delay_s: 77, max_restarts: 5,
 max_faults: 2, code: pinned, container: null, python: null, array_parallelism: 9,
 setup: [module load m1], srun_args: [--mpi=none, "--cpu-bind=v erbose"],
 sbatch: {reservation: night, mail_type: END, exclusive: true}}""")
    where = cluster_file.load(tmp_path / "c.yaml")
    assert where.number_of_gpus == 8
    text = slurm.script(tmp_path / "run", where, 4, 8)
    given = {
        line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")
    }
    assert given >= {
        "partition=p1",
        "account=a1",
        "qos=q1",
        "constraint=c1",
        "exclude='x[1-2]'",
        "gpus-per-node=a100:8",
        "reservation=night",
        "mail-type=END",
        "exclusive",
        "cpus-per-task=7",
        "mem=60G",
        "time=90",
        "signal=USR1@77",
        "nodes=4",
        "ntasks-per-node=8",
        "requeue",
        "open-mode=append",
        "job-name=run",
    }
    assert (
        "module load m1\n" in text
        and "trap ':' USR1 USR2 TERM" in text
        and f"PYTHONPATH={tmp_path}/run/code" in text
    )
    (last,) = [line for line in text.splitlines() if line.startswith("exec bash ")]
    settling, of_srun, worker = last.split(" -- ")
    assert settling.startswith(f"exec bash {tmp_path}/run/code/launch/jobs/workers.sh")
    assert of_srun == "--mpi=none '--cpu-bind=v erbose'"
    assert f"{tmp_path}/run/code/launch/jobs/hold_signals.py" in worker
    executor = slurm.executor(tmp_path / "run", where, 4, 8)
    executor.parameters["map_count"] = 100  # as submitit sets it for a job array
    assert "#SBATCH --array=0-99%9\n" in executor._make_submission_file_text("x", "")
    unread = {
        "max_restarts",
        "max_faults",
        "array_parallelism",
    }  # settle's and that of arrays
    assert set(cluster_file.Cluster.__dataclass_fields__) - unread == {
        "partition",
        "account",
        "qos",
        "constraint",
        "exclude",
        "gpus_per_node",
        "cpus_per_task",
        "mem",
        "time",
        "signal",
        "signal_delay_s",
        "code",
        "container",
        "python",
        "setup",
        "srun_args",
        "sbatch",
    }
