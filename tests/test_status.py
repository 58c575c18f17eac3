"""`dist-resnet status`: where runs stand, while they write and afterwards. With SLURM's queue: in
test_doctor."""

import json
import os
import pickle

import pytest
from submitit.helpers import DelayedSubmission

from dist_resnet.reports import status
from dist_resnet.reports.status import Job
from dist_resnet.tracking import starts
from dist_resnet.tracking.time_left import TimeLeft, duration
from dist_resnet.tracking.tracker import read_metrics
from launch.inspection import status as command_status
from launch.jobs.task import WorkerTask


def test_running_stopped_complete(workers, small_path, tmp_path, command):
    directory, seen = tmp_path / "runs" / "sweep" / "one", []

    def reached():
        while True:
            found = status.read(directory, None, False)
            if found.step and found.step >= 12:
                seen.append(found)
                return

    workers.train_until(small_path, directory, reached, "--schedule.steps", 2000, size=2)
    (running,) = seen
    assert (running.state, running.last_step, running.evaluated_on) == ("running", 2000, "test")
    assert running.hours_left > 0 and running.images_per_second > 0 and 0 <= running.top1 <= 1
    workers.train(small_path, tmp_path / "runs" / "two", "--train.max_steps", 6)
    assert "left" in workers.output

    code, output = command("status", "runs", "--json")
    stopped, complete = json.loads(output)
    assert (code, stopped["state"], complete["state"]) == (0, "stopped", "complete")
    assert stopped["path"] == "runs/sweep/one" and complete["top1"] is not None
    last = read_metrics(directory)[-1]["step"]
    assert abs(stopped["step"] - last) <= 2 and complete["step"] == complete["last_step"] == 6
    code, output = command("status", "runs/two")
    assert code == 0 and "1 complete" in output and "6/6" in output
    assert command("status", "nowhere")[0] == 1


def test_the_end_of_a_long_file_is_enough_and_a_torn_line_is_passed_over(tmp_path):
    train = {"lr": 0.1, "images_per_second": 5.0, "last_step": 9000, "hours_left": 2.5}
    lines = [json.dumps({"step": step, **train}) for step in range(1, 5000)]
    lines.insert(-10, json.dumps({"step": 4989, "val/top1": 0.25}))
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 50')
    assert (tmp_path / "metrics.jsonl").stat().st_size > 4 * status.TAIL
    found = status.read(tmp_path, status.Job("7_3", "r", "RUNNING", "None"), True)
    assert (found.state, found.step, found.hours_left, found.job) == ("running", 4999, 2.5, "7_3")
    assert (found.evaluated_on, found.top1) == ("val", 0.25)
    pending = status.read(tmp_path, status.Job("7_3", "r", "PENDING", "BeginTime"), True)
    assert (pending.state, pending.reason) == ("requeued", "BeginTime")


def test_a_start_without_a_word_has_failed_and_one_that_was_ended_has_stopped(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    start = starts.Start(tmp_path, writes=True)
    start.begin(["n1"], 1, "cpu", 0, "", {})
    lost = status.read(tmp_path, None, True)
    assert (lost.state, lost.starts, lost.job) == ("failed", 1, "12")
    assert status.read(tmp_path, None, False).state == "stopped"  # its job may be there still
    start.end("terminated", 4)
    stopped = status.read(tmp_path, None, True)
    assert (stopped.state, stopped.reason) == ("stopped", "terminated")
    starts.Start(tmp_path, writes=True).begin(["n1"], 1, "cpu", 4, "", {})
    starts.settle(tmp_path, "rank 1 on n2: no space")
    failed = status.read(tmp_path, None, True)
    assert (failed.state, failed.reason, failed.starts) == ("failed", "rank 1 on n2: no space", 2)


@pytest.mark.parametrize(
    "hours, text",
    [(0.01, "36 s"), (0.2, "12 min"), (3.2, "3 h 12 min"), (52.0, "2 d 4 h")],
)
def test_durations(hours, text):
    assert duration(hours) == text


def test_the_second_step_tells_how_long_all_will_take(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    left = TimeLeft(902)

    def guesses(start, seconds):
        left.start(start)
        for step, took in enumerate(seconds, start + 1):
            now[0] += took
            yield left.first_guess(step)
            left.hours(step)

    assert [*guesses(0, (30, 2, 2, 2))] == [None, pytest.approx(900 * 2 / 3600), None, None]
    assert [*guesses(100, (30, 0.02, 2))] == [None, None, None]  # the first log line is near


def test_time_left_leaves_out_what_comes_before_the_first_log(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    left = TimeLeft(100)
    left.start(10)
    now[0] = 100.0  # compiling
    assert left.hours(20) == pytest.approx(80 * 10 / 3600)
    now[0] = 110.0
    assert left.hours(30) == pytest.approx(70 * 1 / 3600)


def test_a_strangers_task_file_runs_no_code(tmp_path, monkeypatch):
    """SLURM's queue is written by hand, and so is the file; one of ours beside it is read."""

    class Planted:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    theirs, ours = (tmp_path / name / "logs" for name in ("theirs", "ours"))
    theirs.mkdir(parents=True), ours.mkdir(parents=True)
    (theirs / "7_submitted.pkl").write_bytes(pickle.dumps(Planted()))
    DelayedSubmission(WorkerTask(str(tmp_path / "ours"))).dump(ours / "8_submitted.pkl")
    jobs = [Job(id, "job", "RUNNING", "None") for id in ("7", "8")]
    found = command_status._jobs_of([theirs.parent, ours.parent], jobs)
    assert found == {(tmp_path / "ours").resolve(): jobs[1]}
    assert not (tmp_path / "ran").exists()


def test_a_start_without_its_first_line_hides_no_run(workers, small_path, tmp_path):
    """As where the disk was full when it began."""
    workers.make(small_path, tmp_path / "run")
    line = {"start": 0, "ended": 9.0, "step": 4, "outcome": "failed: no space"}
    (tmp_path / "run" / starts.FILE).write_text(json.dumps(line) + "\n")
    found = status.read(tmp_path / "run", None, asked=False)
    assert (found.state, found.reason, found.job) == ("failed", "no space", None)
