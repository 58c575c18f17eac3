"""What sites do differently, on a real SLURM of two nodes: their signals, their sbatch lines."""

import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT, Cli, assert_identical
from local_job import Job, reach_the_time_limit, sbatch

from dist_resnet.tracking import starts

pytestmark = pytest.mark.slow


def test_a_limit_announced_by_sigterm_and_a_signal_to_the_shell_alone(
    slurm_cluster, overrides, straight, tmp_path
):
    one_per_node = ("--ntasks-per-node=1", "--gpus-per-node=1")
    limit = ("--time=9", "--signal=TERM@100")
    job = sbatch(slurm_cluster, tmp_path / "run", overrides, *one_per_node, *limit)
    job.wait_for_step(4)
    reach_the_time_limit(job)
    job.wait_for_step(20)
    told = job.output.read_text()
    assert "told to terminate near its time limit: it goes on" in told, job.log()
    slurm_cluster.command("scancel", "--batch", "--signal=USR2", job.id)  # as --signal=B:USR2@60
    assert job.wait_for_end() == "COMPLETED" and job.field("Restarts") == "2", job.log()
    ends = [start["outcome"] for start in starts.read(job.run_dir)]
    assert ends == ["terminated", "preempted", "completed"], job.log()
    assert_identical(straight, job.run_dir)


def test_inside_an_allocation_with_fewer_tasks_than_a_node_takes_and_no_requeue(
    slurm_cluster, overrides, tmp_path
):
    """A job queued from there has its own size; preempted, it says at once why it does not go on;
    then one whose srun starts nothing, which is not started again."""
    inside = ["salloc", "--quiet", "--ntasks-per-node=2", "--cpus-per-task=3", "srun", "--ntasks=1"]
    (tmp_path / "here.yaml").write_text(
        "{cpus_per_task: 1, time: 10, sbatch: {comment: x}, setup: ['env > environment']}"
    )
    cli = Cli(tmp_path)
    words = ("train", ROOT / "configs/resnet110.yaml", *overrides, "--run-dir", tmp_path / "in/run")
    environment = {**cli.environment, **slurm_cluster.environment, "PYTHONPATH": str(ROOT)}
    environment["SRUN_CPUS_PER_TASK"] = "3"
    asked = [*inside, sys.executable, "-m", "launch", *map(str, words), "--cluster", "here.yaml"]
    done = subprocess.run(asked, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "asks SLURM for no GPU, so that it trains on CPUs" in done.stdout, done
    queued = re.search(r"job (\d+) queued", done.stdout)
    assert queued, done
    plain = Job(slurm_cluster, tmp_path / "in/run", tmp_path / "none", queued[1])

    few = ("--nodes=1", "--ntasks=1", "--ntasks-per-node=2", "--gpus-per-node=1", "--no-requeue")
    (tmp_path / "few").mkdir()
    job = sbatch(slurm_cluster, tmp_path / "few/run", overrides, *few)
    (tmp_path / "none").mkdir()
    too_many = {"DIST_RESNET_SRUN_ARGS": "--ntasks=99"}
    never = sbatch(slurm_cluster, tmp_path / "none/run", overrides, *few[:-1], **too_many)

    job.wait_for_step(2)
    slurm_cluster.command("scancel", "--signal=USR2", job.id)
    assert job.wait_for_end(30) == "FAILED", job.log()
    told = job.output.read_text()
    assert "SLURM may not requeue it (--no-requeue" in told and "singleton" in told, told
    assert starts.read(job.run_dir)[-1]["world_size"] == 1

    assert never.wait_for_end(60) == "FAILED" and never.field("Restarts") == "0", never.log()
    assert "srun has started no worker" in never.output.read_text(), never.log()

    assert plain.wait_for_end() == "COMPLETED", plain.log()
    given = dict(line.split("=", 1) for line in _lines(tmp_path / "environment"))
    assert given["SLURM_JOB_ID"] == queued[1] and given["SLURM_CPUS_PER_TASK"] == "1"
    assert not [name for name in given if name.startswith(("SLURM_STEP", "SRUN_", "SLURM_SRUN"))]


def test_a_mistake_at_submission_is_one_line(slurm_cluster, overrides, tmp_path):
    """sbatch in another directory; a cluster file that SLURM refuses."""
    words = ["sbatch", "--wait", f"--output={tmp_path}/out", str(ROOT / "slurm/train.sh"), "x.yaml"]
    subprocess.run(words, cwd=tmp_path, env=slurm_cluster.environment, capture_output=True)
    *_, last = _lines(tmp_path / "out")
    assert "cd CHECKOUT && sbatch slurm/train.sh" in last, last

    (tmp_path / "here.yaml").write_text("{partition: nowhere, gpus_per_node: 1}")
    cli = Cli(tmp_path)
    cli.environment |= slurm_cluster.environment | {"PYTHONPATH": str(ROOT)}
    words = ("train", ROOT / "configs/resnet110.yaml", *overrides, "--run-dir", "run")
    code, output = cli(*words, "--cluster", "here.yaml")
    assert code == 1 and "sbatch refuses: Batch job submission failed: Invalid p" in output, output
    assert "Traceback" not in output, output


def test_a_sweep_larger_than_slurms_arrays_is_several(
    slurm_cluster, overrides, tmp_path, monkeypatch
):
    configuration = slurm_cluster.folder / "slurm.conf"
    before = configuration.read_text()
    configuration.write_text(before + "MaxArraySize=3\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.yaml").write_text("{cpus_per_task: 1, time: 10, sbatch: {begin: now+1hour}}")
    (tmp_path / "seeds.yaml").write_text(
        json.dumps(
            {
                "method": "grid",
                "parameters": {"train.seed": {"values": list(range(7))}},
                "command": ["dist-resnet", "train", str(ROOT / "configs/resnet110.yaml")],
            }
        )
    )
    cli = Cli(tmp_path)
    cli.environment |= {**slurm_cluster.environment, "PYTHONPATH": str(ROOT)}
    try:
        slurm_cluster.command("scontrol", "reconfigure")
        code, output = cli("sweep", "seeds.yaml", *overrides, "--cluster", "here.yaml")
        assert code == 0 and "7 runs" in output, output
        queued = slurm_cluster.command("squeue", "--noheader", "--array", "--format=%F").split()
        assert sorted(queued.count(job) for job in set(queued)) == [1, 3, 3], output
        cancelled = output.split("cancel: scancel ")[1].splitlines()[0].split()
        assert sorted(cancelled) == sorted(set(queued))
        slurm_cluster.command("scancel", *cancelled)
    finally:
        configuration.write_text(before)
        slurm_cluster.command("scontrol", "reconfigure")


def _lines(path):
    return path.read_text().splitlines()
