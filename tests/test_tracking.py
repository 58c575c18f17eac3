"""W&B can neither block nor end a training. The real wandb, without a server."""

import contextlib
import errno
import shutil
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT

from dist_resnet.config import Tracking
from dist_resnet.tracking.tracker import Tracker, read_metrics


def track(run_dir, mode, during=lambda: None, records=3):
    tracker = Tracker(run_dir, 30, writes=True)
    tracker.start(Tracking(wandb=mode), {"optim": {"lr": 0.1}}, step=0, wandb_id="")
    for step in range(1, records + 1):
        tracker.log(step, {"train/loss": 1 / step})
        during()
    tracker.finish({"test_top1": 0.5})
    return tracker


@pytest.fixture(autouse=True)
def no_key(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))


def losses(run_dir):
    return [r["train/loss"] for r in read_metrics(run_dir)]


def offline_runs(run_dir):
    return list((run_dir / "wandb").glob("offline-run-*/run-*.wandb"))


def test_offline_is_written_for_a_later_sync(tmp_path, capsys):
    tracker = track(tmp_path, "offline")
    (path,) = offline_runs(tmp_path)
    deadline = time.monotonic() + 20
    while b"train/loss" not in path.read_bytes() and time.monotonic() < deadline:
        time.sleep(
            0.1
        )  # wandb's helper process may close the file a little after it has said that it is done
    assert tracker.wandb.id in path.name and b"train/loss" in path.read_bytes()
    assert "dist-resnet sync" in capsys.readouterr().out and losses(tmp_path) == [1, 1 / 2, 1 / 3]


def test_disabled_starts_nothing(tmp_path):
    track(tmp_path, "disabled")
    assert not offline_runs(tmp_path) and losses(tmp_path) == [1, 1 / 2, 1 / 3]


def test_online_without_a_key_goes_offline_at_once(tmp_path, capsys):
    began = time.monotonic()
    track(tmp_path, "online")
    assert (
        time.monotonic() - began < 30
        and "no API key" in capsys.readouterr().out
        and len(offline_runs(tmp_path)) == 1
    )


@pytest.mark.slow
def test_online_without_a_network_goes_offline(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    began = time.monotonic()
    track(tmp_path, "online")
    assert time.monotonic() - began < 100
    output = capsys.readouterr().out
    assert (
        "cannot start online" in output and "dist-resnet sync" in output and "0" * 40 not in output
    )
    assert len(offline_runs(tmp_path)) == 1 and losses(tmp_path) == [1, 1 / 2, 1 / 3]


def kill_helper():
    for child in psutil.Process().children():  # not those of a pool's workers, who never reap them
        with contextlib.suppress(psutil.Error):  # other children come and go
            if "wandb-core" in child.name():
                child.kill()
                child.wait(10)


def test_its_helper_process_may_be_killed(tmp_path, capsys):
    track(tmp_path, "offline", kill_helper, records=10)
    assert len(losses(tmp_path)) == 10 and "metrics.jsonl has everything" in capsys.readouterr().out


@pytest.mark.parametrize("last", [(), ({"test_top1": 0.5}, ROOT / "docs/quickstart.png")])
def test_also_just_before_the_last_words(tmp_path, capsys, last):
    """As where SLURM kills it and another worker: what is raised then must be the training's own
    error."""
    tracker = Tracker(tmp_path, 30, writes=True)
    tracker.start(Tracking(wandb="offline"), {}, step=0, wandb_id="")
    kill_helper()
    tracker.finish(*last)
    assert "metrics.jsonl has everything" in capsys.readouterr().out


def test_records_after_the_checkpoint_are_dropped_on_resume(tmp_path):
    track(tmp_path, "disabled", records=5)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "train/lo')  # cut off by a kill
    tracker = Tracker(tmp_path, 30, writes=True)
    tracker.start(Tracking(wandb="disabled"), {}, step=3, wandb_id="")
    tracker.log(4, {"train/loss": 9.0})
    assert losses(tmp_path) == [1, 1 / 2, 1 / 3, 9]


def test_a_start_survives_a_disk_that_takes_nothing(tmp_path, capsys, monkeypatch):
    """A file where RUN_DIR/wandb should be, and no room for a copy of metrics.jsonl."""
    track(tmp_path, "disabled", records=5)
    shutil.rmtree(tmp_path / "wandb")
    (tmp_path / "wandb").write_text("")
    monkeypatch.setattr(Path, "write_text", full)
    tracker = Tracker(tmp_path, 30, writes=True)
    tracker.start(Tracking(wandb="disabled"), {}, step=2, wandb_id="")
    assert losses(tmp_path) == [1, 1 / 2]
    assert f"warning: {tmp_path / 'wandb'} could not be written" in capsys.readouterr().out


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_other_ranks_write_nothing(tmp_path):
    tracker = Tracker(tmp_path, 30, writes=False)
    tracker.start(Tracking(), {}, 0, "")
    tracker.log(1, {"x": 1.0})
    tracker.finish({})
    assert list(tmp_path.iterdir()) == []
