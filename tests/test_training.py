"""Trainings as a user runs them: two workers under submitit, killed and preempted, and
bit-identical in the end."""

import hashlib
import json
import signal
import time

import psutil
import pytest
from conftest import (
    CONFIG,
    Cli,
    assert_identical,
    curves,
    final_weights,
    wait_for_step,
    without_last_checkpoint,
    workers_of,
)

from dist_resnet.tracking.tracker import read_metrics

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def straight(tmp_path_factory, shapes_dir):
    """An uninterrupted run of 30 steps by two workers."""
    directory = tmp_path_factory.mktemp("straight")
    (directory / "tiny.yaml").write_text(CONFIG.replace("DATA", str(shapes_dir)))
    code, output = Cli(directory)("train", "tiny.yaml", "--workers-per-node", 2, "--run-dir", "run")
    assert code == 0, output
    return directory / "run", output


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


def test_killed_and_interrupted_the_same_command_ends_bit_identical(straight, cli, config_path):
    """A worker is killed, then the launcher; then Ctrl-C; each time the same command goes on."""
    command = ("train", "tiny.yaml", "--workers-per-node", 2)  # its configuration names RUN_DIR
    process = cli.start(*command)
    (run_dir,) = wait_for_run_dir(cli.directory)
    wait_for_step(run_dir, 4, process)
    first = workers_of(process)
    assert len(first) == 2
    (rank1,) = [p for p in first if p.environ()["SUBMITIT_LOCAL_GLOBALID"] == "1"]
    rank1.kill()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "log: " in output, output
    assert "the worker of rank 1 ended without a word" in output, output
    assert not any(w.is_running() for w in first)

    process = cli.start(*command)
    wait_for_step(run_dir, 12, process)
    orphans = workers_of(process)
    process.kill()  # its workers must notice
    process.communicate()
    _, alive = psutil.wait_procs(orphans, timeout=20)
    assert len(orphans) == 2 and not alive

    process = cli.start(*command)
    wait_for_step(run_dir, 20, process)
    last = workers_of(process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "terminated: saved at step" in output, output
    assert not any(w.is_running() for w in last) and not (run_dir / "summary.json").exists()

    code, output = cli(*command)
    assert code == 0 and "resuming at step" in output, output
    assert_identical(straight[0], run_dir)
    assert curves(straight[0]) == curves(run_dir)


def test_killed_while_a_checkpoint_is_being_written_nothing_is_lost(straight, cli, config_path):
    """Its thread has begun a file, beside the training: twice that is rank 0's end."""
    command = ("train", "tiny.yaml", "--workers-per-node", 2, "--run-dir", "run")
    command += ("--train.checkpoint_every", "1 step")
    checkpoints, left = cli.directory / "run/checkpoints", []
    for step in (5, 15):
        process = cli.start(*command)
        wait_for_step(cli.directory / "run", step, process)
        (rank0,) = [p for p in workers_of(process) if p.environ()["SUBMITIT_LOCAL_GLOBALID"] == "0"]
        while not (begun := [*checkpoints.glob("step_*.partial")]):
            assert process.poll() is None
        rank0.kill()
        process.communicate(timeout=120)
        left += [path for path in begun if path.exists()]
    assert left, "killed too late: nothing was half written"
    code, output = cli(*command)
    assert code == 0 and "resuming at step" in output, output
    assert_identical(straight[0], cli.directory / "run")
    assert not any(path.exists() for path in left)


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
