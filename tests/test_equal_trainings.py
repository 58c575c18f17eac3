"""Trainings that must come to the same, bit for bit or up to rounding, in different ways: other
numbers of workers, other all-reduces, compiled, recomputed, interrupted."""

import json
import shutil
from argparse import Namespace

import numpy as np
import pytest
import torch
from conftest import (
    TEST,
    assert_identical,
    final_weights,
    without_last_checkpoint,
)
from frozen_bn import STEPS, frozen_bn

from dist_resnet import worker
from dist_resnet.prepare import betons, shapes
from dist_resnet.prepare.encoding import Samples
from dist_resnet.reports import comparison
from dist_resnet.reports.comparison import read_summary
from dist_resnet.tracking import starts
from dist_resnet.tracking.tracker import read_metrics
from launch.commands import evaluate as evaluate_command

pytestmark = pytest.mark.slow

BUCKETS = ("--train.all_reduce", "buckets")


def losses(run_dir):
    return [r["train/loss"] for r in read_metrics(run_dir) if "lr" in r]


def test_a_flat_all_reduce_trains_as_ddps_buckets_do(workers, small_path, tmp_path):
    """Two summands have one order: the same bits, also with a static graph and weights cast
    together. In bf16 they are rounded."""
    ways = {
        "buckets": BUCKETS,
        "flat": (),
        "together": (*BUCKETS, "--train.cast", "together", "--train.static_graph", "true"),
        "flat-bf16": ("--train.gradient_type", "bf16"),
        "small-bf16": (*BUCKETS, "--train.bucket_mib", 0.1, "--train.gradient_type", "bf16"),
    }
    for name, way in ways.items():
        settings = ("--train.max_steps", 10, *way)
        workers.train(small_path, tmp_path / name, *settings, size=2)
    for name in ("flat", "together"):
        assert_identical(tmp_path / "buckets", tmp_path / name)
    exact = losses(tmp_path / "flat")
    for name in ("flat-bf16", "small-bf16"):
        rounded = losses(tmp_path / name)
        assert rounded != exact and rounded == pytest.approx(exact, rel=0.02), name


def test_three_workers_in_fp16_resume_bit_identical(workers, small_path, tmp_path):
    """The gradient scaler's state is kept, and three summands are added in the same order as
    before: DDP's buckets are settled. Two images each, since a CPU is slow at fp16."""
    settings = (*BUCKETS, "--train.precision", "fp16", "--train.static_graph", "true")
    settings += ("--batch.global", 6)
    settings += ("--tracking.grad_norm", "true", "--train.max_steps", 6)
    straight = workers.train(small_path, tmp_path / "a", *settings, size=3)
    norms = [r["grad_norm"] for r in read_metrics(straight) if "lr" in r]
    assert all(0.1 < norm < 30 for norm in norms)  # not divided by the scale of 65,536
    without_last_checkpoint(straight, tmp_path / "b")
    again = workers.train(small_path, tmp_path / "b", *settings, size=3)
    assert "resuming at step 4" in workers.output
    assert_identical(straight, again)


def test_what_says_how_a_run_is_run_may_change_at_any_start(
    workers, small_path, shapes_dir, tmp_path, capsys
):
    """A complete run goes on where max_steps grows, also on betons that have been moved, logging
    more often; other betons and fewer steps than it has are refused."""
    straight = workers.train(small_path, tmp_path / "straight", "--train.max_steps", 10)
    run = workers.train(small_path, tmp_path / "run", "--train.max_steps", 6)
    moved = shutil.copytree(shapes_dir, tmp_path / "moved")
    changed = ("--data.dir", moved, "--train.log_every", "1 steps", "--train.timeout_s", 99)
    workers.train(small_path, run, *changed, "--train.max_steps", 10)
    assert_identical(straight, run)
    assert "resuming at step 6" in workers.output
    assert "train.max_steps = 10 from this start on (6 before)" in capsys.readouterr().err
    assert read_summary(run)["steps"] == 10
    assert [start["changed"] for start in starts.read(run)] == [
        {},
        {
            "data.dir": [str(shapes_dir), str(moved)],
            "train.max_steps": [6, 10],
            "train.log_every": ["2 steps", "1 steps"],
            "train.timeout_s": [180.0, 99.0],
        },
    ]
    (run / "summary.json").unlink()
    with pytest.raises(RuntimeError, match=r"max_steps = 4: .* has reached step 10; give as many"):
        workers.train(small_path, run, "--train.max_steps", 4)
    betons.prepare(shapes.make(96, 8, seed=1), tmp_path / "other", val=0, seed=0)
    with pytest.raises(ValueError, match=r"trained on other betons \(digest .* give another --run"):
        workers.make(small_path, run, "--data.dir", tmp_path / "other")


