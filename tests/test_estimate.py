"""Estimates, against numbers worked out by hand."""

import pytest
from conftest import ROOT

from dist_resnet.config import config_file
from dist_resnet.reports import estimate
from dist_resnet.reports.estimate import Link, Step


def test_the_ring():
    link = Link.parse("80Gbps", "10us")
    assert (link.bandwidth, link.latency) == (10e9, pytest.approx(1e-5))
    assert link.all_reduce(1e9, 1) == 0
    assert link.all_reduce(1e9, 4) == pytest.approx(6 * 1e-5 + 2 * 3 / 4 * 0.1)
    assert link.all_reduce(8, 1024) == pytest.approx(2 * 1023 * 1e-5, rel=1e-3)  # latency alone


def test_a_line_through_measured_steps():
    assert Step.fit([(128, 0.02), (1024, 0.09)]) == Step(
        pytest.approx(0.01), pytest.approx(0.07 / 896)
    )
    assert Step.fit([(128, 0.02)]).seconds(256) == pytest.approx(0.04)


def test_the_papers_recipe_on_more_workers():
    config = config_file.load(ROOT / "configs/resnet110.yaml")
    row = estimate.estimate(
        config, Step(0.0, 1e-4), Link(1e9, 0.0), 4 * 1.7e6, 50_000, workers=8, batch=128
    )
    assert row["step, ms"] == pytest.approx(12.8 + 1e3 * 2 * 7 / 8 * 6.8e6 / 1e9) and row[
        "efficiency, %"
    ] == pytest.approx(100 * 12.8 / row["step, ms"])
    assert row["hours (steps)"] == pytest.approx(64_000 * row["step, ms"] / 3.6e6) and row[
        "hours (samples)"
    ] == pytest.approx(row["hours (steps)"] / 8)
    assert row["epoch, s"] == pytest.approx(50_000 / 1024 * row["step, ms"] / 1e3)
    best = estimate.best_batch(
        config, Step(0.01, 1e-5), Link(1e9, 1e-4), 4 * 1.7e6, 50_000, workers=8
    )
    assert best["batch per worker"] > 512  # a fixed part in every step asks for large batches


def test_a_link_as_doctor_measures_it(tmp_path):
    path = tmp_path / "link.json"
    path.write_text('{"bytes_per_second": 2e9, "seconds": 5e-5, "world_size": 4}')
    assert Link.read(path) == Link(2e9, 5e-5)
    path.write_text('{"bandwidth": 1}')
    with pytest.raises(ValueError, match="name its link"):
        Link.read(path)


def test_the_command_prints_them(cli, shapes_dir):
    code, output = cli(
        "estimate",
        ROOT / "configs/resnet20.yaml",
        "--step",
        "128:20",
        "--step",
        "1024:90",
        "--nodes",
        2,
        "--gpus-per-node",
        4,
        "--samples",
        50000,
    )
    assert code == 0 and "resnet20, 50,000 images" in output and "1,024" in output, output
    code, output = cli(
        "estimate", ROOT / "configs/resnet20.yaml", "--step", "128", "--samples", 50000
    )
    assert code == 1 and "write BATCH:MILLISECONDS" in output
    code, output = cli("estimate", ROOT / "configs/resnet20.yaml", "--samples", 50000)
    assert code == 1 and "nothing measured" in output
