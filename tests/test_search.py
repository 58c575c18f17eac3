"""A search without a server: its space, its rungs, its journal; and agents that are killed."""

import argparse
import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import ROOT, assert_identical, curves
from test_sweep_agents import finished
from wandb_server import WandbServer

from dist_resnet import worker
from dist_resnet.prepare import betons, shapes
from dist_resnet.reports import search as results
from dist_resnet.reports.search import Report, Trial
from dist_resnet.runtime.signals import StopSignal
from dist_resnet.tracking.tracker import read_metrics
from launch.commands import sweep as sweep_command
from launch.sweeps import definition, rungs, sampler, search_agent
from launch.sweeps.heartbeat import Heartbeat
from launch.sweeps.rungs import Rungs
from launch.sweeps.search import Search, evaluations_of, of as search_of
from launch.sweeps.study import Study

SPACE = """\
method: random
metric: {name: val/top1, goal: maximize}
run_cap: 12
early_terminate: {type: hyperband, min_iter: 1, eta: 2}
parameters:
  optim: {parameters: {name: {values: [sgd, adam]}}}
  optim.lr: {distribution: log_uniform_values, min: 0.01, max: 1.0}
  optim.nesterov: {values: [true, false]}
  train.label_smoothing: {distribution: q_uniform, min: 0.0, max: 0.2, q: 0.05}
conditions:
  - when: {optim.name: adam}
    parameters: {optim.lr: {distribution: log_uniform_values, min: 1.0e-4, max: 5.0e-3}}
command: ["${env}", dist-resnet, train, tiny.yaml, --data.evaluate_on=val, "${args}"]
"""


@pytest.fixture(scope="session")
def held_out(tmp_path_factory) -> Path:
    """With a split to choose on: 180 images to train on, 60 to choose by."""
    out = tmp_path_factory.mktemp("data") / "held_out"
    betons.prepare(shapes.make(240, 60), out, val=60, seed=0)
    return out


@pytest.fixture
def sweep(config_path, monkeypatch) -> definition.Sweep:
    monkeypatch.chdir(config_path.parent)
    path = config_path.with_name("space.yaml")
    path.write_text(SPACE)
    return definition.load(path)


def searched(sweep, directory, **changes) -> Search:
    """Of a training of 80 steps, evaluated every ten."""
    found = Search(
        sweep=sweep,
        kind="file",
        draws="random",
        rungs=Rungs("asha", (1, 2, 4), 2),
        seed=0,
        cap=12,
        overrides=("--schedule.steps", "80"),
        workers=1,
        samples=600,
        directory=str(directory),
    )
    return dataclasses.replace(found, **changes)


def trial(number: int, values: list[float], state: str = "paused") -> Trial:
    reports = tuple(Report(r, 2**r, 10 * 2**r, v, 0.0, 0, 0.0) for r, v in enumerate(values))
    target = max(0, len(values) - 1)
    return Trial(number, state, {}, reports, target, "", "", False, 0, {}, {}, number)


def test_early_terminate_means_rungs_as_w_and_b_has_them():
    hyperband = {"type": "hyperband"}
    assert rungs.of(hyperband | {"min_iter": 3}, 100).iterations == (3, 9, 27, 81)
    assert rungs.of(hyperband | {"max_iter": 27, "s": 2}, 30).iterations == (3, 9)
    assert rungs.of({"type": "median", "min_iter": 2, "interval": 3}, 9).iterations == (2, 5, 8)
    assert rungs.of(None, 9) == Rungs("none") and Rungs("none").last == 0
    for wrong, part in (
        ({"type": "envelope"}, "must be one of hyperband, median"),
        (hyperband | {"min_iter": 9}, "no rung before the last of 9 evaluations"),
        (hyperband, "needs min_iter, or max_iter and s"),
        (hyperband | {"min_iter": 1, "eta": 1}, "eta = 1: must be a whole number, at least 2"),
        (hyperband | {"min_iter": 1, "strict": False}, "strict"),
        (hyperband | {"min_iter": 1, "s0": 2}, "no such keys"),
    ):
        with pytest.raises(ValueError, match=part):
            rungs.of(wrong, 9)


