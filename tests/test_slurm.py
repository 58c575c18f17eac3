"""`sbatch slurm/resnet110.sh`, as it is, on a real SLURM of two nodes on this machine."""

import json
import random
import shutil
import time

import pytest
from conftest import ROOT, Cli, assert_identical, curves
from local_job import (
    Job,
    as_in_a_container,
    kill_node,
    preempt_with_short_grace,
    reach_the_time_limit,
    revive_node,
    sbatch,
    unwritable,
    without_slurm,
)

from dist_resnet.tracking import starts
from dist_resnet.tracking.tracker import read_metrics
from launch.executors import cluster as cluster_file, slurm

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def overrides(shapes_dir):
    """A small network and short run in place of the recipe's."""
    settings = {
        "model.name": "resnet8",
        "model.width": 3,
        "data.dir": shapes_dir,
        "data.dataset": "shapes",
        "batch.per_worker": 12,
        "batch.virtual_workers": 4,
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


def test_harmed_in_every_way_it_ends_bit_identical(slurm_cluster, overrides, straight, tmp_path):
    """A time limit while Python is starting, checkpoints that cannot be written, a worker killed
    while the controller is down, a preemption with short grace, a scancel; submitted again, and a
    node dies, so that half of the workers train to the end. The workers know nothing of SLURM, and
    the checkout is another one at every start but the first."""
    cluster = slurm_cluster
    one_per_node = ("--ntasks-per-node=1", "--gpus-per-node=1")
    limit = ("--time=9", "--signal=USR1@100")
    checkout = tmp_path / "checkout"
    for folder in ("dist_resnet", "launch", "slurm", "configs"):
        shutil.copytree(ROOT / folder, checkout / folder)
    job = sbatch(
        cluster,
        tmp_path / "run",
        overrides,
        *one_per_node,
        *limit,
        checkout=checkout,
        DIST_RESNET_WORKER_PYTHON=without_slurm(tmp_path),
    )
    job.until(lambda: len(job.workers()) == 2, 90)
    (checkout / "dist_resnet/worker.py").write_text("raise RuntimeError('of another commit')")
    (checkout / "configs/resnet110.yaml").unlink()
    reach_the_time_limit(job)

    job.wait_for_step(8)
    assert job.field("Restarts") == "1" and "preempted: saved at step" in job.log(), job.log()
    with unwritable(job.run_dir / "checkpoints"):
        job.until(lambda: "could not be written" in job.log(), 60)
    victim = random.choice(job.workers())
    cluster.kill_controller()
    victim.kill()
    wait_for_text(job.output, "SLURM does not requeue it (no answer)")
    cluster.restart_controller()

    job.wait_for_step(20)
    assert job.field("Restarts") == "2", job.log()
    told = job.output.read_text()
    assert "start 2 of job" in told and "ended without a word" in told
    preempt_with_short_grace(job)

    job.wait_for_step(32)
    assert job.field("Restarts") == "3" and job.log().count("preempted: saved at step") == 2
    cluster.command("scancel", job.id)
    assert job.wait_for_end() == "CANCELLED" and "terminated: saved at step" in job.log(), job.log()

    again = sbatch(cluster, job.run_dir, overrides, *one_per_node)
    again.wait_for_step(44)
    kill_node(cluster, "n2", again)
    try:
        fewer = ("NumNodes=1", "NumTasks=1", "NumCPUs=8")
        assert again.wait_for_end(300, *fewer) == "COMPLETED", again.log()
    finally:
        revive_node(cluster, "n2")
    assert again.field("Restarts") == "1" and "(world size 2 before)" in again.log()
    ends = [start["outcome"].partition(":")[0] for start in starts.read(job.run_dir)]
    assert ends[:4] == ["preempted", "failed", "preempted", "terminated"], ends
    assert ends[-1] == "completed" and len({s["commit"] for s in starts.read(job.run_dir)}) == 1
    assert_identical(straight, again.run_dir)
    assert curves(straight) == curves(again.run_dir)


def wait_for_text(path, text, seconds=90):
    deadline = time.monotonic() + seconds
    while text not in path.read_text():
        assert time.monotonic() < deadline, path.read_text()
        time.sleep(0.2)


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
        and "export SRUN_CPUS_PER_TASK=7\n" in text
        and "trap ':' USR1 USR2 TERM" in text
        and f"PYTHONPATH={tmp_path}/run/code" in text
    )
    (srun,) = [line for line in text.splitlines() if line.startswith("srun ")]
    assert (
        "--mpi=none '--cpu-bind=v erbose'" in srun
        and "--kill-on-bad-exit=1" in srun
        and f"{tmp_path}/run/code/launch/jobs/hold_signals.py" in srun
    )
    assert text.index("srun ") < text.index("launch settle") < text.index("requeue.sh $?")
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
