"""Training from Python."""

import pytest
import yaml
from conftest import TEST

import dist_resnet


@pytest.mark.slow
def test_train_read_evaluate_and_load(small_path, tmp_path, capsys):
    config = yaml.safe_load(small_path.read_text()) | {"tracking": {"wandb": "disabled"}}
    config["train"] |= {"max_steps": 4}
    run = dist_resnet.train(config, tmp_path / "run", workers=1)
    assert "step 4/4" in capsys.readouterr().out and run.summary["steps"] == 4
    assert [r["step"] for r in run.metrics if "lr" in r] == [2, 4]
    evaluated = run.evaluate("test")
    assert evaluated["samples"] == TEST and evaluated["top1"] == run.summary["test_top1"]
    assert len(run.load().classes) == 10
    with pytest.raises(RuntimeError, match=r"^dist-resnet train: error: .*optim.lr 0.05 there"):
        dist_resnet.train(config | {"optim": {"lr": 0.1}}, tmp_path / "run")
    with pytest.raises(RuntimeError, match=r"unknown key 'optim.lrr'"):
        dist_resnet.train(config | {"optim": {"lrr": 0.1}}, tmp_path / "other")
