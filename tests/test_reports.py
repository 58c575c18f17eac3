"""Comparisons of run directories written by hand, with known numbers."""

import io
import json
import math

import pytest
from conftest import ROOT
from rich.console import Console

from dist_resnet.config import config_file
from dist_resnet.reports import comparison, tables
from launch.executors import run_dir
from launch.inspection.compare import draw, warn_of_commits


def made(directory, config, overrides, top1, *, workers=1, parameters=269_722, split="test"):
    """A complete run of two evaluations."""
    loaded = config_file.load(ROOT / "configs" / config, [str(word) for word in overrides])
    run_dir.create(directory, loaded)
    summary = {
        f"{split}_top1": top1,
        f"{split}_top5": 0.99,
        f"best_{split}_top1": top1,
        "seconds": {"training": 360.0},
        "seconds_to_top1": {"80": 300.0, "90": None},
        "images_per_second": 1234.5,
        "steps": 780,
        "world_size": workers,
        "parameters": parameters,
        "dataset": "cifar10",
    }
    (directory / "summary.json").write_text(json.dumps(summary))
    records = [
        {"step": 390, f"{split}/loss": 1.0, f"{split}/top1": top1 - 0.1},
        {"step": 780, f"{split}/loss": 0.5, f"{split}/top1": top1},
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return directory


def test_precision_is_shown_and_seeds_are_pooled_only_where_it_was_the_same(tmp_path):
    runs = []
    for seed, precision in enumerate(("bf16", "bf16", "fp32")):
        run = made(tmp_path / f"seed{seed}", "quickstart.yaml", ("--train.seed", seed), 0.8)
        path = run / "summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"precision": precision}))
        runs.append(run)
    found = comparison.compare(runs)
    assert [run.results["precision"] for run in found.runs] == ["bf16", "bf16", "fp32"]
    assert [len(group) for group in comparison.seeds_of(found)] == [2, 1]
    assert "precision" not in comparison.compare(runs[:2]).runs[0].results


@pytest.fixture
def unlike(tmp_path):
    """A quickstart beside a wide ResNet-8 of another recipe: twenty keys differ."""
    wide = ("--model.name", "resnet8", "--model.width", 2, "--batch.per_worker", 48)
    return [
        made(tmp_path / "quickstart-0123abcd", "quickstart.yaml", (), 0.8101),
        made(tmp_path / "resnet8-4567ef01", "resnet20.yaml", wide, 0.4567, parameters=292_954),
    ]


@pytest.mark.parametrize("width", [80, 120, 200])
def test_a_comparison_of_much_that_differs_is_readable_on_any_terminal(unlike, width):
    """Results first, then the keys; no cell is cut."""
    found = comparison.compare(unlike)
    assert len(found.changed) >= 12
    console = Console(width=width, record=True, file=io.StringIO())
    for table in tables.tables(found, width):
        console.print(table)
    text = console.export_text()
    assert max(len(line) for line in text.splitlines()) <= width
    for whole in ("81.01 %", "45.67 %", "269,722", "1,234", *found.changed, "400 steps", "[]"):
        assert whole in text, (whole, text)
    assert text.index("top-1") < text.index("parameters") < text.index(found.changed[0])


def test_a_narrow_comparison_has_a_row_for_each_run(tmp_path):
    runs = [
        made(tmp_path / f"lr{lr}", "resnet20.yaml", ("--optim.lr", lr), lr) for lr in (0.1, 0.2)
    ]
    (table,) = tables.tables(comparison.compare(runs), 200)
    assert table.row_count == 2 and [c.header for c in table.columns][-1] == "optim.lr"


def test_means_are_over_seeds_alone_with_students_interval(tmp_path):
    """Three seeds of one setting; a fourth run of one of these seeds by other workers is no
    seed."""
    for seed, top1 in ((0, 0.90), (1, 0.91), (2, 0.92)):
        made(tmp_path / f"a{seed}", "resnet20.yaml", ("--train.seed", seed), top1)
    made(tmp_path / "two-workers", "resnet20.yaml", (), 0.5, workers=2)
    other = ("--optim.lr", 0.2)
    for seed, top1 in ((0, 0.80), (1, 0.81)):
        made(tmp_path / f"b{seed}", "resnet20.yaml", (*other, "--train.seed", seed), top1)
    found = comparison.compare([tmp_path])
    first, second = comparison.over_seeds(found)
    assert (first["seeds"], first["workers"], first["optim.lr"]) == (3, 1, 0.1)
    assert first["top-1"] == pytest.approx(0.91) and first["std of top-1"] == pytest.approx(0.01)
    # t of 2 and of 1 degrees of freedom, from a printed table
    assert first["± 95 %"] == pytest.approx(4.3027 * 0.01 / math.sqrt(3), rel=1e-4)
    assert second["± 95 %"] == pytest.approx(
        12.706 * math.sqrt(0.5) * 0.01 / math.sqrt(2), rel=1e-4
    )
    assert not first["apart from the first"] and second["apart from the first"]
    page = tables.as_html(found, "seeds")
    assert '"seeds":3' in page and "Means over seeds" in page
    draw(found, tmp_path / "compare.png")
    assert (tmp_path / "compare.png").stat().st_size > 20_000


def test_what_was_evaluated_on_val_is_nowhere_called_test(tmp_path):
    on_val = ("--data.evaluate_on", "val")
    runs = [
        made(tmp_path / f"v{k}", "resnet20.yaml", (*on_val, "--optim.lr", k), 0.9, split="val")
        for k in (1, 2)
    ]
    found = comparison.compare(runs)
    texts = [tables.as_csv(found), tables.as_json(found), tables.as_markdown(found)]
    for text in texts:
        assert "val" in text and "test" not in text.replace(str(tmp_path), "")
    assert '"test/' not in tables.as_html(found, "on val")


def test_runs_of_several_commits_are_told(unlike, capsys):
    lines = [{"start": 0, "commit": "a" * 40}, {"start": 1, "commit": "b" * 40 + "+"}]
    (unlike[0] / "starts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (unlike[1] / "starts.jsonl").write_text(json.dumps(lines[0]) + "\n")
    warn_of_commits(comparison.compare(unlike[1:]))
    assert capsys.readouterr().err == ""
    warn_of_commits(comparison.compare(unlike))
    first, second, third = capsys.readouterr().err.splitlines()
    assert "not all of this was trained by the same code" in first
    assert second.startswith("  commit aaaaaaaaaa: ") and all(str(d) in second for d in unlike)
    assert third == f"  commit bbbbbbbbbb with changes: {unlike[0]}"
