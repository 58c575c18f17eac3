"""starts.jsonl: what a start leaves, whoever ends it; the code that it runs."""

import os
import subprocess
import sys

import pytest

from dist_resnet.tracking import starts
from launch.executors import pinned


@pytest.fixture
def job(monkeypatch):
    """As in the second start of job 7."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setenv("SLURM_JOB_START_TIME", "1000")


def begun(run_dir, step):
    start = starts.Start(run_dir, writes=True)
    start.begin(["n2", "n1", "n2"], 3, "cpu", step, "0123", {"train.max_steps": (20, 40)})
    return start


def test_what_is_not_installed_has_no_version(tmp_path, monkeypatch):
    """As where a package is found by PYTHONPATH alone."""
    monkeypatch.setattr(starts, "PACKAGES", ("torch", "no-such-distribution"))
    begun(tmp_path, 0)
    (record,) = starts.read(tmp_path)
    assert record["versions"]["torch"] and record["versions"]["no-such-distribution"] is None


def test_lines_of_a_start_are_one_record_and_later_ones_win(tmp_path, job):
    begun(tmp_path, 0).end("preempted", 12)
    with open(tmp_path / starts.FILE, "a") as file:
        file.write('{"start": 1, "beg')  # cut off when its writer died
    begun(tmp_path, 12).fail(RuntimeError("Connection closed by peer\nand more"), 14)
    starts.settle(tmp_path, "the worker of rank 1 on n2 ended without a word")
    first, second = starts.read(tmp_path)
    assert (first["outcome"], first["from_step"], first["step"]) == ("preempted", 0, 12)
    assert (second["start"], second["from_step"], second["step"]) == (1, 12, 14)
    assert second["outcome"] == "failed: the worker of rank 1 on n2 ended without a word"
    assert (second["job"], second["restart"], second["nodes"]) == ("7", 1, ["n1", "n2"])
    assert second["betons"] == "0123" and second["changed"] == {"train.max_steps": [20, 40]}
    assert second["began"] < second["ended"] and second["versions"]["torch"] and second["commit"]
    assert len((tmp_path / starts.FILE).read_text().splitlines()) == 6


def test_a_start_that_failed_before_it_began_has_a_record(tmp_path, job):
    starts.settle(tmp_path, "no betons")
    (record,) = starts.read(tmp_path)
    assert (record["start"], record["began"], record["outcome"]) == (0, 1000, "failed: no betons")


def test_a_file_that_cannot_be_written_costs_no_training(tmp_path, capsys):
    (tmp_path / starts.FILE).mkdir()
    starts.Start(tmp_path, writes=True).end("completed", 3)
    assert "could not be written" in capsys.readouterr().out


def test_the_commit_is_known_without_git(tmp_path, monkeypatch):
    (tmp_path / ".git/refs/heads").mkdir(parents=True)
    (tmp_path / ".git/HEAD").write_text("ref: refs/heads/main\n")
    (tmp_path / ".git/refs/heads/main").write_text("c0ffee\n")
    monkeypatch.setattr(starts, "SOURCE", tmp_path)
    monkeypatch.setenv("PATH", "/")
    assert starts.commit() == "c0ffee?"


def test_code_is_copied_once_and_a_changed_checkout_is_told(tmp_path, capsys):
    code = pinned.pin(tmp_path)
    assert code == tmp_path / "code" and (code / starts.COMMIT).read_text().strip()
    copied = code / "dist_resnet/worker.py"
    assert not copied.stat().st_mode & 0o222 and capsys.readouterr().err == ""
    copied.chmod(0o644)
    copied.write_text("# of another commit\n")
    assert pinned.pin(tmp_path) == code and copied.read_text() == "# of another commit\n"
    told = capsys.readouterr().err
    assert "is what runs" in told and "--code live" in told
    assert [path.name for path in tmp_path.iterdir()] == ["code"]


def test_a_copy_of_the_code_has_what_numba_has_compiled(tmp_path):
    script = """if True:
    import numpy
    from dist_resnet.models import fused_kernels
    fused_kernels.add(*[numpy.zeros(64, numpy.uint16)] * 2, 64, numpy.zeros(64, numpy.uint16), 1)
    print(sum(fused_kernels.add.stats.cache_hits.values()))
    """

    def hits(source):
        where = {**os.environ, "PYTHONPATH": str(source)}
        call = [sys.executable, "-c", script]
        done = subprocess.run(call, env=where, cwd=source, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    hits(starts.SOURCE)
    assert hits(pinned.pin(tmp_path)) == 1
