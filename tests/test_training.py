"""Trainings as a user runs them: two workers under submitit, killed and preempted, and
bit-identical in the end."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from conftest import CONFIG, TEST, Cli, assert_identical, final_weights

from dist_resnet.prepare import betons
from dist_resnet.prepare.encoding import Samples
from dist_resnet.tracking.tracker import read_metrics

FIGURES = ("train/loss", "train/top1", "train/top5", "lr", "test/loss", "test/top1", "test/top5")


def curves(run_dir):
    """Every figure that does not depend on time, by step."""
    return [(r["step"], {k: r[k] for k in FIGURES if k in r}) for r in read_metrics(run_dir)]


@pytest.fixture(scope="module")
def straight(tmp_path_factory, shapes_dir):
    """An uninterrupted run of 30 steps by two workers."""
    directory = tmp_path_factory.mktemp("straight")
    (directory / "tiny.yaml").write_text(CONFIG.replace("DATA", str(shapes_dir)))
    code, output = Cli(directory)("train", "tiny.yaml", "--workers-per-node", 2, "--run-dir", "run")
    assert code == 0, output
    return directory / "run", output


def wait_for_step(run_dir, step, process, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if any(r["step"] >= step for r in read_metrics(run_dir)):
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached")


def workers_of(process):
    return [
        p
        for p in psutil.Process(process.pid).children(recursive=True)
        if "submitit.core._submit" in " ".join(p.cmdline()) and p.status() != psutil.STATUS_ZOMBIE
    ]


def test_the_run_directory_has_all_that_was_promised(straight):
    run_dir, output = straight
    assert (
        "global batch   48 = 2 workers x 24; k = 1" in output and "curves: run/curves.png" in output
    )
    summary = json.loads((run_dir / "summary.json").read_text())
    assert {k: summary[k] for k in ("dataset", "world_size", "steps", "samples", "device")} == {
        "dataset": "shapes",
        "world_size": 2,
        "steps": 30,
        "samples": 30 * 48,
        "device": "cpu",
    }
    assert summary["parameters"] == sum(
        t.numel()
        for k, t in final_weights(run_dir).items()
        if "running" not in k and "num_batches" not in k and "momentum" not in k
    )
    assert set(summary["seconds_to_top1"]) == {"50", "60", "70", "80", "90", "91", "92", "93", "94"}
    assert (
        0 <= summary["test_top1"] <= summary["test_top5"] <= 1
        and summary["test_top1"] <= summary["best_test_top1"]
    )
    assert (
        set(summary["seconds"]) == {"start_up", "training", "evaluation", "saving"}
        and min(summary["seconds"].values()) > 0
    )
    records = read_metrics(run_dir)
    assert [r["step"] for r in records if "lr" in r] == list(range(2, 31, 2))
    assert [r["step"] for r in records if "test/top1" in r] == [10, 20, 30]
    assert records[-1]["test/top1"] == summary["test_top1"]
    assert [r["lr"] for r in records if "lr" in r and r["step"] in (20, 22)] == pytest.approx(
        [0.05, 0.005]
    )
    assert (run_dir / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_finished_run_is_not_run_again(straight):
    run_dir, _ = straight
    before = (run_dir / "summary.json").stat().st_mtime_ns
    code, output = Cli(run_dir.parent)(
        "train", "tiny.yaml", "--workers-per-node", 2, "--run-dir", "run", timeout=30
    )
    assert (
        code == 0
        and "is complete" in output
        and (run_dir / "summary.json").stat().st_mtime_ns == before
    )


@pytest.mark.parametrize("victim", ["worker 1", "launcher"])
def test_killed_by_sigkill_the_same_command_ends_bit_identical(straight, cli, config_path, victim):
    command = (
        "train",
        "tiny.yaml",
        "--workers-per-node",
        2,
    )  # its RUN_DIR follows from the configuration
    process = cli.start(*command)
    (run_dir,) = wait_for_run_dir(cli.directory)
    wait_for_step(run_dir, 6 if victim == "launcher" else 14, process)
    workers = sorted(workers_of(process), key=lambda p: int(p.environ()["SUBMITIT_LOCAL_GLOBALID"]))
    assert len(workers) == 2
    if victim == "launcher":
        process.kill()  # its workers must notice
        process.communicate()
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert not alive
    else:
        workers[int(victim[-1])].kill()
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 1
        assert (
            f"the worker of rank {victim[-1]} ended without a word" in output and "log: " in output
        ), output
        assert not any(w.is_running() for w in workers)
    assert not (run_dir / "summary.json").exists()
    code, output = cli(*command)
    assert code == 0 and "resuming at step" in output, output
    assert_identical(straight[0], run_dir)
    assert curves(straight[0]) == curves(run_dir)


def wait_for_run_dir(directory):
    deadline = time.monotonic() + 60
    while not (found := list((directory / "runs").glob("tiny-*"))) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def test_preempted_by_submitits_signal_it_requeues_and_ends_bit_identical(
    straight, cli, config_path
):
    process = cli.start(
        "train",
        "tiny.yaml",
        "--workers-per-node",
        2,
        "--run-dir",
        "run",
        "--tracking.wandb",
        "offline",
    )
    run_dir = cli.directory / "run"
    wait_for_step(run_dir, 8, process)
    first = workers_of(process)
    for worker in first:
        worker.send_signal(signal.SIGUSR2)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    assert "preempted: saved at step" in output and "resuming at step" in output
    assert_identical(straight[0], run_dir)
    assert curves(straight[0]) == curves(run_dir)
    ids = {
        p.name.split("-")[-1].removesuffix(".wandb")
        for p in (run_dir / "wandb").glob("offline-run-*/run-*.wandb")
    }
    assert len(ids) == 1  # two fragments of one W&B run


def test_a_preemption_while_python_is_starting_is_not_lost(straight, cli, config_path):
    process = cli.start("train", "tiny.yaml", "--workers-per-node", 2, "--run-dir", "run")
    while len(workers_of(process)) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    for worker in workers_of(process):  # torch is being imported
        worker.send_signal(signal.SIGUSR2)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0 and "preempted: saved at step 1;" in output, output
    assert_identical(straight[0], cli.directory / "run")


def test_ctrl_c_saves_and_leaves(straight, cli, config_path):
    process = cli.start("train", "tiny.yaml", "--workers-per-node", 2, "--run-dir", "run")
    wait_for_step(cli.directory / "run", 6, process)
    workers = workers_of(process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "terminated: saved at step" in output, output
    assert not any(w.is_running() for w in workers)
    code, output = cli("train", "tiny.yaml", "--workers-per-node", 2, "--run-dir", "run")
    assert code == 0, output
    assert_identical(straight[0], cli.directory / "run")


def test_a_full_disk_costs_a_checkpoint_but_not_the_training(straight, cli, config_path):
    """The kernel refuses rank 0 every file of more than 20,000 bytes for a while, as a full disk
    would."""
    process = cli.start("train", "tiny.yaml", "--workers-per-node", 2, "--run-dir", "run")
    run_dir = cli.directory / "run"
    wait_for_step(run_dir, 6, process)
    (rank0,) = [p for p in workers_of(process) if p.environ()["SUBMITIT_LOCAL_GLOBALID"] == "0"]
    before = rank0.rlimit(psutil.RLIMIT_FSIZE)
    rank0.rlimit(psutil.RLIMIT_FSIZE, (20_000, before[1]))
    log = next(run_dir.glob("logs/*/*_0_log.out"))
    while "could not be written" not in log.read_text():
        assert process.poll() is None
        time.sleep(0.01)
    pointed = run_dir / "checkpoints" / (run_dir / "checkpoints/LATEST").read_text().strip()
    digest, _, name = pointed.with_name(pointed.name + ".sha256").read_text().split(" ")
    assert (
        name.strip() == pointed.name and hashlib.sha256(pointed.read_bytes()).hexdigest() == digest
    )
    rank0.rlimit(psutil.RLIMIT_FSIZE, before)
    output, _ = process.communicate(timeout=180)
    assert (
        process.returncode == 0 and "File too large" in output and "training goes on" in output
    ), output
    assert_identical(straight[0], run_dir)
    assert curves(straight[0]) == curves(run_dir) and not list(
        run_dir.glob("checkpoints/*.partial")
    )


def without_last_checkpoint(run_dir, copy, damage):
    """A copy of a finished run that looks as if it had been killed at its end."""
    shutil.copytree(run_dir, copy, ignore=shutil.ignore_patterns("summary.json", "lock"))
    damage(copy / "checkpoints" / (copy / "checkpoints/LATEST").read_text().strip())


def test_a_damaged_latest_checkpoint_is_passed_over(straight, cli, config_path):
    run_dir = cli.directory / "run"
    without_last_checkpoint(
        straight[0], run_dir, lambda path: path.write_bytes(path.read_bytes()[:-100])
    )
    code, output = cli("train", "tiny.yaml", "--workers-per-node", 2, "--run-dir", "run")
    assert (
        code == 0 and "step_00000030.pt is damaged" in output and "resuming at step 28" in output
    ), output
    assert_identical(straight[0], run_dir)
    assert curves(straight[0]) == curves(run_dir)


def test_evaluation_is_exact_for_any_number_of_workers(straight, cli, config_path):
    """230 images over 1, 2 and 3 workers: the same answers, each image counted once."""
    run_dir, _ = straight
    code, output = cli("evaluate", run_dir)
    expected = [r for r in read_metrics(run_dir) if "test/top1" in r][-1]
    assert code == 0 and f"of {TEST} samples" in output, output
    assert f"loss {expected['test/loss']:.4f}, top-1 {100 * expected['test/top1']:.2f} %" in output
    results = evaluate_with(3, run_dir, cli)
    assert results["samples"] == TEST
    assert results["top1"] * TEST == pytest.approx(round(expected["test/top1"] * TEST), abs=1e-9)
    assert results["loss"] == pytest.approx(
        expected["test/loss"], rel=2e-3
    )  # bf16, batches of other sizes


def evaluate_with(world_size, run_dir, cli):
    code = f"""
