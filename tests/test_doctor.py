"""`dist-resnet doctor` finds faults that are planted, and names the remedy."""

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT, wait_for_step

from dist_resnet.config import config_file
from dist_resnet.diagnosis import doctor, findings, machine, network
from dist_resnet.diagnosis.findings import Report
from dist_resnet.reports.estimate import Link
from dist_resnet.runtime import distributed


def findings_of(directory: Path, size: int = 1) -> dict[str, findings.Finding]:
    return {f.name: f for f in findings.together(directory, range(size), ("versions",))}


@pytest.mark.slow
def test_five_faults_of_one_machine(cli, shapes_dir, tmp_path):
    """A beton with one byte changed, FFCV without a library of its own, no compiler, few open
    files, a network interface that is not there; all in one examination."""
    broken = tmp_path / "ffcv_without_opencv" / "ffcv"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libopencv_core.so.406: not found')")
    data = shutil.copytree(shapes_dir, tmp_path / "data")
    with open(data / "test.beton", "r+b") as file:
        file.seek(5000)
        file.write(b"changed")
    words = ["doctor", "--data.dir", data, "--data.dataset", "shapes", "--workers-per-node", 2]
    words += ["--json"]
    environment = {
        **cli.environment,
        "PYTHONPATH": f"{broken.parent}:{ROOT}",
        "CXX": "/nowhere/g++",
        "GLOO_SOCKET_IFNAME": "nosuch0",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        "COLUMNS": "80",
    }
    ran = subprocess.run(
        [sys.executable, "-m", "launch", *map(str, words)],
        cwd=tmp_path,
        env=environment,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 1, ran.stdout + ran.stderr
    found = findings_of(tmp_path / "runs/doctor", 2)
    said = {
        "betons": ("bad", "test.beton' is corrupted", "prepare shapes"),
        "FFCV reads": ("bad", "libopencv_core.so.406", "make ffcv-wheel"),
        "torch.compile": ("warning", "compiler", "--train.compile none"),
        "CPUs, open files": ("bad", "256 open files", "ulimit -n"),
        "ranks meet": ("bad", "nosuch0", "GLOO_SOCKET_IFNAME"),
    }
    for name, (level, figure, remedy) in said.items():
        one = found[name]
        assert one.level == level and figure in one.figure, one
        assert remedy in one.remedy + one.figure and remedy in ran.stdout, one
    good = [f.name for f in found.values() if f.level == "good"]
    assert {"versions", "device", "folder", "precision", "channels_last"} <= set(good), found
    assert Counter(one["level"] for one in json.loads(ran.stdout))["bad"] == 4


def test_a_folder_that_cannot_be_written_and_a_gpu_that_is_not_there(cli):
    code, output = cli("doctor", "--run-dir", "/proc/doctor")
    assert code == 1 and "give a --run-dir that you may write" in output
    code, output = cli("doctor", "--train.device", "cuda")
    assert code == 1 and "0 usable GPUs" in output and "--train.device cpu" in output


def test_betons_that_are_missing_and_a_full_disk(tmp_path, monkeypatch):
    config = config_file.load(None, ["--data.dir", str(tmp_path / "none")])
    report = Report(tmp_path, 0, "n1")
    report.check("betons", "", machine.whole_betons, config)
    monkeypatch.setattr(machine, "ROOM", 2**60)
    report.check("room", "free some", machine.room, tmp_path)
    found = findings_of(tmp_path)
    assert "dist-resnet prepare" in found["betons"].figure
    assert found["room"].level == "bad" and "MiB free" in found["room"].figure


def test_ranks_that_differ_are_silent_or_died_in_a_check(tmp_path):
    for rank, version in enumerate(["torch 2.14", "torch 2.14", "torch 2.13"]):
        Report(tmp_path, rank, f"n{rank}").check("versions", "", lambda v=version: v)
    with open(findings.path_of(tmp_path, 1), "a") as file:
        file.write(json.dumps({"trying": "FFCV reads"}) + "\n")
    found = findings_of(tmp_path, 4)
    assert "rank 2 on n2: torch 2.13" in found["versions"].figure
    assert "one environment" in found["versions"].remedy
    assert found["FFCV reads"].level == "bad" and "ended during" in found["FFCV reads"].figure
    assert "rank 3" in found["every rank answers"].figure


def together(directory: str, other: str, closed_port: int | None = None) -> None:
    """In a worker of a world of two: rank 1's folder is another one, its clock is wrong, or it
    looks for rank 0 behind a port that is closed."""
    rank = int(os.environ["RANK"])
    config = config_file.load(None, ["--train.device", "cpu"])
    report = Report(Path(directory), rank, f"n{rank}")
    if closed_port:
        doctor.TIMEOUT = 5.0
        if rank == 1:
            os.environ["MASTER_PORT"] = str(closed_port)
        doctor.together(config, Path(directory), report)
        return
    with distributed.connect("cpu", 60) as world:
        own = Path(directory if rank == 0 else other)
        report.check("shared folder", "share it", network.shared_folder, world, own)
        report.check("same folder", "", network.shared_folder, world, Path(directory))
        report.check("clocks", "one NTP server", network.clocks, world, 100.0 * rank)
        report.check("same clocks", "", network.clocks, world)
        report.check("rank to rank", "", network.pairs, world)
        report.check("all-reduce", "", network.all_reduce, world, Path(directory) / "link.json")


@pytest.mark.slow
def test_faults_between_ranks(workers, tmp_path):
    both, other = tmp_path / "both", tmp_path / "other"
    both.mkdir()
    other.mkdir()
    workers.call(together, str(both), str(other), size=2)
    found = findings_of(both, 2)
    assert found["shared folder"].level == "bad", found
    assert "rank 1 wrote" in found["shared folder"].figure and found["shared folder"].remedy
    assert found["clocks"].level == "bad" and found["clocks"].figure.startswith("100")
    for name in ("same folder", "same clocks", "rank to rank", "all-reduce"):
        assert found[name].level == "good", found[name]
    link = Link.read(both / "link.json")
    assert link.bandwidth > 1e6 and 0 < link.latency < 1
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        workers.call(together, str(other), "", closed.getsockname()[1], size=2)
    workers.close()  # torch has counted a group that was not made, and would name the next another
    met = findings_of(other, 2)["ranks meet"]
    assert met.level == "bad" and "GLOO_SOCKET_IFNAME" in met.remedy, met


@pytest.mark.slow
def test_two_nodes_and_what_status_shows_of_runs_there(slurm_cluster, cli, config_path, tmp_path):
    """An examination as a job; then a run that trains, is requeued and is cancelled, and one that
    waits for it."""
    cli.environment |= slurm_cluster.environment | {"PYTHONPATH": str(ROOT), "CXX": "/nowhere"}
    (tmp_path / "here.yaml").write_text("{gpus_per_node: 1, cpus_per_task: 4, time: 10}")
    (tmp_path / "alone.yaml").write_text(
        "{gpus_per_node: 1, cpus_per_task: 4, time: 10, sbatch: {exclusive: true}}"
    )
    there = ("--cluster", "here.yaml", "--nodes", 2, "--train.device", "cpu")
    data = config_file.load(config_path).data.dir
    code, output = cli("doctor", *there, "--data.dir", data)
    assert code == 0 and "nothing to mend, 1 to know" in output, output
    link, named = tmp_path / "runs/doctor/link.json", "--link runs/doctor/link.json"
    assert Link.read(link).bandwidth > 1e6 and named in output, output
    assert "2 workers on 1 host" in output and "--train.compile none" in output

    def states() -> dict[str, dict]:
        found = json.loads(cli("status", "--json")[1])
        return {Path(run["path"]).name: run for run in found}

    def until(name: str, state: str) -> dict:
        deadline = time.monotonic() + 120
        while (seen := states())[name]["state"] != state:
            assert time.monotonic() < deadline, seen
            time.sleep(1)
        return seen[name]

    def submit(name: str, *words: object) -> None:
        alone = ("--cluster", "alone.yaml", "--nodes", 2, "--run-dir", f"runs/{name}")
        words = (*words, "--train.device", "cpu")  # the GPUs here are pretended
        code, output = cli("train", config_path, *alone, *words)
        assert code == 0, output

    long = ("--schedule.steps", 9000, "--schedule.milestones", "[]")
    submit("long", *long)
    submit("later", *long)
    wait_for_step(tmp_path / "runs/long", 4)
    seen = states()
    assert (seen["long"]["state"], seen["long"]["last_step"]) == ("running", 9000)
    assert seen["long"]["hours_left"] > 0 and seen["long"]["starts"] == 1
    assert (seen["later"]["state"], seen["later"]["reason"]) == ("queued", "Resources")
    slurm_cluster.command("scancel", "--signal=USR2", seen["long"]["job"])
    assert until("long", "requeued")["job"] == seen["long"]["job"]
    for name in ("long", "later"):
        slurm_cluster.command("scancel", seen[name]["job"])
    assert until("long", "stopped")["reason"] == "preempted"


@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_every_rank_meets_every_other_in_the_same_round(size):
    rounds = [network._opponents(rank, size) for rank in range(size)]
    for rank, others in enumerate(rounds):
        assert sorted(o for o in others if o is not None) == [r for r in range(size) if r != rank]
        assert all(rounds[o][turn] == rank for turn, o in enumerate(others) if o is not None)


def test_very_many_ranks_meet_some():
    rounds = [network._opponents(rank, 100) for rank in range(100)]
    for rank, others in enumerate(rounds):
        assert len(set(others)) == 7 and rank not in others
        assert all(rounds[o][turn] == rank for turn, o in enumerate(others))
