"""What makes short trainings fast: the shallow network, lookahead, the flat all-reduce, the CUDA
graph; and `dist-resnet speedrun`."""

import json
import shutil
import statistics

import pytest
import torch
from conftest import assert_identical
from torch import nn

from dist_resnet import models
from dist_resnet.config import Optim, SpeedrunModel
from dist_resnet.models.normalise import Normalise
from dist_resnet.training import evaluation, optim
from dist_resnet.training.optim import Lookahead

NET = SpeedrunModel(
    family="speedrun",
    name="resnet8",
    channels=(32, 40, 48),
    dirac=True,
    bn_scale="fixed",
    bn_momentum=0.4,
)
TRICKS = """\
model: {family: speedrun, name: resnet8, channels: [24, 32, 32], activation: gelu, whiten: true,
        dirac: true, logit_scale: 0.111, bn_momentum: 0.4, bn_scale: fixed,
        whiten_bias_epochs: 1.3, bn_eps: 1.0e-9}
data: {dir: DATA, dataset: shapes, flip: alternating, pad: 2}
batch: {global: 48, per_worker: null}
optim: {lr: 0.1, momentum: 0.85, nesterov: true, bias_lr: 16, lookahead: 5}
schedule: {reference_batch: 48, steps: 18, decay: linear, final_lr: 0.01, milestones: [],
           warmup: linear, warmup_length: 5 steps}
train: {all_reduce: flat, label_smoothing: 0.2, eval_tta: mirror, log_every: 3 steps,
        evaluate_every: 9 steps, checkpoint_every: 7 steps}
tracking: {wandb: disabled, top_losses: 0}
"""


def test_the_shallow_network_is_what_its_settings_say():
    model = models.build(NET, 10)
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules()) == 8
    group = model.groups[1]
    x = torch.randn(2, 32, 8, 8)
    assert torch.allclose(group.convs[0](x)[:, :32], x) and not torch.allclose(
        group.convs[0](x)[:, 32:], x[:, :8]
    )  # dirac
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 6 and all(
        m.momentum == 0.4 and not m.weight.requires_grad and m.bias.requires_grad for m in norms
    )
    inside = group.eval()(x) - torch.relu(
        group.norms[0](nn.functional.max_pool2d(group.convs[0](x), 2))
    )
    assert inside.abs().sum() > 0 and (inside >= -1e-6).all()  # the residual branch, after its ReLU


def test_whitened_patches_are_uncorrelated_and_of_unit_variance():
    torch.manual_seed(0)
    model = models.build(NET, 10)
    images = nn.functional.avg_pool2d(
        torch.randn(64, 3, 34, 34), 3, 1
    )  # neighbours are alike, as in photographs
    model.whiten(images, epsilon=0.0)
    filtered = nn.functional.conv2d(images, model.conv.weight)[:, :12].transpose(0, 1).flatten(1)
    assert torch.allclose(filtered @ filtered.T / filtered.shape[1], torch.eye(12), atol=1e-3)
    assert (
        torch.equal(model.conv.weight[12:], -model.conv.weight[:12])
        and not model.conv.weight.requires_grad
    )


@pytest.mark.parametrize("form", [float, torch.tensor])  # a CUDA graph reads a tensor
def test_biases_have_a_learning_rate_of_their_own(form):
    model = nn.Sequential(nn.Linear(2, 2))
    groups = optim.parameter_groups(Optim(bias_lr=64, weight_decay=0.64), model)
    assert [(g["lr_factor"], g["weight_decay"]) for g in groups] == [(1.0, 0.64), (64, 0.01)]
    optimizer = optim.build(Optim(bias_lr=64, weight_decay=0.0, momentum=0.0), model)
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.ones(1, 2)).sum().backward()  # every gradient is 1
    for group in optimizer.param_groups:
        group["lr"] = form(group["lr"])
    optim.set_lr(optimizer, 0.5, 0)
    optimizer.step()
    for parameter, was, expected in zip(model.parameters(), before, (0.5, 32.0)):
        assert torch.allclose(was - parameter, torch.full_like(parameter, expected))