import json, os
from dist_resnet import worker
means = worker.evaluate({str(run_dir)!r}, "LATEST")
if os.environ["RANK"] == "0":
    print("RESULT", json.dumps(vars(means)))
"""
    (cli.directory / "evaluate.py").write_text(code)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            str(world_size),
            "evaluate.py",
        ],
        cwd=cli.directory,
        env=cli.environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.split("RESULT ", 1)[1].splitlines()[0])


def test_a_diverging_run_stops_and_keeps_the_last_good_checkpoint(cli, config_path):
    code, output = cli(
        "train",
        "tiny.yaml",
        "--workers-per-node",
        2,
        "--run-dir",
        "run",
        "--optim.lr",
        "1e30",
        "--train.precision",
        "fp32",
        "--schedule.warmup",
        "constant",
        "--schedule.warmup_length",
        "10 steps",
    )
    assert code == 1, output
    assert (
        "not finite" in output and "learning rate 1e+30" in output and "lower --optim.lr" in output
    )
    weights = final_weights(cli.directory / "run")
    assert all(t.isfinite().all() for t in weights.values())
    assert (cli.directory / "run/checkpoints/LATEST").read_text().strip() == "step_00000010.pt"
    assert "Traceback" not in output.split("dist-resnet train: error")[1]


def test_three_workers_in_fp16_resume_bit_identical(cli, config_path):
    """The gradient scaler's state is kept, and three summands are added in the same order as
    before."""
    settings = (
        "--train.precision",
        "fp16",
        "--train.static_graph",
        "true",
        "--tracking.grad_norm",
        "true",
        "--train.max_steps",
        12,
        "--workers-per-node",
        3,
    )
    assert cli("train", "tiny.yaml", "--run-dir", "a", *settings)[0] == 0
    assert all(
        0.1 < r["grad_norm"] < 30 for r in read_metrics(cli.directory / "a") if "lr" in r
    )  # not divided by the scale of 65,536
    without_last_checkpoint(cli.directory / "a", cli.directory / "b", lambda path: path.unlink())
    code, output = cli("train", "tiny.yaml", "--run-dir", "b", *settings)
    assert code == 0 and "resuming at step 10" in output, output
    assert_identical(cli.directory / "a", cli.directory / "b")


def test_another_number_of_workers_keeps_the_global_batch_or_is_refused(straight, cli, config_path):
    """With batch.global the run goes on; with batch.per_worker the batch would change, and with it
    the recipe."""
    without_last_checkpoint(straight[0], cli.directory / "run", lambda path: path.unlink())
    code, output = cli("train", "tiny.yaml", "--workers-per-node", 1, "--run-dir", "run")
    assert code == 0 and "resuming at step 28 (world size 2 before)" in output, output
    settings = (
        "--batch.global",
        "null",
        "--batch.per_worker",
        24,
        "--train.max_steps",
        4,
        "--run-dir",
        "grown",
    )
    assert cli("train", "tiny.yaml", "--workers-per-node", 1, *settings)[0] == 0
    (cli.directory / "grown/summary.json").unlink()
    code, output = cli("train", "tiny.yaml", "--workers-per-node", 2, *settings)
    assert code == 1 and "global batch of 24 (1 workers), and 2 workers make 48" in output, output


def test_compiled_and_recomputing_steps_agree_with_eager_ones(cli, config_path):
    """Over 50 steps. Recomputed activations are the same bits, and BN's running statistics move
    once a step."""
    settings = (
        "--workers-per-node",
        1,
        "--train.precision",
        "fp32",
        "--optim.lr",
        0.01,
        "--schedule.steps",
        50,
        "--train.evaluate_every",
        "50 steps",
        "--train.checkpoint_every",
        "50 steps",
        "--train.log_every",
        "1 step",
    )
    for name, extra in {
        "eager": (),
        "recomputing": ("--train.activation_checkpointing", "true"),
        "compiled": ("--train.compile", "default"),
    }.items():
        code, output = cli("train", "tiny.yaml", *settings, *extra, "--run-dir", name)
        assert code == 0, output
    losses = {
        name: [r["train/loss"] for r in read_metrics(cli.directory / name) if "lr" in r]
        for name in ("eager", "compiled")
    }
    assert len(losses["eager"]) == 50 and losses["compiled"] == pytest.approx(
        losses["eager"], rel=2e-3
    )
    assert_identical(cli.directory / "eager", cli.directory / "recomputing")
    left, right = (
        torch.cat([t.flatten().float() for t in final_weights(cli.directory / name).values()])
        for name in ("eager", "compiled")
    )
    assert (left - right).norm() < 0.02 * left.norm()


def test_two_trainings_cannot_share_a_run_dir(cli, config_path):
    long = (
        "train",
        "tiny.yaml",
        "--workers-per-node",
        1,
        "--run-dir",
        "run",
        "--schedule.steps",
        100_000,
    )
    process = cli.start(*long)
    wait_for_step(cli.directory / "run", 2, process)
    code, output = cli(*long)
    assert code == 1 and "is in use by another training" in output, output
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)


def test_learns(cli, config_path):
    """Four colours in noise are told apart, on images it has not seen, after 40 steps."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(480) % 4)
    colours = np.array([[160, 100, 100], [100, 160, 100], [100, 100, 160], [120, 120, 120]])
    images = np.clip(
        colours[labels][:, None, None] + rng.normal(0, 60, (480, 32, 32, 3)), 0, 255
    ).astype(np.uint8)
    train = Samples(labels[:240], images[:240].__getitem__)
    test = Samples(labels[240:], images[240:].__getitem__)
    betons.prepare(
        betons.Dataset("colours", list("rgbw"), train, test, "rng"), cli.directory / "colours", 0, 0
    )
    code, output = cli(
        "train",
        "tiny.yaml",
        "--workers-per-node",
        2,
        "--run-dir",
        "run",
        "--data.dir",
        "colours",
        "--data.dataset",
        "colours",
        "--schedule.steps",
        40,
        "--schedule.milestones",
        "[30]",
        "--train.evaluate_every",
        "40 steps",
    )
    assert code == 0, output
    summary = json.loads((cli.directory / "run/summary.json").read_text())
    assert (
        summary["test_top1"] > 0.9
        and summary["test_top5"] == 1
        and summary["seconds_to_top1"]["90"] > 0
    )
