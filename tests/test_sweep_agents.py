"""A sweep with W&B's server: the real wandb client and its agents, as a job array on a real
SLURM."""

import csv
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from test_sweeps import CHOSEN, sweep_path
from wandb_server import WandbServer

from dist_resnet.tracking.tracker import read_metrics

__all__ = ["sweep_path"]


def chosen_of(config):
    return config["optim"]["lr"], config["train"]["seed"]


def table(cli, directory):
    """What `compare --csv` prints, by learning rate and seed: the figures that do not depend on
    time."""
    code, output = cli("compare", directory, "--csv")
    assert code == 0, output
    rows = csv.DictReader(io.StringIO(output.split("written:")[0]))
    return {
        (float(r["optim.lr"]), int(r["train.seed"])): (
            r["steps"],
            r["top-1"],
            r["top-5"],
            r["best top-1"],
            r["complete"],
        )
        for r in rows
    }


@pytest.mark.slow
def test_agents_on_a_cluster_leave_the_table_of_four_undisturbed_runs(
    cli, sweep_path, slurm_cluster, workers, monkeypatch
):
    """Two agents as a job array; one is preempted in mid-run, then all processes of one are killed;
    their jobs are requeued, and the runs they were at go on."""
    for lr, seed in CHOSEN:
        chosen = ("--optim.lr", lr, "--train.seed", seed, "--train.checkpoint_every", "2 steps")
        workers.train(cli.directory / "tiny.yaml", cli.directory / f"offline/{lr}-{seed}", *chosen)
    without = table(cli, "offline")
    assert set(without) == CHOSEN and all(
        row[-1] == "True" and row[0] == "30" for row in without.values()
    )

    for name in ("WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    (cli.directory / "here.yaml").write_text("{cpus_per_task: 1, time: 10}")
    cluster = slurm_cluster
    with WandbServer() as server:
        environment = {
            **server.environment,
            "SLURM_CONF": cluster.environment["SLURM_CONF"],
            "PATH": f"{Path(sys.executable).parent}:{cli.environment['PATH']}",
        }
        code, output = cli(
            "sweep",
            "four.yaml",
            "--wandb",
            "--cluster",
            "here.yaml",
            "--agents",
            2,
            "--workers-per-node",
            1,
            "--sweep-dir",
            "online",
            **environment,
        )
        assert code == 0 and "2 agents" in output, output
        job = output.split("job ")[1].split()[0]
        preempted = wait_for(lambda: mid_run(cli.directory / "online"), cli.directory)
        cluster.command("scancel", "--signal=USR2", f"{job}_{(preempted / 'agent').read_text()}")
        wait_for(
            lambda: any(
                "preempted: saved" in p.read_text() or "terminated: saved" in p.read_text()
                for p in cli.directory.glob("online/logs/*_log.out")
            ),
            cli.directory,
        )
        victim = wait_for(lambda: mid_run(cli.directory / "online", but=preempted), cli.directory)
        kill_agent(cli.directory, victim)
        wait_for(lambda: finished(cluster, job), cli.directory, 300)
        logs = "\n".join(p.read_text() for p in cli.directory.glob("online/logs/*_log.out"))
        (sweep,) = server.sweeps.values()
        assert len(sweep.runs) == 4 and all(
            run.finished and run.exit_code == 0 for run in sweep.runs.values()
        ), logs
        assert {chosen_of(run.config) for run in sweep.runs.values()} == CHOSEN and {
            len(run.tags) for run in sweep.runs.values()
        } == {3}
        assert (
            min(server.runs[victim.name].resumed, server.runs[preempted.name].resumed) >= 1
            and "ended without a word" in logs
            and "resuming at step" in logs
        ), logs
        for run in sweep.runs.values():
            directory = cli.directory / "online" / run.id
            summary = json.loads((directory / "summary.json").read_text())
            assert (
                run.summary["test_top1"] == summary["test_top1"]
                and run.group == "four"
                and run.job_type == "train"
            )
            sent = {row["_step"]: row["train/loss"] for row in run.history if "train/loss" in row}
            assert sent == {
                r["step"]: r["train/loss"] for r in read_metrics(directory) if "train/loss" in r
            }, directory
            assert {"curves", "top_losses"} <= set().union(*run.history)
        sent_weights = [a for a in server.artifacts.values() if a.type == "model"]
        assert {a.name for a in sent_weights} == {f"checkpoint-{id}" for id in sweep.runs} and all(
            a.committed for a in sent_weights
        )
    assert table(cli, "online") == without


def mid_run(directory, but=None):
    """A RUN_DIR of a training, other than `but`, that has gone some steps and has some to go."""
    return next(
        (
            p.parent
            for p in directory.glob("*/metrics.jsonl")
            if p.parent != but
            and 2 <= max((r["step"] for r in read_metrics(p.parent)), default=0) < 16
            and (p.parent / "checkpoints/LATEST").exists()
        ),
        None,
    )


def kill_agent(directory, run_dir):
    """Everything that the job of this run's agent runs, at once, as the kernel or a node might."""
    name = (run_dir / "agent").read_text()
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        is_task = words[-3:-1] == ["-m", "submitit.core._submit"] and "python" in words[0]
        ours = is_task and str(directory / "online/logs") in words[-1]
        if ours and process.environ().get("SLURM_ARRAY_TASK_ID") == name:
            for victim in [*process.children(recursive=True), process]:
                victim.kill()


def finished(cluster, job):
    """Also starts a requeued job without SLURM's two minutes."""
    shown = cluster.command("squeue", "--noheader", "--array", "--format=%i %T %r", "--states=all")
    states = [line.split() for line in shown.splitlines() if line.startswith(f"{job}_")]
    for name, state, reason in states:
        if state == "PENDING" and reason == "BeginTime":
            time.sleep(4)
            subprocess.run(
                ["scontrol", "update", f"JobId={name}", "StartTime=now"], env=cluster.environment
            )
    return bool(states) and all(
        state in ("COMPLETED", "FAILED", "CANCELLED") for _, state, _ in states
    )


def wait_for(condition, directory, seconds=180):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "\n".join(
            p.read_text() for p in directory.glob("online/logs/*_log.out")
        )
        time.sleep(0.05)
    return found