@pytest.mark.parametrize("form", [float, torch.tensor])
def test_the_whitening_bias_stays_to_the_bit_once_its_steps_are_over(form):
    model = nn.Sequential()
    model.conv = nn.Conv2d(3, 2, 2)
    optimizer = optim.build(Optim(momentum=0.9, nesterov=True, bias_lr=64), model, 2)
    weights, biases = [], []
    for group in optimizer.param_groups:
        group["lr"] = form(group["lr"])
    for step in range(4):
        model.conv(torch.ones(1, 3, 2, 2)).sum().backward()
        optim.set_lr(optimizer, 0.1, step)
        optimizer.step()
        weights.append(model.conv.weight.detach().clone())
        biases.append(model.conv.bias.detach().clone())
    assert not torch.equal(biases[0], biases[1]) and not torch.equal(weights[1], weights[2])
    assert torch.equal(biases[1], biases[2]) and torch.equal(biases[1], biases[3])


def test_lookahead_averages_every_few_steps_and_ends_on_the_average():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
        lookahead, slow = Lookahead(model, every=2, last_step=5), 0.0
        for step in range(1, 6):
            fast = model.weight.item() + 1
            model.weight.fill_(fast)
            lookahead.after(step)
            if step in (2, 4):
                decay = 0.95**5 * (step / 5) ** 3
                slow = decay * slow + (1 - decay) * fast
            assert model.weight.item() == pytest.approx(slow if step in (2, 4, 5) else fast)


def test_mirrored_answers_do_not_depend_on_the_side():
    torch.manual_seed(0)
    model, normalise = (
        models.build(NET, 10).eval(),
        Normalise.of([0.5] * 3, [0.2] * 3, torch.float32, torch.device("cpu")),
    )
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    once, mirrored = (
        evaluation.predict(model, x, normalise, "none") for x in (images, images.flip(3))
    )
    assert not torch.allclose(once, mirrored)
    both = evaluation.predict(model, images, normalise, "mirror")
    assert torch.allclose(both, (once + mirrored) / 2)


@pytest.mark.slow
def test_repeat_reports_every_seed_and_its_runs_resume_exactly(cli, request, shapes_dir):
    (cli.directory / "tricks.yaml").write_text(TRICKS.replace("DATA", str(shapes_dir)))
    in_process = request.getfixturevalue("command")
    command = ("repeat", "tricks.yaml", "--runs", 2, "--workers-per-node", 1, "--run-dir", "runs")
    code, output = cli(*command)
    assert code == 0 and "standard deviation" in output and "everything, s" in output, output
    report = json.loads((cli.directory / "runs/repeat.json").read_text())
    summaries = [
        json.loads((cli.directory / f"runs/seed{seed}/summary.json").read_text()) for seed in (0, 1)
    ]
    names = {path.name for path in (cli.directory / "runs").iterdir()}
    assert names == {"seed0", "seed1", "logs", "repeat.json"}  # the warm-up has gone
    assert len(list((cli.directory / "runs/logs").iterdir())) == 1  # one start of the workers
    assert [row["top-1, %"] for row in report["runs"]] == [100 * s["test_top1"] for s in summaries]
    assert report["mean"]["training, s"] == pytest.approx(
        statistics.mean(s["seconds"]["training"] for s in summaries)
    )
    assert all(
        row["everything, s"] > sum(s["seconds"].values())
        for row, s in zip(report["runs"], summaries)
    )
    code, again = cli(*command, timeout=30)
    assert (
        code == 0 and again.splitlines()[-1] == output.splitlines()[-1] and "step " not in again
    ), again
    code, again = in_process(*command, "--json")
    assert code == 0 and json.loads(again) == report
    (cli.directory / "cut").mkdir()
    shutil.copytree(
        cli.directory / "runs/seed1",
        cli.directory / "cut/seed1",
        ignore=shutil.ignore_patterns("summary.json", "seconds.json", "lock*", "*18.pt"),
    )
    code, output = cli(*command[:-1], "cut", "--train.seed", 1, "--runs", 1)
    assert code == 0 and "resuming at step 14" in output, output
    assert_identical(cli.directory / "runs/seed1", cli.directory / "cut/seed1")
