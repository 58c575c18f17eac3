"""Trainings as a user runs them: two workers under submitit, killed and preempted, and
bit-identical in the end."""

import hashlib
import json
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from conftest import (
    CONFIG,
    Cli,
    assert_identical,
    curves,
    final_weights,
    wait_for_step,
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


def test_killed_in_every_way_the_same_command_ends_bit_identical(straight, cli, config_path):
    """A worker is killed, then the launcher, then rank 0 in the middle of a checkpoint's file; then
    another training wants the RUN_DIR, and Ctrl-C ends this one; then its last file is damaged."""
    command = ("train", "tiny.yaml", "--workers-per-node", 2)  # its configuration names RUN_DIR
    command += ("--train.checkpoint_every", "2 steps")
    process = cli.start(*command)
    (run_dir,) = wait_for_run_dir(cli.directory)
    wait_for_step(run_dir, 4, process)
    first = workers_of(process)
    assert len(first) == 2
    of_rank(1, first).kill()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "log: " in output, output
    assert "the worker of rank 1 ended without a word" in output, output
    assert not any(w.is_running() for w in first)

    process = cli.start(*command)
    wait_for_step(run_dir, 10, process)
    orphans = workers_of(process)
    process.kill()  # its workers must notice
    process.communicate()
    _, alive = psutil.wait_procs(orphans, timeout=20)
    assert len(orphans) == 2 and not alive

    process = cli.start(*command)
    wait_for_step(run_dir, 14, process)
    half = kill_in_mid_write(of_rank(0, workers_of(process)), run_dir / "checkpoints")
    process.communicate(timeout=120)

    process = cli.start(*command)
    wait_for_step(run_dir, 20, process)
    last = workers_of(process)
    assert not any(path.exists() for path in half)
    for worker in last:
        worker.suspend()
    code, output = cli(*command)
    assert code == 1 and "is in use by another training" in output, output
    for worker in last:
        worker.resume()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "terminated: saved at step" in output, output
    assert not any(w.is_running() for w in last) and not (run_dir / "summary.json").exists()

    latest = run_dir / "checkpoints" / (run_dir / "checkpoints/LATEST").read_text().strip()
    latest.write_bytes(latest.read_bytes()[:-100])
    before = (int(latest.stem.removeprefix("step_")) - 1) // 2 * 2
    code, output = cli(*command)
    assert code == 0 and f"{latest.name} is damaged" in output, output
    assert f"resuming at step {before}" in output, output
    assert_identical(straight[0], run_dir)
    assert curves(straight[0]) == curves(run_dir)


def wait_for_run_dir(directory):
    deadline = time.monotonic() + 60
    while not (found := list((directory / "runs").glob("tiny-*"))) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def of_rank(rank: int, workers: list[psutil.Process]) -> psutil.Process:
    return sorted(workers, key=lambda process: process.pid)[rank]  # forked in this order


def kill_in_mid_write(rank0: psutil.Process, checkpoints: Path) -> list[Path]:
    """Kill it while its thread has begun a file, beside the training; returns what is left."""
    while True:
        rank0.suspend()
        while (status := rank0.status()) != psutil.STATUS_STOPPED:
            assert status != psutil.STATUS_ZOMBIE, "it has ended"
            time.sleep(0.001)
        if begun := [*checkpoints.glob("step_*.partial")]:
            rank0.kill()
            return begun
        rank0.resume()
        time.sleep(0.001)


def test_preempted_and_on_a_full_disk_it_goes_on_by_itself(straight, cli, config_path):
    """submitit's signal comes while Python is starting; then the kernel refuses rank 0 every file
    of more than 20,000 bytes for a while, as a full disk would; then the signal comes again."""
    words = ("--workers-per-node", 2, "--run-dir", "run", "--tracking.wandb", "offline")
    process, run_dir = cli.start("train", "tiny.yaml", *words), cli.directory / "run"
    while len(workers_of(process)) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    preempt(process)  # torch is being imported

    wait_for_step(run_dir, 6, process)
    rank0 = of_rank(0, workers_of(process))
    before = rank0.rlimit(psutil.RLIMIT_FSIZE)
    rank0.rlimit(psutil.RLIMIT_FSIZE, (20_000, before[1]))
    while not any("could not be written" in path.read_text() for path in logs_of_rank_0(run_dir)):
        assert process.poll() is None
        time.sleep(0.01)
    pointed = run_dir / "checkpoints" / (run_dir / "checkpoints/LATEST").read_text().strip()
    digest, _, name = pointed.with_name(pointed.name + ".sha256").read_text().split(" ")
    assert name.strip() == pointed.name
    assert hashlib.sha256(pointed.read_bytes()).hexdigest() == digest
    rank0.rlimit(psutil.RLIMIT_FSIZE, before)
    preempt(process)

    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0 and output.count("resuming at step") == 2, output
    assert "preempted: saved at step 1;" in output and output.count("preempted: saved") == 2, output
    assert "File too large" in output and "training goes on" in output, output
    assert_identical(straight[0], run_dir)
    assert curves(straight[0]) == curves(run_dir)
    assert not list(run_dir.glob("checkpoints/*.partial"))
    fragments = (run_dir / "wandb").glob("offline-run-*/run-*.wandb")
    ids = [path.stem.split("-")[-1] for path in fragments]
    assert len(ids) == 3 and len(set(ids)) == 1  # three fragments of one W&B run


def preempt(process: subprocess.Popen) -> None:
    for worker in workers_of(process):
        worker.send_signal(signal.SIGUSR2)


def logs_of_rank_0(run_dir: Path) -> list[Path]:
    return list(run_dir.glob("logs/*/*_0_log.out"))


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
    assert "the last good checkpoint is kept" in output
    assert "--train.precision" not in output  # it is fp32 already
    weights = final_weights(cli.directory / "run")
    assert all(t.isfinite().all() for t in weights.values())
    assert (cli.directory / "run/checkpoints/LATEST").read_text().strip() == "step_00000010.pt"
    assert "Traceback" not in output.split("dist-resnet train: error")[1]
