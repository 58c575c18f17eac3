"""Estimates, against numbers worked out by hand."""

import json

import pytest
from conftest import ROOT

from dist_resnet.config import CifarModel, config_file
from dist_resnet.models.step_cost import step_cost
from dist_resnet.reports import estimate
from dist_resnet.reports.estimate import Link, Step
from dist_resnet.reports.roofline import Device, Roofline


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


def test_what_a_step_of_resnet20_costs():
    """Worked out by hand: multiply-adds of the convolutions of three stages and of the last layer;
    the backward pass takes them twice more, but for the gradient of the images."""
    first, stage1 = 3 * 16 * 9 * 32**2, 6 * 16 * 16 * 9 * 32**2
    stage2 = 16 * 32 * 9 * 16**2 + 5 * 32 * 32 * 9 * 16**2
    stage3 = 32 * 64 * 9 * 8**2 + 5 * 64 * 64 * 9 * 8**2
    forward = first + stage1 + stage2 + stage3 + 64 * 10
    cost = step_cost(CifarModel(name="resnet20"), 10, (32, 32), 8)
    assert sum(flops for flops, _ in cost) == 8 * 2 * (3 * forward - first)
    activation = 8 * 16 * 32**2 * 2  # bytes in bf16
    assert (8 * 2 * stage1 // 6, 2 * activation + 2 * 16 * 16 * 9) in cost
    assert cost[-1] == (0, 5 * 4 * 269_722)


def test_an_operation_takes_what_is_slowest_arithmetic_memory_or_launch():
    """A fixed operation, and one that grows with the batch: from memory's time to arithmetic's."""
    roofline = Roofline([(0, 10), (200, 40)], [(0, 10), (400, 50)], 1, Device(100.0, 10.0), 1.5)
    assert roofline.seconds(1) == 1.5 + 4.0
    assert roofline.seconds(4) == 1.5 + 8.0


def test_the_command_prints_them(command):
    config = ("estimate", ROOT / "configs/resnet20.yaml", "--samples", 50_000)
    steps = ("--step", "128:20", "--step", "1024:90", "--nodes", 2, "--gpus-per-node", 4)
    code, output = command(*config, *steps)
    assert code == 0 and "resnet20, 50,000 images" in output and "1,024" in output, output
    (found,) = json.loads(command(*config, *steps, "--json")[1])
    assert [row["workers"] for row in found["rows"]] == [1, 2, 4, 8] and found["best"]
    code, output = command(*config, "--step", "128")
    assert code == 1 and "write BATCH:MILLISECONDS" in output
    code, output = command(*config)
    assert code == 1 and "where nothing was measured, --device NAME" in output
    code, output = command(*config, "--device", "a100", "--gpus-per-node", 1)
    assert code == 0 and output.count("not measured; at least, on a100") == 2, output
    code, output = command(*config, "--device", "cpu", "--gpus-per-node", 1)
    assert code == 0 and "at least, on this CPU" in output, output