def test_asha_promotes_the_best_of_a_rung_and_the_highest_rung_first():
    asha = Rungs("asha", (1, 3), 3)
    first = [trial(0, [0.5]), trial(1, [0.7])]
    assert rungs.promotable(first, asha, True) is None  # of two, a third is none
    first.append(trial(2, [0.6], "stopped"))
    assert rungs.promotable(first, asha, True).number == 1
    assert rungs.promotable(first, asha, False).number == 0
    gone = [first[0], trial(1, [0.7], "running"), first[2], *(trial(n, [0.1]) for n in (3, 4, 5))]
    gone[1] = dataclasses.replace(gone[1], target=1)
    assert rungs.promotable(gone, asha, True) is None  # the second best was stopped for good
    above = [trial(n, [0.7 + n / 100, 0.8 - n / 100]) for n in (6, 7, 8)]
    assert rungs.promotable([*gone, *above], asha, True).number == 6


def test_the_median_rule_compares_with_the_others_means_so_far():
    others = [trial(n, [0.1 * n, 0.1 * n + 0.2]) for n in range(1, 6)]  # means 0.2, ..., 0.6
    assert rungs.below_median(trial(9, [0.41, 0.3]), others, True) is None
    assert "median of 5 others is 0.4" in rungs.below_median(trial(9, [0.39, 0.3]), others, True)
    assert rungs.below_median(trial(9, [0.3, 0.41]), others, False) is None
    assert rungs.below_median(trial(9, [0.1, 0.1]), others[1:], True) is None  # too few


def test_the_best_so_far_costs_what_all_trials_together_have_cost():
    def reports(*given):
        return tuple(
            Report(k, 2**k, 9, v, h, round(100 * h), t) for k, (v, h, t) in enumerate(given)
        )

    trials = [
        dataclasses.replace(trial(0, []), reports=reports((0.5, 1.0, 1.0), (0.7, 3.0, 4.0))),
        dataclasses.replace(trial(1, []), reports=reports((0.6, 1.5, 2.0))),
    ]
    found = results.Search(Path("s"), "file", "val/top1", True, trials)
    assert found.best_so_far() == [(1.0, 0.5, 100), (2.5, 0.6, 250), (4.5, 0.7, 450)]
    assert "2 trials; by rung 2, 1; 4.50 machine hours; best val/top1 0.7000 (trial_000)" in (
        found.words()
    )
    assert dataclasses.replace(found, maximize=False).best_so_far()[-1] == (4.5, 0.5, 450)
    assert found.importance() == {}


def test_draws_keep_to_their_ranges_also_under_conditions(sweep):
    drawn = [sampler.draw(sweep, "random", 3, n, [], True)[0] for n in range(60)]
    assert drawn[7] == sampler.draw(sweep, "random", 3, 7, [], True)[0] != drawn[8]
    by_name = {name: [d for d in drawn if d["optim.name"] == name] for name in ("sgd", "adam")}
    assert all(0.01 <= d["optim.lr"] <= 1 for d in by_name["sgd"])
    assert all(1e-4 <= d["optim.lr"] <= 5e-3 for d in by_name["adam"])
    assert min(map(len, by_name.values())) > 15
    below = sum(d["optim.lr"] < 0.1 for d in by_name["sgd"])  # the median of the log
    assert 0.25 < below / len(by_name["sgd"]) < 0.75
    steps = {round(d["train.label_smoothing"] / 0.05, 6) for d in drawn}
    assert steps == {0, 1, 2, 3, 4}
    good = [
        dataclasses.replace(
            trial(n, [1 - abs(d["train.label_smoothing"] - 0.1)], "paused"),
            values=d,
            params=p,
            distributions=s,
        )
        for n in range(40)
        for d, p, s in [sampler.draw(sweep, "random", 3, n, [], True)]
    ]
    shares = results.Search(Path("s"), "file", "val/top1", True, good).importance()
    assert max(shares, key=lambda name: shares[name]) == "train.label_smoothing"
    learnt = [sampler.draw(sweep, "tpe", 3, 40 + n, good, True)[0] for n in range(20)]
    near = [d for d in learnt if abs(d["train.label_smoothing"] - 0.1) < 0.06]
    assert len(near) > 16  # of twenty; of random draws about twelve would be