def test_four_workers_train_as_one_does(workers, small_path, tmp_path):
    """The same images, cropped and flipped the same way, and so the same losses, where BN does not
    depend on the worker's share."""
    workers.make(small_path, tmp_path / "run", "--train.precision", "fp32", *BUCKETS)
    (losses, images), (one_losses, one_images) = (
        workers.call(frozen_bn, tmp_path / "run", size=size)[0] for size in (4, 1)
    )
    assert images == one_images and len(set(images[0])) == 48 and len(losses) == STEPS
    assert losses == pytest.approx(one_losses, rel=1e-4) and losses[0] != losses[-1]


def test_another_number_of_workers_keeps_the_global_batch_or_is_refused(
    workers, small_path, tmp_path
):
    """With batch.global the run goes on; with batch.per_worker the batch would change, and with it
    the recipe."""
    two = workers.train(small_path, tmp_path / "two", "--train.max_steps", 8, size=2)
    without_last_checkpoint(two, tmp_path / "run")
    workers.train(small_path, tmp_path / "run", "--train.max_steps", 8)
    assert "resuming at step 4 (world size 2 before)" in workers.output
    per_worker = ("--batch.global", "null", "--batch.per_worker", 24, "--train.max_steps", 4)
    grown = workers.train(small_path, tmp_path / "grown", *per_worker)
    (grown / "summary.json").unlink()
    with pytest.raises(RuntimeError, match=r"24 \(1 workers\), and 2 workers make 48") as refused:
        workers.train(small_path, grown, *per_worker, size=2)
    assert "--batch.virtual_workers 1 from the start" in str(refused.value)


def test_compiled_and_recomputing_steps_agree_with_eager_ones(workers, small_path, tmp_path):
    """Over 30 steps. Recomputed activations are the same bits, and BN's running statistics move
    once a step."""
    settings = ("--train.precision", "fp32", "--optim.lr", 0.01, "--train.log_every", "1 step")
    settings += ("--train.evaluate_every", "30 steps", *BUCKETS)
    ways = {
        "eager": (),
        "recomputing": ("--train.activation_checkpointing", "true"),
        "compiled": ("--train.compile", "default"),
    }
    for name, way in ways.items():
        workers.train(small_path, tmp_path / name, *settings, *way)
    assert len(losses(tmp_path / "eager")) == 30
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=2e-3)
    assert_identical(tmp_path / "eager", tmp_path / "recomputing")
    left, right = (
        torch.cat([t.flatten().float() for t in final_weights(tmp_path / name).values()])
        for name in ("eager", "compiled")
    )
    assert (left - right).norm() < 0.02 * left.norm()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
def test_graphed_steps_agree_with_eager_ones(workers, small_path, tmp_path):
    settings = ("--train.precision", "fp32", "--optim.lr", 0.01, "--train.log_every", "1 step")
    for name, way in {"eager": (), "graphed": ("--train.cuda_graph", "true")}.items():
        workers.train(small_path, tmp_path / name, *settings, *way)
    assert len(losses(tmp_path / "eager")) == 30
    assert losses(tmp_path / "graphed") == pytest.approx(losses(tmp_path / "eager"), rel=2e-3)


