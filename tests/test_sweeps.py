"""A sweep without a server, and the same file with one: the real wandb client and its agents, as a
job array on a real SLURM."""

import csv
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import ROOT
from wandb_server import WandbServer

from dist_resnet.tracking.tracker import read_metrics
from launch.sweeps import definition

SWEEP = """\
method: grid
metric: {name: test/top1, goal: maximize}
parameters:
  optim: {parameters: {lr: {values: [0.05, 0.01]}}}
  train.seed: {values: [0, 1]}
  train.max_steps: {value: 30}
command: ["${env}", dist-resnet, train, tiny.yaml, --train.checkpoint_every, 2 steps,
          --tracking.artifact, "true", --tracking.top_losses, 4, "${args}"]
"""
CHOSEN = {(0.05, 0), (0.05, 1), (0.01, 0), (0.01, 1)}


@pytest.fixture
def sweep_path(config_path):
    path = config_path.with_name("four.yaml")
    path.write_text(SWEEP)
    return path


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
@pytest.mark.xdist_group("slurm")
def test_a_sweep_with_and_without_a_server_gives_the_same_table(
    cli, sweep_path, slurm_cluster, monkeypatch
):
    """With one: two agents as a job array; one is preempted in mid-run, then all processes of one
    are killed; their jobs are requeued, and the runs they were at go on."""
    code, output = cli(
        "sweep",
        "four.yaml",
        "--workers-per-node",
        1,
        "--sweep-dir",
        "offline",
        "--tracking.wandb",
        "disabled",
        OMP_NUM_THREADS="1",
    )  # as on the cluster, or sums are rounded otherwise
    assert (
        code == 0 and "4 runs in offline, 4 to train" in output and "mean over seeds" in output
    ), output
    without = table(cli, "offline")
    assert set(without) == CHOSEN and all(
        row[-1] == "True" and row[0] == "30" for row in without.values()
    )
    assert (cli.directory / "offline/compare.png").stat().st_size > 20_000 and "optim.lr" in (
        cli.directory / "offline/compare.html"
    ).read_text()
    (unfinished,) = (cli.directory / "offline").glob("optim.lr=0.01,train.seed=1-*")
    (unfinished / "summary.json").unlink()
    code, output = cli(
        "sweep",
        "four.yaml",
        "--workers-per-node",
        1,
        "--sweep-dir",
        "offline",
        "--tracking.wandb",
        "disabled",
        OMP_NUM_THREADS="1",
    )
    assert (
        code == 0 and "4 runs in offline, 1 to train" in output and output.count("== offline/") == 1
    ), output

    for name in ("WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    (cli.directory / "here.yaml").write_text("{cpus_per_task: 1, time: 10}")
    cluster = slurm_cluster
    with WandbServer(dead_after=1000) as server:
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


@pytest.mark.slow
def test_a_run_that_fails_does_not_keep_the_others_from_being_trained(cli, sweep_path):
    content = yaml.safe_load(SWEEP) | {
        "parameters": {
            "optim.lr": {"values": [1e30, 0.05]},
            "train.max_steps": {"value": 4},
            "train.precision": {"value": "fp32"},
        }
    }
    sweep_path.write_text(yaml.safe_dump(content))
    code, output = cli(
        "sweep",
        "four.yaml",
        "--workers-per-node",
        1,
        "--sweep-dir",
        "some",
        "--tracking.wandb",
        "disabled",
    )
    assert (
        code == 1
        and "this run failed: " in output
        and "not finite" in output
        and "1 of 2 runs failed: some/optim.lr=1e+30" in output
    ), output
    assert (
        len(list(cli.directory.glob("some/optim.lr=0.05*/summary.json")))
        == len(list(cli.directory.glob("some/*/summary.json")))
        == 1
    )
    code, output = cli("sweep", "four.yaml", "--agents", 2)
    assert code == 1 and "--agents is not read without --wandb" in output, output


@pytest.mark.slow
def test_the_server_ends_an_unpromising_run_early(cli, sweep_path):
    """As hyperband does. What there is then has arrived: history, gradient norms; the run is not
    taken up again."""
    one = yaml.safe_load(SWEEP) | {
        "parameters": {"optim.lr": {"value": 0.05}, "schedule.steps": {"value": 100_000}}
    }
    sweep_path.write_text(yaml.safe_dump(one))
    with WandbServer(dead_after=1000) as server:
        server.stop_when = lambda run: len(run.history) > 3
        code, output = cli(
            "sweep",
            "four.yaml",
            "--wandb",
            "--workers-per-node",
            1,
            "--sweep-dir",
            "online",
            "--tracking.grad_norm",
            "true",
            **server.environment,
            HOME=str(cli.directory),
        )
        assert code == 0, output
        (run,) = server.runs.values()
        assert (
            run.finished and 3 < len(run.history) < 1000 and "terminated: saved at step" in output
        ), output
        assert all(row["grad_norm"] > 0 for row in run.history if "train/loss" in row)
    assert not list(cli.directory.glob("online/*/agent")) and not list(
        cli.directory.glob("online/*/summary.json")
    )


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
        is_task = words[-3:-1] == ["-m", "submitit.core._submit"]
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


def test_random_draws_are_w_and_bs_and_the_same_for_a_seed(sweep_path, monkeypatch):
    monkeypatch.chdir(sweep_path.parent)
    content = yaml.safe_load(SWEEP) | {
        "method": "random",
        "run_cap": 200,
        "parameters": {
            "optim.lr": {"distribution": "log_uniform_values", "min": 0.001, "max": 1.0},
            "optim.nesterov": {"values": [True, False]},
            "train.seed": {"min": 3, "max": 7},
            "train.label_smoothing": {"distribution": "q_uniform", "min": 0, "max": 0.2, "q": 0.1},
        },
    }
    sweep_path.write_text(yaml.safe_dump(content))
    sweep = definition.load(sweep_path)
    points = definition.points(sweep, None, seed=1)
    assert len(points) == 200 and points == definition.points(
        sweep, 200, seed=1
    ) != definition.points(sweep, 200, seed=2)
    assert 60 < sum(p["optim.lr"] < 0.0316 for p in points) < 140 and all(
        0.001 <= p["optim.lr"] <= 1 for p in points
    )  # median of the log
    assert {p["train.seed"] for p in points} == {3, 4, 5, 6, 7} and {
        round(p["train.label_smoothing"], 6) for p in points
    } == {0, 0.1, 0.2}
    runs = definition.runs(sweep, Path("s"), 5, 1, ["--optim.momentum", "0.5"])
    assert (
        len(runs) == 5
        and {config.optim.momentum for _, config in runs} == {0.5}
        and runs[0][1].tracking.group == "four"
    )
    assert runs[0][1].optim.lr == points[0]["optim.lr"]


@pytest.mark.parametrize(
    "change, part",
    [
        ({"method": "gird"}, "must be one of grid, random, bayes"),
        ({"parametres": {}}, "no such keys"),
        ({"parameters": {"optim.rl": {"values": [1]}}}, "optim.rl.* is no key"),
        ({"parameters": {"optim.lr": {"min": 1, "max": 2}}}, "a grid needs `values`"),
        ({"command": ["python", "x.py"]}, "must name the base configuration"),
        ({"parameters": {"optim.lr": 3}}, "write {values"),
        (
            {
                "method": "random",
                "parameters": {"optim.lr": {"distribution": "beta", "min": 0, "max": 1}},
            },
            "must be one of uniform",
        ),
    ],
)
def test_mistakes_are_named(sweep_path, change, part):
    sweep_path.write_text(yaml.safe_dump(yaml.safe_load(SWEEP) | change))
    with pytest.raises(ValueError, match=part):
        definition.load(sweep_path)


def test_bayes_needs_the_server(sweep_path):
    sweep_path.write_text(SWEEP.replace("grid", "bayes"))
    with pytest.raises(ValueError, match="add --wandb"):
        definition.points(definition.load(sweep_path), 3, 0)


def test_the_sweeps_that_come_along_are_sound(monkeypatch):
    monkeypatch.chdir(ROOT)
    counts = {
        path.stem: len(
            definition.runs(
                definition.load(path), Path("s"), 3 if path.stem == "search" else None, 0, []
            )
        )
        for path in Path("configs/sweeps").glob("*.yaml")
    }
    assert counts == {
        "block_order": 4,
        "optimizer": 4,
        "augmentation": 4,
        "shortcut": 4,
        "depth": 5,
        "width": 3,
        "batch": 36,
        "search": 3,
    }
