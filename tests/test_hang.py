"""Who waits for whom when a training hangs, who holds the others up, and what takes the time. In
test_slurm a worker hangs in a job."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, assert_identical

from dist_resnet.diagnosis import hang
from dist_resnet.runtime import distributed
from dist_resnet.training.pace import Pace
from dist_resnet.training.progress import Progress
from launch.executors import local


def late(run_dir: str) -> None:
    """In a worker of a world of two: rank 1 does not come to the barrier."""
    with distributed.connect("cpu", 15.0) as world:
        progress = Progress(step=7)
        with hang.Watchdog(Path(run_dir), world, progress, 15.0):
            world.barrier()
            if world.rank == 1:
                time.sleep(18)
            with pytest.raises(RuntimeError):
                world.barrier()


@pytest.mark.slow
def test_the_collective_and_who_had_not_arrived_are_named(workers, tmp_path):
    workers.call(late, str(tmp_path), size=2)
    told = hang.story(tmp_path, 3)
    assert "after step 7; rank 0 waited in barrier (collective 2, " in told, told
    assert "not arrived: rank 1, at work outside of ours" in told
    assert "not arrived: rank 2, which gave no sign" in told and hang.story(tmp_path, 3) is None


GRAPHED = """\
import sys, time, types, pathlib
from dist_resnet.diagnosis import hang
from dist_resnet.runtime.collectives import Collectives
pending = {"none": None, "ended": lambda: False, "waits": lambda: True}[sys.argv[2]]
world = types.SimpleNamespace(rank=1, device=types.SimpleNamespace(type="cuda"))
world.collectives = Collectives(pending=pending)
with hang.Watchdog(pathlib.Path(sys.argv[1]), world, types.SimpleNamespace(step=7), 1.0):
    time.sleep(2)
"""


def test_a_rank_that_waits_in_a_cuda_graph_is_ended(tmp_path):
    """NCCL's own timeout knows nothing of collectives in a graph. A host that is slow is let be."""
    words = [sys.executable, "-c", GRAPHED, str(tmp_path)]
    started = {
        how: subprocess.Popen([*words, how], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for how in ("none", "ended", "waits")
    }
    told = {how: (process.communicate()[1], process.returncode) for how, process in started.items()}
    assert [code for _, code in told.values()] == [0, 0, 1], told
    assert "rank 1: the GPU has not ended a step for 1 s (train.timeout_s)" in told["waits"][0]


def test_ranks_in_ddps_backward_pass_wait_too(tmp_path):
    assert hang.story(tmp_path, 2) is None
    (tmp_path / hang.FOLDER).mkdir()
    backward = "training/loop.py:9 forward_and_backward"
    for rank, where in enumerate([backward, backward, "data/loader.py:5 batches"]):
        note = {
            "rank": rank,
            "step": 4,
            "collective": None,
            "number": 9,
            "seconds": 18.0,
            "gpu": False,
        }
        (tmp_path / hang.FOLDER / f"rank_{rank}.json").write_text(
            json.dumps(note | {"where": where})
        )
    told = hang.story(tmp_path, 3)
    assert "ranks 0, 1 waited in the all-reduce of the gradients" in told
    assert told.endswith("not arrived: rank 2, at data/loader.py:5 batches")


def test_a_run_of_several_in_the_same_workers_is_told_where_it_hung(tmp_path):
    """As of `dist-resnet repeat`."""
    note = {"rank": 0, "step": 3, "collective": None, "gpu": False, "number": 9, "seconds": 7.0}
    (tmp_path / "seed1/hang").mkdir(parents=True)
    text = json.dumps(note | {"where": "data/loader.py:5 batches"})
    (tmp_path / "seed1/hang/rank_0.json").write_text(text + "\n")
    paths = [tmp_path / "seed0", tmp_path / "seed1"]
    with pytest.raises(RuntimeError, match=r"ended without a word: nothing moved for 7 s"):
        local.run(os.abort, tmp_path / "logs", 1, "cpu", run_dirs=paths)


def paces() -> list[str | None]:
    """In a worker of a world of three: what is said when none is slow, and when rank 2 is, in its
    forward pass and then in its data."""
    with distributed.connect("cpu", 60.0) as world:
        model = torch.nn.Linear(1, 1)
        pace, said = Pace(model, world), []
        for forward, data in ((0.4, 0.0), (0.4 + 0.8 * (world.rank == 2), 0.0), (0.4, 0.0)):
            before = model.register_forward_pre_hook(lambda *_, s=forward: time.sleep(s))
            model(torch.ones(1, 1))
            before.remove()
            said.append(pace.slowest(data, 0.5))
        said.append(pace.slowest(3.0 if world.rank == 2 else 1.0, 4.0))
        return said


def test_the_slowest_rank_is_named(workers):
    even, slow, again, data = workers.call(paces, size=3)[0]
    assert even is None and again is None
    assert slow.startswith("rank 2 is the slowest: ")
    assert data.startswith("rank 2 is the slowest: 3.0 times") and "100% of it waiting" in data


@pytest.mark.slow
def test_a_profile_is_of_so_many_steps_and_changes_nothing(workers, small_path, tmp_path):
    plain = workers.train(small_path, tmp_path / "plain", "--train.max_steps", 20)
    words = ("--train.max_steps", 20, "--train.profile", "3 steps")
    run_dir = workers.train(small_path, tmp_path / "run", *words)
    assert "profile of 3 steps" in workers.output
    events = json.loads((run_dir / "profile/trace.json").read_text())["traceEvents"]
    steps = {e["name"] for e in events if e["name"].startswith("ProfilerStep#")}
    assert steps == {"ProfilerStep#12", "ProfilerStep#13", "ProfilerStep#14"}
    assert "convolution_backward" in (run_dir / "profile/operations.txt").read_text()
    assert_identical(plain, run_dir)
