"""The learning rate at every boundary, under both milestone policies, against the papers'
numbers."""

import math

import pytest
from conftest import ROOT

from dist_resnet.config import config_file
from dist_resnet.config.schedule import plan

N = 50_000


def derive(world_size, *overrides, config="resnet20", n=N):
    return plan(config_file.load(ROOT / f"configs/{config}.yaml", overrides), world_size, n)


def test_the_papers_recipe():
    p = derive(1)
    assert (p.global_batch, p.k, p.steps_per_epoch, p.last_step) == (128, 1, 390, 64000)
    assert [p.lr_at(s) for s in (0, 31999)] == [0.1, 0.1]
    assert [p.lr_at(s) for s in (32000, 47999)] == pytest.approx([0.01] * 2)
    assert [p.lr_at(s) for s in (48000, 63999)] == pytest.approx([0.001] * 2)


def test_resnet110_warms_up_at_a_constant_rate():
    p = derive(1, config="resnet110")
    assert [p.lr_at(s) for s in (0, 399)] == [0.01, 0.01]
    assert [p.lr_at(s) for s in (400, 31999)] == [0.1, 0.1]


@pytest.mark.parametrize("rule, factor", [("linear", 8), ("sqrt", math.sqrt(8)), ("none", 1)])
def test_steps_policy_keeps_milestones_at_any_batch(rule, factor):
    p = derive(8, "--scaling.lr", rule, config="resnet110")
    assert (p.global_batch, p.k) == (1024, 8)
    assert (p.milestones, p.last_step, p.warmup_steps) == ((32000, 48000), 64000, 400)
    assert p.lr_at(399) == pytest.approx(0.01 * factor)
    assert p.lr_at(400) == p.lr_at(31999) == pytest.approx(0.1 * factor)
    assert p.lr_at(32000) == pytest.approx(0.01 * factor)
    assert p.lr_at(48000) == pytest.approx(0.001 * factor)


def test_samples_policy_keeps_the_number_of_images():
    p = derive(64, "--scaling.milestones", "samples", config="resnet110")
    assert p.global_batch == 8192 and p.milestones == (500, 750) and p.last_step == 1000
    assert [m * p.global_batch for m in (*p.milestones, p.last_step)] == [
        4_096_000,
        6_144_000,
        8_192_000,
    ]
    assert p.warmup_steps == round(400 / 64)
    assert (
        p.lr_at(499) == pytest.approx(6.4)
        and p.lr_at(500) == pytest.approx(0.64)
        and p.lr_at(750) == pytest.approx(0.064)
    )


def test_a_smaller_batch_than_the_references_takes_more_steps_for_the_same_images():
    p = derive(1, "--batch.per_worker", "64", "--scaling.milestones", "samples")
    assert (p.k, p.milestones, p.last_step) == (0.5, (64000, 96000), 128000) and p.lr_at(
        0
    ) == pytest.approx(0.05)


def test_linear_warmup_reaches_the_peak():
    p = derive(
        2,
        "--schedule.warmup",
        "linear",
        "--schedule.warmup_length",
        "100 steps",
        "--schedule.warmup_lr",
        "0.02",
    )
    rates = [p.lr_at(s) for s in range(101)]
    assert rates[0] == pytest.approx(0.04 + (0.2 - 0.04) / 100) and rates[49] == pytest.approx(0.12)
    assert rates[99] == rates[100] == pytest.approx(0.2) and rates == sorted(rates)


def test_a_raised_learning_rate_is_warmed_up_to_unless_the_recipe_says_otherwise():
    """Goyal et al. 2017, section 2.2: from the learning rate of the reference batch, in 5 epochs;
    the paper's own batch has none."""
    p = derive(8)
    assert (p.warmup, p.warmup_steps) == ("linear", 5 * (N // 1024))
    assert p.lr_at(0) == pytest.approx(0.1 + 0.7 / 240) and p.lr_at(239) == pytest.approx(0.8)
    assert derive(8, "--schedule.steps", "490", "--schedule.milestones", "[]").warmup_steps == 49
    for alone in ((1,), (8, "--scaling.lr", "none"), (8, "--schedule.warmup", "none")):
        assert (derive(*alone).warmup, derive(*alone).warmup_steps) == ("none", 0)


def test_what_a_larger_batch_changes_is_said():
    rows = dict(derive(8).rows())
    assert rows["epochs"].startswith("1333.3 of 50,000 samples; 65,536,000 images in all, 8 times")
    assert "--scaling.milestones samples" in rows["epochs"]
    shared = ("--batch.per_worker", "null", "--batch.global", "64")
    assert dict(derive(2, *shared).rows())["BN's share"].startswith("32 images; others with")
    kept = derive(1, *shared, "--batch.virtual_workers", "2")
    assert dict(kept.rows())["BN's share"] == "32 images"
    for same in (derive(1), derive(8, "--scaling.milestones", "samples")):
        assert "times" not in dict(same.rows())["epochs"]


def test_a_warmup_above_the_learning_rate_is_named():
    def row(*overrides):
        return dict(derive(8, "--schedule.warmup", "linear", *overrides).rows())["warmup"]

    assert "lower --schedule.warmup_lr" in row("--optim.lr", "0.001")
    assert "lower --schedule.warmup_lr" not in row("--optim.lr", "0.01")


def test_warmup_in_epochs_of_the_recipe():
    p = derive(1, "--schedule.warmup", "linear", "--schedule.warmup_length", "5 epochs")
    assert p.warmup_steps == round(5 * 50_000 / 128)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_decay_to_zero(decay):
    p = derive(
        1, "--schedule.decay", decay, "--schedule.milestones", "[]", "--schedule.steps", "1000"
    )
    assert (
        p.lr_at(0) == 0.1
        and p.lr_at(500) == pytest.approx(0.05)
        and p.lr_at(1000) == pytest.approx(0, abs=1e-12)
    )


def test_global_batch_is_split_over_the_workers():
    p = derive(4, "--batch.per_worker", "null", "--batch.global", "256")
    assert (p.local_batch, p.k) == (64, 2)
    with pytest.raises(ValueError, match=r"batch.global = 256 does not divide by 3 workers.*255"):
        derive(3, "--batch.per_worker", "null", "--batch.global", "256")
    with pytest.raises(ValueError, match="larger than the 100 training samples"):
        derive(1, n=100)


def test_a_warmup_longer_than_the_schedule_is_refused():
    with pytest.raises(ValueError, match="'70000 steps' is 70000 of 64000 steps"):
        derive(1, "--schedule.warmup", "linear", "--schedule.warmup_length", "70000 steps")


def test_periods_resolve_to_steps_once():
    p = derive(
        1,
        "--train.evaluate_every",
        "0.5 epochs",
        "--train.log_every",
        "100 steps",
        "--train.max_steps",
        "1000",
    )
    assert (p.evaluate_every, p.log_every, p.checkpoint_every, p.last_step, p.schedule_steps) == (
        195,
        100,
        390,
        1000,
        64000,
    )
    assert [s for s in range(1, 1001) if p.evaluates_at(s)] == [195, 390, 585, 780, 975, 1000]
    assert p.logs_at(195) and p.saves_at(195) and not p.logs_at(196)