def test_evaluation_is_exact_for_any_number_of_workers(workers, cli, small_path):
    """230 images over 1, 2 and 3 workers: the same predictions, each image counted once."""
    run_dir = workers.train(small_path, cli.directory / "run", size=2)
    expected = [r for r in read_metrics(run_dir) if "test/top1" in r][-1]
    code, output = cli("evaluate", "run")
    assert code == 0 and f"latest, test: loss {expected['test/loss']:.4f}" in output, output
    assert f"top-1 {100 * expected['test/top1']:.2f} %" in output and f"of {TEST} sam" in output
    asked = dict(run_dir=run_dir, checkpoint="latest", split=None, per_class=False, json=True)
    workers.call(evaluate_command.evaluate, Namespace(**asked))
    figures = json.loads(workers.output)
    assert figures["top1"] == expected["test/top1"] and figures["samples"] == TEST
    split, means, _ = workers.call(worker.evaluate, str(run_dir), "LATEST", size=3)[0]
    assert (split, means.samples) == ("test", TEST)
    assert means.top1 * TEST == pytest.approx(round(expected["test/top1"] * TEST), abs=1e-9)
    assert means.loss == pytest.approx(expected["test/loss"], rel=2e-3)  # bf16, other batches


def test_a_training_on_val_says_so_everywhere(workers, small_path, tmp_path):
    """Nothing is called test, unless it is asked for at the end."""
    betons.prepare(shapes.make(200, 50), tmp_path / "held", val=40, seed=0)
    where = ("--data.dir", tmp_path / "held", "--data.evaluate_on", "val", "--data.dataset", "null")
    settings = (*where, "--train.max_steps", 4)
    run_dir = workers.train(small_path, tmp_path / "run", *settings)
    about = {"metrics.jsonl", "summary.json"}
    written = [p for p in run_dir.rglob("*") if p.name in about]
    assert len(written) == 2 and "val   loss" in workers.output
    for path in written:
        assert "val" in path.read_text() and "test" not in path.read_text(), path
    assert "test" not in workers.output
    split, means, _ = workers.call(worker.evaluate, str(run_dir), "LATEST", "test")[0]
    assert (split, means.samples) == ("test", 50)

    both = workers.train(small_path, tmp_path / "b", *settings, "--train.final_split", "test")
    summary = json.loads((both / "summary.json").read_text())
    assert summary["test_top1"] == means.top1 and summary["evaluated_on"] == "val"
    assert "test" not in (both / "metrics.jsonl").read_text()
    results = comparison.compare([both, run_dir]).runs
    assert [run.results["final test top-1"] for run in results if run.path == both] == [means.top1]


def test_learns(workers, small_path, tmp_path):
    """Four colours in noise are told apart, on images it has not seen, after 40 steps."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(480) % 4)
    colours = np.array([[160, 100, 100], [100, 160, 100], [100, 100, 160], [120, 120, 120]])
    images = np.clip(
        colours[labels][:, None, None] + rng.normal(0, 60, (480, 32, 32, 3)), 0, 255
    ).astype(np.uint8)
    train = Samples(labels[:240], images[:240].__getitem__)
    test = Samples(labels[240:], images[240:].__getitem__)
    betons.prepare(
        betons.Dataset("colours", list("rgbw"), train, test, "rng"), tmp_path / "colours", 0, 0
    )
    settings = ("--data.dir", tmp_path / "colours", "--data.dataset", "colours")
    steps = ("--schedule.steps", 40, "--schedule.milestones", "[30]")
    every = ("--train.evaluate_every", "40 steps")
    run_dir = workers.train(small_path, tmp_path / "run", *settings, *steps, *every, size=2)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["test_top1"] > 0.9 and summary["test_top5"] == 1
    assert summary["seconds_to_top1"]["90"] > 0
