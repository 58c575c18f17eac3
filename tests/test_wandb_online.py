"""The real wandb client, online: runs, and a server that fails. The server is
tests/wandb_server.py; sweeps are in test_sweeps.py."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from wandb_server import Run, WandbServer

ROOT = Path(__file__).parent.parent

ONE_RUN = """\
import sys, wandb
run = wandb.init(project="tests", id="one", resume="allow", name="first", group="g",
                 job_type="train", tags=["a", "b"],
                 config={"optim": {"lr": 0.1, "milestones": [2, 4]}, "steps": 3})
for step in range(run.starting_step, run.starting_step + 3):
    run.log({"loss": 1 / (step + 1)}, step=step)
run.summary["best"] = 1 / (step + 1)
run.finish(int(sys.argv[1]))
"""

MEDIA = """\
import pathlib, wandb
run = wandb.init(project="tests", id="media")
picture = wandb.Image(__import__("numpy").zeros((4, 4, 3), dtype="uint8"))
run.log({"picture": picture, "table": wandb.Table(columns=["class", "right"], data=[["disc", 3]])})
pathlib.Path("weights.bin").write_bytes(b"1234")
weights = wandb.Artifact("weights", "model")
weights.add_file("weights.bin")
run.log_artifact(weights)
run.finish()
"""

TRACKED = """\
import sys, time
from pathlib import Path
from dist_resnet.config import Tracking
from dist_resnet.tracking.tracker import Tracker
tracker = Tracker(Path(sys.argv[1]), 30, writes=True)
tracker.start(Tracking(wandb="online"), {"optim": {"lr": 0.1}}, step=0, wandb_id=sys.argv[1])
for step in range(1, 31):
    tracker.log(step, {"train/loss": 1 / step})
    if step == 10:
        print("ready", flush=True)
        sys.stdin.readline()
tracker.finish({"test_top1": 0.5})
print("finished", flush=True)
"""


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as server:
        yield server


class Programs:
    """Processes that see a server; whatever is left of them at the end is killed."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.started = directory, []

    def start(
        self, server: WandbServer, *command: object, **environment: object
    ) -> subprocess.Popen:
        env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
        env |= server.environment | {"HOME": str(self.directory), "PYTHONPATH": str(ROOT)}
        env |= {key: str(value) for key, value in environment.items()}
        process = subprocess.Popen(
            [*map(str, command)],
            cwd=self.directory,
            env=env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.started.append(process)
        return process

    def run(
        self,
        server: WandbServer,
        code: str,
        *words: object,
        returns: int = 0,
        **environment: object,
    ) -> str:
        process = self.start(server, sys.executable, "-c", code, *words, **environment)
        output, _ = process.communicate(timeout=100)
        assert process.returncode == returns, output
        return output


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    programs = Programs(tmp_path)
    yield programs
    for process in programs.started:
        kill_with_all_its_children(process)


def kill_with_all_its_children(process: subprocess.Popen) -> None:
    """As SLURM does it. Killing the process group is not enough: an agent's programs and wandb's
    helpers have their own."""
    if process.poll() is None:
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            one.kill()
        process.communicate()


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def steps(run: Run) -> list[int]:
    return [row["_step"] for row in run.history]


def test_a_run_arrives(server: WandbServer, programs: Programs) -> None:
    programs.run(
        server,
        ONE_RUN,
        3,
        WANDB_GIT_COMMIT="c0ffee",
        WANDB_GIT_REMOTE_URL="https://example.org/repository",
    )
    run = server.runs["one"]
    assert run.config == {"optim": {"lr": 0.1, "milestones": [2, 4]}, "steps": 3}
    assert (run.name, run.group, run.job_type, run.tags, run.commit) == (
        "first",
        "g",
        "train",
        ["a", "b"],
        "c0ffee",
    )
    assert steps(run) == [0, 1, 2] and [row["loss"] for row in run.history] == [1, 1 / 2, 1 / 3]
    assert run.summary["best"] == run.summary["loss"] == 1 / 3
    assert run.finished and run.exit_code == 3 and run.resumed == 0 and "config.yaml" in run.files
    assert server.operations["UpsertBucket"] and not server.unknown


def test_a_resumed_run_is_the_same_run(server: WandbServer, programs: Programs) -> None:
    programs.run(server, ONE_RUN, 3)
    programs.run(server, ONE_RUN, 0)
    run = server.runs["one"]
    assert len(server.runs) == 1 and run.resumed == 1 and run.exit_code == 0
    assert steps(run) == list(range(6)) and run.summary["best"] == 1 / 6


def test_media_and_artifacts_arrive(server: WandbServer, programs: Programs) -> None:
    output = programs.run(server, MEDIA)
    run = server.runs["media"]
    assert run.exit_code == 0 and "rror" not in output
    (row,) = run.history
    assert (
        row["picture"]["path"] in run.files
        and row["table"]["path"] in run.files
        and row["table"]["nrows"] == 1
    )
    artifacts = {artifact.name: artifact for artifact in server.artifacts.values()}
    assert (
        artifacts["weights"].files == {"weights.bin", "wandb_manifest.json"}
        and artifacts["weights"].type == "model"
    )
    assert len(artifacts) == 2 and all(
        artifact.committed for artifact in artifacts.values()
    )  # the table is one too


@pytest.mark.slow
def test_a_server_that_fails_or_hangs_does_not_hold_a_training(programs: Programs) -> None:
    with (
        WandbServer() as failing,
        WandbServer() as hanging,
    ):  # side by side: the client waits for long
        servers = {"failing": failing, "hanging": hanging}
        trainings = {
            name: programs.start(server, sys.executable, "-c", TRACKED, name)
            for name, server in servers.items()
        }
        for training in trainings.values():
            assert any(line == "ready\n" for line in training.stdout)
        wait_until(lambda: failing.runs and hanging.runs)
        failing.fail = hanging.hang = True
        began = time.monotonic()
        for training in trainings.values():
            training.stdin.write("go on\n")
            training.stdin.flush()
        for name, training in trainings.items():
            output, _ = training.communicate(timeout=100)
            assert training.returncode == 0 and output.endswith("finished\n"), output
            assert len((programs.directory / name / "metrics.jsonl").read_text().splitlines()) == 30
            assert (
                not servers[name].runs[name].finished and len(servers[name].runs[name].history) < 30
            )
        assert time.monotonic() - began < 60
