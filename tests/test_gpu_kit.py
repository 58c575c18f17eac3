"""benchmarks/gpu, the two commands for a GPU's machine, rehearsed without one, so that their first
run on one fails for no silly reason."""

import dataclasses
import json
import os
import subprocess
import sys
import time
import zipfile

import pytest
from conftest import ROOT

from benchmarks.gpu import mosaics, report, steps, task, trainings
from dist_resnet.prepare import betons, shapes

FASTER = ("killed", "doctor")  # of which tests of their own know more


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    """What `make gpu-kit` makes, but for the packages, which are there; and the betons in it."""
    folder = tmp_path_factory.mktemp("kit")
    named = dataclasses.replace(shapes.make(1100, 100), name="cifar10")
    betons.prepare(named, folder / "betons", val=0, seed=0)
    mosaics.pack(folder / "betons", [folder / "gpu-kit/a", folder / "gpu-kit/b"])
    with zipfile.ZipFile(folder / "gpu-kit/site.zip", "w") as archive:
        archive.writestr("of_the_kit.py", "")
    return folder


def run(kit, command, *words):
    """Its rows. The second command is given what it would find on another day: half of the kit."""
    here = kit / command
    (here / "gpu-kit").mkdir(parents=True)
    for part in ("site.zip", command):
        (here / "gpu-kit" / part).symlink_to(kit / "gpu-kit" / part)
    words = [command, "--out", here / "out", "--kit", here / "gpu-kit", "--small", *words]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.run", *map(str, words), "--keep", kit / "keep"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    told = done.stdout + done.stderr + (here / f"out/{command}.log").read_text()
    assert done.returncode == 0, told
    rows = task.read(here / f"out/{command}.jsonl")
    ends = {row["name"]: row["failed"] for row in rows if row["step"] == task.STEP}
    assert set(ends.values()) == {None}, f"{ends}\n{told}"
    files = list((here / "out").iterdir())
    assert len(files) <= 8 and all(f.stat().st_size < 16 * 2**20 for f in files), files
    return rows, ends, {f.name for f in files}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_both_commands_run_to_their_end_without_a_gpu(kit):
    names = [step.name for step in steps.A if step.name not in FASTER]
    rows, ends, _ = run(kit, "a", "--only", *names)
    assert list(ends) == names
    kernels = [row for row in rows if row["step"] == "kernels"]
    assert len(kernels) == 6 and all("error" not in row for row in kernels), kernels
    same = {row["run"]: row["same_bits"] for row in rows if row["step"] == "deterministic"}
    assert len(same) == 4 and all(same.values())

    rows, ends, files = run(kit, "b", "--seconds", "400")  # without what takes longest
    assert list(ends) == [step.name for step in (steps.BETONS, *steps.B)]
    for split in ("train", "test"):
        found = kit / f"keep/cifar10/{split}.beton"
        assert found.read_bytes() == (kit / f"betons/{split}.beton").read_bytes()
    rates = {row["way"]: row.get("images/s", row) for row in rows if row["step"] == "rates"}
    assert set(rates) == {"default", "no graph", "plain loop (TF32 on a GPU)"}
    assert all(rate > 0 for rate in rates.values()), rates
    whole = {row["training"]: row["outcome"] for row in rows if "training" in row}
    assert list(whole.values()) == ["completed"] * 2
    assert files == {
        *("b.jsonl", "b.log", "b.md", "runs.zip", "deep.zip"),
        *("deep.png", "resnet20.png"),
    }
    assert "checkpoints/LATEST" in str(zipfile.ZipFile(kit / "b/out/deep.zip").namelist())
    text = (kit / "b/out/b.md").read_text()
    assert "| deterministic | done |" in text and "Expected: 94.0 ± 0.1 % top-1" in text


def test_a_half_that_is_missing_or_broken_is_named(kit, tmp_path):
    halves = [kit / "gpu-kit/a", kit / "gpu-kit/b"]
    with pytest.raises(RuntimeError, match=r"mosaics are there|is in none of"):
        mosaics.unpack(tmp_path / "out", halves[:1])
    told = json.loads((halves[0] / "manifest.json").read_text())
    told["splits"]["train"]["sha256"] = "0" * 64
    other = tmp_path / "other"
    other.mkdir()
    (other / "manifest.json").write_text(json.dumps(told))
    with pytest.raises(RuntimeError, match=r"train\.beton: not the bytes that were packed"):
        mosaics.unpack(tmp_path / "out", [other, *halves])


def test_a_step_that_hangs_or_dies_is_ended_alone(tmp_path):
    paths = dict.fromkeys(("out", "keep", "data", "shapes"), str(tmp_path))
    asked = {"step": "s", "rows": [str(tmp_path / "rows")], "small": True, "seconds": 9, **paths}
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    with task.process(tmp_path / "log", environment) as taking:

        def take(work, limit):
            return taking.take({**asked, "work": work, "until": time.time() + limit}, limit)

        assert take("machine:nothing", 60) == (
            "AttributeError: module 'benchmarks.gpu.machine' has no attribute 'nothing'"
        )
        assert take("machine:site", 0.1) == "its 0 s were over"
        assert taking.process is None
        assert take("machine:betons", 60).startswith("RuntimeError: half a, b of the kit")


def test_what_is_left_out_and_which_network_is_trained_follow_from_time_and_rates(tmp_path):
    assert steps.cuts(540) == set()
    assert steps.cuts(530) == {"strong plain loop"}
    assert steps.cuts(460) == {"strong plain loop", "batch 1024", "five speedruns"}
    rates = {("resnet110", 128): 40_000.0, ("resnet110", 1024): 90_000.0}  # 205, 91 s
    for left, name in (
        (230, "ResNet-110"),
        (220, "ResNet-56"),
        (115, "ResNet-110 at batch 1024"),
        (60, "ResNet-110, as far as it comes"),
    ):
        assert trainings.choice(rates, left)[0] == name
    assert trainings.choice({}, 400)[0] == "ResNet-110, as far as it comes"

    rows = tmp_path / "a.jsonl"
    made = task.Task("b", *[tmp_path] * 4, small=True, seconds=1, until=0, rows=(rows,))
    assert made.settings() == []
    for found, expected in (
        ({"fast_paths": {"cuda_graph": "used"}}, []),
        ({"fast_paths": {"cuda_graph": "refused: x"}}, ["--train.cuda_graph", "false"]),
        ({"error": "x"}, ["--train.fast_paths", "off"]),
    ):
        rows.write_text(json.dumps({"step": "ways", "way": "ResNet-20", **found}) + "\n{cut")
        assert made.settings() == expected


def test_a_report_says_what_was_expected_and_why_a_step_failed():
    rows = [
        {"step": "machine", "what": "GPU", "seen": "an H200"},
        {"step": "ways", "way": "fp16", "fast_paths": {"cuda_graph": "refused: a | b"}},
        {"step": task.STEP, "name": "ways", "seconds": 1.5, "failed": "its 70 s were over"},
    ]
    text = report.markdown(rows)
    assert text.startswith("# an H200, torch ?\n")
    assert "| ways | its 70 s were over | 1.5 | every fast path used" in text
    assert "| fp16 | cuda_graph refused: a \\| b |" in text
