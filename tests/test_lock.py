"""RUN_DIR/lock, also where the file system knows no flock, or keeps it to one node."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import time

import psutil
import pytest

from dist_resnet.runtime import lock
from dist_resnet.runtime.lock import RunLock


@pytest.fixture(params=["flock", "no flock"])
def run_dir(tmp_path, monkeypatch, request):
    def refused(file, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    if request.param == "no flock":
        monkeypatch.setattr(fcntl, "flock", refused)
    return tmp_path


def left_behind(run_dir, **fields):
    """The file of a holder that has not released it."""
    there = json.loads(json.dumps(lock._us())) | fields
    (run_dir / "lock.holder").write_text(json.dumps(there))


def test_one_at_a_time(run_dir):
    first, second = RunLock(run_dir), RunLock(run_dir)
    assert not lock.is_held(run_dir) and first.acquire(0) is None and lock.is_held(run_dir)
    assert second.acquire(0) == f"process {os.getpid()} on {lock.slurm_job.node()}"
    first.release()
    assert not lock.is_held(run_dir) and second.acquire(0) is None
    second.release()


def test_who_is_dead_is_known_at_once_where_that_can_be_known(run_dir, monkeypatch):
    left_behind(run_dir, pid=2**22 + 1)  # no such process here
    assert not lock.is_held(run_dir)
    for of_job in ({}, {"machine": "another", "job": "7", "restart": 0}):
        left_behind(run_dir, created=0.0, **of_job)
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # SLURM has ended the start before
        ours = RunLock(run_dir)
        assert ours.acquire(0) is None
        ours.release()


def test_a_zombie_holds_nothing(run_dir):
    """As where a container's first process reaps none but its own."""
    child = subprocess.Popen(["true"])
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    left_behind(run_dir, pid=child.pid, created=psutil.Process(child.pid).create_time())
    assert not lock.is_held(run_dir)
    child.wait()


def test_a_silent_holder_on_another_machine_is_waited_for_and_then_replaced(run_dir, monkeypatch):
    monkeypatch.setattr(lock, "SILENT_SECONDS", 1.0)
    left_behind(run_dir, machine="another", node="n9", job="12")
    ours, began = RunLock(run_dir), time.monotonic()
    assert ours.acquire(0) == f"process {os.getpid()} on n9, job 12"
    assert ours.acquire(5) is None and 0.5 < time.monotonic() - began < 4
    ours.release()


def test_a_holder_that_was_replaced_writes_nothing_more(tmp_path):
    code = """if True:
        import pathlib, sys, time
        from dist_resnet.runtime.lock import RunLock
        assert RunLock(pathlib.Path(sys.argv[1])).acquire(0) is None
        print("held", flush=True)
        time.sleep(60)"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    left_behind(tmp_path, machine="another", node="n9")
    _, told = process.communicate(timeout=30)
    assert process.returncode == 1 and "taken over by process" in told and "on n9" in told
