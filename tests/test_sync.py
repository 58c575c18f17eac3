"""`dist-resnet sync` rebuilds runs on a W&B server from their own files. The server is
tests/wandb_server.py, the client the real one."""

import json

import numpy as np
import pytest
from conftest import wait_for_step
from wandb_server import WandbServer

from dist_resnet.tracking import image_rows
from dist_resnet.tracking.tracker import read_metrics

OFFLINE = (
    "--tracking.wandb", "offline", "--tracking.top_losses", 3, "--tracking.group", "g",
    "--tracking.artifact", "true",
)  # fmt: skip


@pytest.fixture
def server(cli, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with WandbServer() as server:
        cli.environment |= server.environment | {"HOME": str(tmp_path), "WANDB_MODE": "offline"}
        yield server


@pytest.mark.slow
def test_a_run_that_was_killed_and_resumed(server, cli, workers, small_path, tmp_path):
    directory = tmp_path / "runs" / "one"

    def reached():
        wait_for_step(directory, 14)

    workers.train_until(small_path, directory, reached, *OFFLINE, size=1)
    for fragment in directory.glob("wandb/offline-run-*/*.wandb"):
        fragment.write_bytes(fragment.read_bytes()[:7])  # as of a start killed in its first seconds
    code, output = cli("sync", "runs")
    assert code == 0 and "records sent" in output, output
    (run,) = server.runs.values()
    last = read_metrics(directory)[-1]["step"]
    first_part = [row["_step"] for row in run.history]
    assert first_part == list(range(2, last, 2)) and run.group == "g"

    pointer = directory / "checkpoints/LATEST"  # a kill: it goes back to a checkpoint before
    (directory / "checkpoints" / pointer.read_text().strip()).unlink()
    workers.train(small_path, directory, *OFFLINE)
    assert "resuming at step" in workers.output
    code, output = cli("sync", "runs")
    assert code == 0 and "complete" in output, output
    result = json.loads((directory / "summary.json").read_text())
    assert len(server.runs) == 1 and run.finished and run.exit_code == 0
    steps = [row["_step"] for row in run.history if "lr" in row]
    assert steps == list(range(2, 31, 2)), steps
    evaluated = {r["step"]: r["test/top1"] for r in read_metrics(directory) if "test/top1" in r}
    assert {
        row["_step"]: row["test/top1"] for row in run.history if "test/top1" in row
    } == evaluated
    assert run.summary["test_top1"] == result["test_top1"]
    assert run.config["schedule"]["steps"] == 30 and {"resnet8", "shapes"} <= set(run.tags)
    assert run.summary["curves"]["path"] in run.files
    assert (
        run.summary["top_losses"]["path"] in run.files and run.summary["top_losses"]["nrows"] == 3
    )
    assert any(a.name.startswith("checkpoint-") and a.committed for a in server.artifacts.values())

    rows, asked = len(run.history), sum(server.operations.values())
    code, output = cli("sync", "runs/one")
    assert code == 0 and "nothing new" in output and sum(server.operations.values()) == asked
    (directory / "wandb/synced.json").unlink()  # the server knows what it has
    code, output = cli("sync", "runs/one")
    assert code == 0 and "0 records sent" in output and len(run.history) == rows


@pytest.mark.slow
def test_without_a_server_or_a_key_it_fails_and_says_so(cli, server, workers, small_path, tmp_path):
    workers.train(small_path, tmp_path / "runs/one", *OFFLINE, "--train.max_steps", 2)
    server.fail = True
    code, output = cli("sync", "runs")
    assert code == 1 and "1 of 1 runs could not be sent" in output, output
    code, output = cli("sync", "runs", WANDB_API_KEY="", NETRC=str(tmp_path / "none"))
    assert code == 1 and "no API key" in output


def test_rows_with_images_come_back(tmp_path):
    rows = [
        {"probability": 0.5 / i, "label": f"class {i}", "image": np.full((2, 2, 3), i, np.uint8)}
        for i in (1, 2)
    ]
    assert image_rows.read(tmp_path) == []
    image_rows.write(rows, tmp_path)
    for row, back in zip(rows, image_rows.read(tmp_path), strict=True):
        assert (row["probability"], row["label"]) == (back["probability"], back["label"])
        assert np.array_equal(row["image"], back["image"]) and list(row) == list(back)
