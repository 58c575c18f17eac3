"""One job on SLURM, harmed in every way: bit-identical in the end."""

import shutil
import time

import pytest
from conftest import ROOT, assert_identical, curves
from local_job import (
    kill_node,
    preempt_with_short_grace,
    reach_the_time_limit,
    revive_node,
    sbatch,
    unwritable,
    without_slurm,
)

from dist_resnet.tracking import starts

pytestmark = pytest.mark.slow


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
    job.lose_worker_and_controller()
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
