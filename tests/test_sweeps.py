"""A sweep without a server, and one that the server ends early."""

import contextlib
import signal
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, workers_of
from test_wandb_online import wait_until
from wandb_server import WandbServer

from dist_resnet import worker
from dist_resnet.config import config_file
from dist_resnet.tracking.tracker import read_metrics
from launch.executors import run_dir
from launch.sweeps import agents, definition

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


@pytest.mark.slow
def test_a_run_that_fails_does_not_keep_the_others_from_being_trained(cli, workers, sweep_path):
    """Of three one is complete, and not trained again; one has only begun."""
    parameters = {
        "optim.lr": {"values": [1e30, 0.05, 0.01]},
        "train.max_steps": {"value": 4},
        "train.precision": {"value": "fp32"},
    }
    sweep_path.write_text(yaml.safe_dump(yaml.safe_load(SWEEP) | {"parameters": parameters}))
    with contextlib.chdir(cli.directory):
        runs = definition.runs(definition.load(sweep_path), Path("some"), None, 0, [])
    paths = [cli.directory / path for path, _ in runs]
    for path, (_, config) in list(zip(paths, runs))[1:]:
        run_dir.create(path, config)
    workers.call(worker.main, str(paths[1]))
    before = (paths[1] / "summary.json").stat().st_mtime_ns

    code, output = cli("sweep", "four.yaml", "--workers-per-node", 1, "--sweep-dir", "some")
    assert "3 runs in some, 2 to train" in output and output.count("== some/") == 2, output
    assert code == 1 and "this run failed: " in output and "not finite" in output, output
    assert "1 of 3 runs failed: some/optim.lr=1e+30" in output, output
    assert (paths[2] / "summary.json").exists()
    assert (paths[1] / "summary.json").stat().st_mtime_ns == before
    assert (cli.directory / "some/compare.png").stat().st_size > 20_000
    assert "optim.lr" in (cli.directory / "some/compare.html").read_text()


def test_agents_are_for_searches(command, sweep_path):
    code, output = command("sweep", "four.yaml", "--agents", 2)
    assert code == 1 and "--agents is not read without --search or --wandb" in output, output


@pytest.mark.slow
def test_the_server_ends_an_unpromising_run_early(cli, sweep_path):
    """As hyperband does. What there is then has arrived: history, gradient norms; the run is not
    taken up again."""
    one = yaml.safe_load(SWEEP) | {
        "parameters": {"optim.lr": {"value": 0.05}, "schedule.steps": {"value": 100_000}}
    }
    sweep_path.write_text(yaml.safe_dump(one))
    with WandbServer() as server:
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


@pytest.mark.slow
def test_the_server_knows_how_a_run_ended_and_gives_a_preempted_one_out_again(cli, sweep_path):
    """One diverges, and has failed; one is preempted, and resumed by its whole configuration."""
    two = yaml.safe_load(SWEEP) | {
        "parameters": {
            "optim.lr": {"values": [1e30, 0.05]},
            "train.precision": {"value": "fp32"},
            "schedule.steps": {"value": 60},
        }
    }
    sweep_path.write_text(yaml.safe_dump(two))
    words = ("four.yaml", "--wandb", "--workers-per-node", 1, "--sweep-dir", "online")
    with WandbServer() as server:
        environment = {**server.environment, "HOME": str(cli.directory)}
        sweep = cli.start("sweep", *words, **environment)

        def second():
            assert sweep.poll() is None, sweep.communicate()[0]
            return next((run for run in server.runs.values() if len(run.history) > 2), None)

        wait_until(second, 120)
        for worker_process in workers_of(sweep):
            worker_process.send_signal(signal.SIGUSR2)  # as SLURM tells every process of a job
        output, _ = sweep.communicate(timeout=120)
        assert sweep.returncode == 0, output
        failed, resumed = server.runs.values()
        assert (failed.state, failed.exit_code, failed.resumed) == ("failed", 1, 0), output
        assert (resumed.state, resumed.exit_code, resumed.resumed) == ("finished", 0, 1), output
        assert len(resumed.agents) == 2 and "--_wandb=" in output, output
        assert "preempted: saved at step" in output and "resuming at step" in output, output
    steps = [record["step"] for record in read_metrics(cli.directory / "online" / resumed.id)]
    assert steps == sorted(steps) and steps[-1] == 60


def test_a_whole_configuration_in_dicts_is_unfolded(config_path, tmp_path):
    config = config_file.load(config_path, ["--optim.lr=0.03", "--train.seed=7"])
    given = [f"--{key}={value}" for key, value in config.to_dict().items()]
    words = ["--_wandb={'cli_version': '0', 't': {'3': [13]}}", *given]
    assert agents.configuration(tmp_path / "none", config_path, words) == config


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
        ({"run_cap": 0}, "run_cap.* = 0: must be a whole number"),
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


@pytest.mark.parametrize("words", [["--train.seed", "0"], ["--train.seed=0"]])
def test_a_key_that_varies_cannot_be_set_beside(sweep_path, monkeypatch, words):
    monkeypatch.chdir(sweep_path.parent)
    sweep = definition.load(sweep_path)
    with pytest.raises(ValueError, match=r"--train.seed = .* is what the sweep varies"):
        definition.runs(sweep, Path("s"), None, 0, words)
    runs = definition.runs(sweep, Path("s"), None, 0, ["--train.max_steps", "7"])
    assert len(runs) == 4 and {config.train.max_steps for _, config in runs} == {7}


def test_bayes_needs_the_server(sweep_path):
    sweep_path.write_text(SWEEP.replace("grid", "bayes"))
    with pytest.raises(ValueError, match="add --search file, or --wandb"):
        definition.points(definition.load(sweep_path), 3, 0)


def test_a_cap_holds_for_grids_and_early_terminate_needs_the_server(sweep_path):
    sweep_path.write_text(SWEEP + "run_cap: 3\n")
    capped = definition.load(sweep_path)
    assert len(definition.points(capped, None, 0)) == len(definition.points(capped, 9, 0)) == 3
    assert len(definition.points(capped, 2, 0)) == 2
    sweep_path.write_text(SWEEP + "early_terminate: {type: hyperband, min_iter: 1}\n")
    with pytest.raises(ValueError, match=r"early_terminate = .*add --search file, or --wandb"):
        definition.points(definition.load(sweep_path), None, 0)


def test_the_sweeps_that_come_along_are_sound(monkeypatch):
    monkeypatch.chdir(ROOT)
    counts = {
        path.stem: len(definition.runs(definition.load(path), Path("s"), None, 0, []))
        for path in Path("configs/sweeps").glob("*.yaml")
        if path.stem != "search"  # see test_search
    }
    assert counts == {
        "block_order": 15,
        "optimizer": 12,
        "augmentation": 12,
        "shortcut": 9,
        "depth": 15,
        "width": 9,
        "batch": 36,
        "fine_tune": 6,
        "plain": 12,
        "regularisation": 18,
    }
