"""benchmarks/gpu.sh to its end, so that its first run on a GPU fails for no silly reason."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from dist_resnet.prepare import betons, shapes


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_benchmarks_for_a_gpu_run_to_their_end_without_one(tmp_path):
    named = dataclasses.replace(shapes.make(600, 100), name="cifar10")
    betons.prepare(named, tmp_path / "data", val=0, seed=0)
    done = subprocess.run(
        ["bash", ROOT / "benchmarks/gpu.sh", tmp_path / "data", tmp_path / "out"],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "DRY_RUN": "1",
            "DIST_RESNET_PYTHON": sys.executable,
        },  # other tests run beside this one
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "out/report.json").read_text())
    tables = {"step", "step_compiled", "loader", "start", "memory", "scaling"}
    assert set(report["tables"]) == tables
    ways = [row["way"] for row in report["tables"]["step"]["rows"]]
    assert ways == ["default", "no graph", "no graph, cast each"]
    assert set(report["trainings"]) == {"speedrun/seed0", "resnet20", "resnet110"}
    text = (tmp_path / "out/report.md").read_text()
    assert "## memory: " in text and "| resnet110 | 2 |" in text