def test_what_the_configuration_refuses_is_stopped_with_the_reason_and_takes_no_place(
    sweep, tmp_path
):
    """Nesterov with Adam."""
    search = searched(sweep, tmp_path / "s")
    with Heartbeat(tmp_path / "s", "a") as heartbeat:
        study = Study(search, heartbeat)
        while (found := study.next_trial()) is not None:
            try:
                search.configuration(found.values)
                study.stop(found, "enough")
            except ValueError as error:
                study.stop(found, str(error), refused=True)
    refused = [t for t in study.trials() if t.refused]
    assert refused and len(study.trials()) - len(refused) == 12
    for t in refused:
        assert t.state == "stopped" and "optim.nesterov = True: needs optim.name sgd" in t.reason
        assert t.values["optim.name"] == "adam" and t.values["optim.nesterov"]
    assert {t.reason for t in study.trials() if not t.refused} == {"enough"}


def test_the_median_rule_stops_for_good_and_half_a_line_in_the_journal_costs_nothing(
    sweep, tmp_path
):
    directory = tmp_path / "s"
    search = searched(sweep, directory, rungs=Rungs("median", (1, 2)), cap=20)
    with Heartbeat(directory, "a") as heartbeat:
        study = Study(search, heartbeat)
        while (found := study.next_trial()) is not None:
            while study.is_ours(found):
                k, value = found.target, found.values["train.label_smoothing"] * (1 + found.target)
                found = study.report(found, Report(k, k + 1, k + 1, value, 0.0, 0, time.time()))
        trials = study.trials()
        stopped = [t for t in trials if t.state == "stopped"]
        assert {t.state for t in trials} == {"complete", "stopped"} and 2 < len(stopped) < 15
        assert min(t.number for t in stopped) >= 5 and "median of" in stopped[0].reason
        assert all(len(t.reports) == 3 for t in trials if t.state == "complete")
        with open(directory / results.JOURNAL, "ab") as file:
            file.write(b'{"op_code":4,"work')  # of a node that died
        more = Study(dataclasses.replace(search, cap=21), heartbeat)
        assert more.next_trial().number == 20
    assert results.read(directory).trials[:20] == trials


def paused(directory: str, step: int) -> str:
    return worker.main(directory, StopSignal(step))


@pytest.mark.slow
def test_a_training_that_pauses_at_a_step_ends_as_one_straight_through(
    small_path, workers, tmp_path
):
    """On two ranks, at an evaluation and in between. At the last step it is complete."""
    straight = workers.train(small_path, tmp_path / "straight", size=2)
    directory = tmp_path / "in_parts"
    workers.make(small_path, directory)
    for step in (10, 13):
        assert workers.call(paused, str(directory), step, size=2) == ["paused"] * 2
        assert (directory / "checkpoints/LATEST").read_text() == f"step_{step:08d}.pt\n"
    assert workers.call(paused, str(directory), 30, size=2) == ["completed"] * 2
    assert_identical(straight, directory)
    assert curves(straight) == curves(directory)


def asked(path: Path, *words: object) -> Search:
    parser = argparse.ArgumentParser()
    sweep_command.options(parser)
    given = [path, "--sweep-dir", "s", "--workers-per-node", 1, *words]
    options, overrides = parser.parse_known_args(list(map(str, given)))
    return search_of(definition.load(path), options.sweep_dir, options, overrides)


def test_a_search_is_what_the_file_says_and_mistakes_are_named(sweep, held_out):
    """An epoch has 3 steps: 30 steps are 3 evaluations."""
    path = Path("space.yaml")
    words = ["--data.dir", held_out, "--search"]
    found = asked(path, *words, "file", "--train.evaluate_every", "3 steps")
    assert found.rungs == Rungs("asha", (1, 2, 4, 8), 2) and found.draws == "random"
    assert found.cap == 12 and asked(path, *words, "file", "--count", 3).cap == 3
    assert asked(path, *words, "random").rungs == Rungs("none")
    whole = asked(path, *words, "tpe")
    assert (whole.rungs.last, whole.draws) == (0, "tpe")
    found.fix()
    found.fix()
    with pytest.raises(ValueError, match=r"holds another search .* give another --sweep-dir"):
        asked(path, *words, "random").fix()
    content = yaml.safe_load(SPACE)
    for change, overrides, part in (
        ({}, ["--data.evaluate_on", "test"], "chooses on held-out images: set --data.evaluate_on"),
        ({"metric": {"name": "test/top1", "goal": "maximize"}}, [], "never on test"),
        ({"metric": {"name": "val/loss", "goal": "maximize"}}, [], "must be minimize"),
        ({"run_cap": None}, [], "has no end: give --count N"),
        ({"method": "grid"}, [], "go with method random or bayes|needs `values`"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 4}}, [], "no rung before the last"),
        ({"conditions": [{"when": {"optim.name": "rmsprop"}, "parameters": {}}]}, [], "one of the"),
        ({"conditions": [{"if": 3}]}, [], "write {when"),
    ):
        path.write_text(yaml.safe_dump(content | change))
        with pytest.raises(ValueError, match=part):
            asked(path, *words, "file", *overrides)


def test_the_search_that_comes_along_is_sound(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = definition.load(Path("configs/sweeps/search.yaml"))
    drawn = [sampler.draw(found, "tpe", 0, n, [], True)[0] for n in range(3)]
    search = searched(found, "s", overrides=(), samples=45_000)
    for values in drawn:
        config, plan = search.configuration(values)
        assert evaluations_of(plan) == 8 and config.train.final_split == "test"
    assert rungs.of(found.content["early_terminate"], 8).iterations == (3,)
    assert definition.for_wandb(found, Path("s"), [])["early_terminate"]["type"] == "hyperband"


@pytest.mark.slow
def test_one_file_is_a_grid_a_search_and_a_sweep_on_w_and_bs_server(
    cli, command, small_path, held_out, monkeypatch
):
    content = {
        "method": "grid",
        "metric": {"name": "val/top1", "goal": "maximize"},
        "parameters": {"optim.lr": {"values": [0.05]}, "train.max_steps": {"value": 4}},
        "command": ["dist-resnet", "train", "tiny.yaml", "--data.evaluate_on", "val"]
        + ["--train.evaluate_every", "1 steps", "--data.dir", str(held_out), "${args}"],
    }
    (cli.directory / "one.yaml").write_text(yaml.safe_dump(content))
    words = ["sweep", "one.yaml", "--workers-per-node", 1, "--sweep-dir"]
    code, output = cli(*words, "grid")
    assert code == 0 and len(list(cli.directory.glob("grid/*/summary.json"))) == 1, output
    code, output = command(*words, "grid", "--dry-run")
    assert (
        code == 0 and "  complete\n1 runs; about 0.00 machine hours to go, as the 1 runs" in output
    ), output
    code, output = command(*words, "found", "--search", "asha", "--count", 9, "--dry-run")
    assert "rung 0: after 1 of 4 evaluations; 9 trials" in output, output
    assert "full length: after 4 of 4 evaluations; 1 trials\nabout 4.0 whole" in output, output
    assert not (cli.directory / "found").exists()
    code, output = cli(*words, "found", "--search", "asha", "--count", 1)
    assert code == 0 and "1 trials; by rung 1" in output, output
    assert "paused: saved at step 1" in output and "of fewer than 9 trials none may" in output
    assert "Warning" not in output, output
    assert (cli.directory / "found/compare-search.png").stat().st_size > 20_000
    assert "data:image/png" in (cli.directory / "found/compare.html").read_text()
    for name in ("WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    with WandbServer() as server:
        code, output = cli(*words, "online", "--wandb", **server.environment)
        (run,) = server.runs.values()
        assert code == 0 and run.finished and 0 < run.summary["val/top1"] < 1, output


def work(search: Search, agent: str) -> None:
    """An agent whose trainings take a hundredth of a second. Who is first to have trial 50 or 150
    is killed."""
    with Heartbeat(Path(search.directory), agent, silence_s=10) as heartbeat:
        study, stop = Study(search, heartbeat), StopSignal()
        while found := search_agent._next(study, stop):
            with contextlib.suppress(FileExistsError):
                if found.number in (50, 150):
                    Path(search.directory, f"killed-{found.number}").touch(exist_ok=False)
                    os.kill(os.getpid(), signal.SIGKILL)
            with open(Path(search.directory) / "trained.txt", "a") as file:
                file.write(f"{found.number} {found.target} {agent}\n")
            time.sleep(0.01)
            iteration = (1, 2, 4, 8)[found.target]
            value = -abs(found.values["optim.lr"] - 0.1) + iteration
            study.report(
                found, Report(found.target, iteration, iteration, value, 0.0, 0, time.time())
            )


@pytest.mark.slow
def test_of_sixteen_agents_no_two_take_one_trial_and_what_a_dead_one_left_goes_on(sweep, tmp_path):
    search = searched(sweep, tmp_path / "s", cap=200)
    (tmp_path / "s").mkdir()
    context = multiprocessing.get_context("fork")
    agents = [context.Process(target=work, args=(search, f"a{k}")) for k in range(16)]
    for agent in agents:
        agent.start()
    for agent in agents:
        agent.join()
    assert sorted(a.exitcode for a in agents) == [-9, -9] + [0] * 14
    found = results.read(tmp_path / "s")
    trained = [line.rpartition(" ")[0] for line in (tmp_path / "s/trained.txt").open()]
    reported = [f"{t.number} {r.rung}" for t in found.trials for r in t.reports]
    assert len(trained) == len(set(trained)) and sorted(trained) == sorted(reported)
    assert sum(not t.refused for t in found.trials) == 200
    assert {t.state for t in found.trials} == {"paused", "complete"}
    assert rungs.promotable(found.trials, search.rungs, True) is None
    counts = [sum(t.at(r) is not None for t in found.trials) for r in range(4)]
    assert counts[0] == 200 and all(a // 2 <= b < a for a, b in itertools.pairwise(counts)), counts


def test_a_node_without_betons_ends_its_agents_and_burns_no_trial(sweep, held_out, tmp_path, capfd):
    betons_here = tmp_path / "betons"
    betons_here.symlink_to(held_out)
    search = asked(Path("space.yaml"), "--data.dir", betons_here, "--search", "random")
    betons_here.unlink()
    assert search_agent.side_by_side(search_agent.SearchAgentTask(search), 2) == "failed"
    said = "".join(capfd.readouterr())
    assert "2 of 2 agents ended before the search did (exit codes 1, 1)" in said, said
    assert said.count("ends, and leaves its trial to others: ") == 2 and "no betons there" in said
    trials = results.read(Path(search.directory)).trials
    assert {t.state for t in trials} == {"open"} and len(trials) <= 2
    assert all(t.faults == 0 for t in trials)


def test_a_value_that_is_not_finite_stops_its_trial_and_leaves_the_journal_sound(
    sweep, held_out, tmp_path
):
    path = Path("space.yaml")
    loss = {"metric": {"name": "val/loss", "goal": "minimize"}, "run_cap": 3}
    path.write_text(yaml.safe_dump(yaml.safe_load(SPACE) | loss))
    search = asked(path, "--data.dir", held_out, "--search", "random")
    with Heartbeat(Path(search.directory), "a") as heartbeat:
        study = Study(search, heartbeat)
        for number in range(3):  # each as if it had been trained
            directory = Path(search.directory) / f"trial_{number:03d}"
            (directory / "checkpoints").mkdir(parents=True)
            (directory / "summary.json").write_text("{}")
            value = None if number == 1 else 0.5
            line = json.dumps({"step": 30, "val/loss": value, "hours": 0.1})
            (directory / "metrics.jsonl").write_text(line + "\n")
        assert search_agent.SearchAgentTask(search).work(study, StopSignal()) == "completed"
        states = {t.number: t.state for t in study.trials() if not t.refused}
    assert sorted(states.values()) == ["complete", "complete", "stopped"], states
    (stopped,) = [t for t in study.trials() if t.state == "stopped" and not t.refused]
    assert stopped.reason == "val/loss is not finite at step 30"


TRAINED = """\
method: random
metric: {name: val/top1, goal: maximize}
run_cap: 8
early_terminate: {type: hyperband, min_iter: 2, eta: 4}
parameters:
  optim.lr: {distribution: log_uniform_values, min: 0.02, max: 0.5}
command: ["${env}", dist-resnet, train, tiny.yaml, --data.evaluate_on, val, --schedule.steps, 40,
          --schedule.milestones, "[30]", --train.evaluate_every, 6 steps,
          --train.log_every, 1 steps, --train.checkpoint_every, 3 steps, --data.dir, held_out,
          --train.threads, 1, "${args}"]
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_agents_killed_and_preempted_leave_the_same_search_behind(
    cli, small_path, held_out, slurm_cluster, workers, tmp_path
):
    """Eight trials with two agents; one is preempted in mid-run, then all processes of one are
    killed. The trials that are promoted follow from the results alone; they end with the weights of
    a training straight through, and only what a killed one had not saved is trained again."""
    (cli.directory / "held_out").symlink_to(held_out)
    (cli.directory / "short.yaml").write_text(TRAINED)
    (cli.directory / "here.yaml").write_text("{cpus_per_task: 1, time: 10}")
    environment = {"SLURM_CONF": slurm_cluster.environment["SLURM_CONF"]}
    code, output = cli(
        *("sweep", "short.yaml", "--search", "file", "--cluster", "here.yaml", "--agents", 2),
        *("--workers-per-node", 1, "--sweep-dir", "found"),
        **environment,
    )
    assert code == 0 and "8 trials" in output and "2 agents" in output, output
    job, directory = output.split("job ")[1].split()[0], cli.directory / "found"
    preempted = wait_for(lambda: mid_run(directory), directory)
    slurm_cluster.command("scancel", "--signal=USR2", agent_of(directory, preempted))
    wait_for(lambda: re.search("(preempted|terminated): saved", logs(directory)), directory)
    victim = wait_for(lambda: mid_run(directory, but=preempted), directory)
    saved = kill_agent(directory, victim)
    wait_for(lambda: finished(slurm_cluster, job), directory, 1000)

    found = results.read(directory)
    assert [t.number for t in found.trials] == list(range(8)), logs(directory)
    assert {t.state for t in found.trials} == {"paused", "complete"}
    promoted = {t.number for t in found.trials if t.target == 1}
    assert len(promoted) >= 2 and promoted == promoted_by(found.trials)
    again = {path.name: steps_again(path) for path in sorted(directory.glob("trial_*"))}
    assert all(step > saved for step in again.pop(victim.name)) and not any(again.values()), again
    for number in sorted(promoted)[:2]:
        path = directory / f"trial_{number:03d}"
        beside = tmp_path / f"straight{number}"
        straight = workers.train(path / "config.yaml", beside, "--data.dir", held_out)
        assert_identical(path, straight)
        assert curves(path) == curves(straight)


def promoted_by(trials: list[Trial]) -> set[int]:
    """Which trials a search without harm promotes, where results come in that order."""
    order = sorted((t.at(0).time, t.number, t.at(0)) for t in trials)
    known: list[Trial] = []
    for _, number, report in order:
        known.append(dataclasses.replace(trial(number, []), state="paused", reports=(report,)))
        while up := rungs.promotable(known, Rungs("asha", (2,), 4), True):
            known[known.index(up)] = dataclasses.replace(up, target=1, state="open")
    return {t.number for t in known if t.target == 1}


def mid_run(directory: Path, but: Path | None = None) -> Path | None:
    """A RUN_DIR of a training, other than `but`, with some steps saved and some to go."""
    for path in directory.glob("trial_*/metrics.jsonl"):
        steps = [r["step"] for r in read_metrics(path.parent) if "train/loss" in r]
        begun = (path.parent / "checkpoints/LATEST").exists() and path.parent != but
        if begun and steps and (4 <= steps[-1] < 10 or 14 <= steps[-1] < 36):
            return path.parent
    return None


def agent_of(directory: Path, run_dir: Path) -> str:
    return next(t.agent for t in results.read(directory).trials if t.name == run_dir.name)


def kill_agent(directory: Path, run_dir: Path) -> int:
    """Everything that the job of this trial's agent runs, at once, as the kernel or a node might;
    returns the step that it has saved."""
    name = agent_of(directory, run_dir).rpartition("_")[2]
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        is_task = words[-3:-1] == ["-m", "submitit.core._submit"] and "python" in words[0]
        if is_task and str(directory / "logs") in words[-1]:
            with contextlib.suppress(psutil.Error):
                if process.environ().get("SLURM_ARRAY_TASK_ID") == name:
                    for victim in [*process.children(recursive=True), process]:
                        victim.kill()
    latest = (run_dir / "checkpoints/LATEST").read_text()
    return int(latest.strip().removeprefix("step_").removesuffix(".pt"))


def steps_again(run_dir: Path) -> list[int]:
    """The steps that were trained more than once, as the workers' logs have them."""
    text = "".join(path.read_text() for path in run_dir.glob("logs/*/*_log.out"))
    counts = Counter(int(step) for step in re.findall(r"^step +(\d+)/\d+  train", text, re.M))
    return [step for step, count in counts.items() if count > 1]


def logs(directory: Path) -> str:
    return "\n".join(path.read_text() for path in directory.glob("logs/*_log.out"))


def wait_for(condition, directory, seconds=240):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, logs(directory)
        time.sleep(0.05)
    return found
