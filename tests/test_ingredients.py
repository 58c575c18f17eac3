"""What a recipe may be made of besides the papers' own: each against a reference, and a training
with all of them that does not depend on the world size and goes on exactly."""

import copy

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_identical, curves, without_last_checkpoint
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dist_resnet import models, worker
from dist_resnet.config import CifarModel, Data, Optim
from dist_resnet.models.normalise import Normalise
from dist_resnet.training import evaluation, optim
from dist_resnet.training.optim import Ema
from dist_resnet.training.regularisation import Mixing, StochasticDepth

CPU = torch.device("cpu")


def batch(count=6, classes=5):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, 32, 32, generator=generator)
    return images.to(memory_format=torch.channels_last), torch.arange(count) % classes


def test_mixup_weighs_two_images_and_their_losses():
    """The authors' form of the loss: a weighted sum of two cross-entropies."""
    mixing = Mixing(Data(mix="mixup", mix_alpha=0.4), seed=0, classes=5, device=CPU)
    images, labels = batch()
    weights = []
    for step in range(4000):
        mixing.draw(step)
        weights.append(mixing.weight.item())
    beta = [mpmath.betainc(0.4, 0.4, 0, x, regularized=True) for x in sorted(weights)]
    distance = max(abs(p - (i + 0.5) / 4000) for i, p in enumerate(beta))
    assert distance < 1.63 / 4000**0.5  # Kolmogorov-Smirnov, p = 0.01
    mixing.draw(3)
    mixed, targets = mixing(images, labels)
    weight, other = weights[3], [5, 0, 1, 2, 3, 4]
    assert 0.01 < weight < 0.99 and mixed.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(mixed, weight * images + (1 - weight) * images[other], atol=1e-6)
    logits = torch.randn(6, 5)
    loss = F.cross_entropy(logits, targets, label_smoothing=0.1)
    own, others = (F.cross_entropy(logits, y, label_smoothing=0.1) for y in (labels, labels[other]))
    assert loss.item() == pytest.approx((weight * own + (1 - weight) * others).item(), rel=1e-5)


def test_cutmix_pastes_a_rectangle_and_counts_its_pixels():
    mixing = Mixing(Data(mix="cutmix", mix_share=0.5), seed=1, classes=5, device=CPU)
    images, labels = batch()
    shares, corners = [], set()
    for step in range(200):
        mixing.draw(step)
        mixed, targets = mixing(images, labels)
        pasted = (mixed == images.roll(1, 0))[0].all(0)
        assert torch.equal(mixed[:, :, pasted], images.roll(1, 0)[:, :, pasted])
        assert torch.equal(mixed[:, :, ~pasted], images[:, :, ~pasted])
        rows, columns = pasted.any(1).nonzero().flatten(), pasted.any(0).nonzero().flatten()
        assert pasted.sum() == len(rows) * len(columns)
        share = pasted.float().mean().item()
        shares.append(share)
        if share and rows[0] > 0 and rows[-1] < 31 and columns[0] > 0 and columns[-1] < 31:
            side = 2 * (int(32 * np.sqrt(1 - mixing.weight.item())) // 2)
            assert (len(rows), len(columns)) == (side, side)
            corners.add((rows[0].item(), columns[0].item()))
        assert targets[2].tolist() == pytest.approx([0, share, 1 - share, 0, 0])
    assert 70 < sum(share == 0 for share in shares) < 130 and len(corners) > 10


def test_the_average_of_weights_is_torchs():
    torch.manual_seed(0)
    model = models.build(CifarModel(name="resnet8"), 5)
    reference = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    ema, optimizer = Ema(model, 0.9), torch.optim.SGD(model.parameters(), 0.1)
    images, labels = batch()
    for step in range(1, 6):
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        ema.after(step)
        reference.update_parameters(model)
    before = copy.deepcopy(model.state_dict())
    with ema.in_place():
        for (name, mine), theirs in zip(
            model.state_dict().items(), reference.module.state_dict().values()
        ):
            assert torch.equal(mine, theirs), name
        assert not torch.equal(model.fc.weight, before["fc.weight"])
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_gradient_of_length_five_is_clipped(precision):
    """(3, 4) to the length 1; one of length 0.5 stays. Whatever the scaler's factor."""
    for gradient, expected in (([3.0, 4.0], [0.6, 0.8]), ([0.3, 0.4], [0.3, 0.4])):
        model = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(model.weight)
        optimizer = optim.build(Optim(momentum=0.0, weight_decay=0.0, clip_norm=1.0), model)
        scaler = optim.scaler(precision, CPU)
        scaler.scale(model(torch.tensor([gradient])).sum()).backward()
        optim.clip(optimizer, scaler, 1.0)
        optim.set_lr(optimizer, 1.0, 0)
        scaler.step(optimizer)
        assert (-model.weight[0]).tolist() == pytest.approx(expected, rel=1e-4)


def stepped(config, lr, gradients):
    """A 4 x 6 matrix and what becomes of it by these gradients, one a step."""
    torch.manual_seed(0)
    model = nn.Linear(6, 4, bias=False)
    before, optimizer = model.weight.detach().clone(), optim.build(config, model)
    for gradient in gradients:
        model.weight.grad = gradient.clone()
        optim.set_lr(optimizer, lr, 0)
        optimizer.step()
    return before, model.weight.detach()


def test_lars_is_the_papers():
    """You et al. 2017, algorithm 1, with the trust coefficient 0.001."""
    gradients = torch.randn(3, 4, 6)
    weight, found = stepped(Optim(name="lars", weight_decay=0.01), 2.0, gradients)
    velocity = torch.zeros_like(weight)
    for gradient in gradients:
        local = 0.001 * weight.norm() / (gradient.norm() + 0.01 * weight.norm())
        velocity = 0.9 * velocity + local * (gradient + 0.01 * weight)
        weight = weight - 2.0 * velocity
    assert torch.allclose(found, weight, atol=1e-6)


def test_adam_penalises_and_adamw_decays():
    """Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019, algorithm 2."""
    gradients = torch.randn(3, 4, 6)
    for name in ("adam", "adamw"):
        weight, found = stepped(Optim(name=name, weight_decay=0.3), 0.1, gradients)
        mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
        for t, gradient in enumerate(gradients, 1):
            gradient = gradient + (0.3 * weight if name == "adam" else 0)
            mean = 0.9 * mean + 0.1 * gradient
            square = 0.999 * square + 0.001 * gradient**2
            step = mean / (1 - 0.9**t) / ((square / (1 - 0.999**t)).sqrt() + 1e-8)
            weight = weight - 0.1 * (step + (0.3 * weight if name == "adamw" else 0))
        assert torch.allclose(found, weight, atol=1e-5), name


def test_lamb_is_the_papers():
    """You et al. 2020, algorithm 2."""
    gradients = torch.randn(3, 4, 6)
    weight, found = stepped(Optim(name="lamb", weight_decay=0.01), 0.1, gradients)
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    for t, gradient in enumerate(gradients, 1):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        step = mean / (1 - 0.9**t) / ((square / (1 - 0.999**t)).sqrt() + 1e-6) + 0.01 * weight
        weight = weight - 0.1 * weight.norm() / step.norm() * step
    assert torch.allclose(found, weight, atol=1e-5)


def test_muon_is_torchs_and_takes_convolutions_as_matrices():
    gradients = torch.randn(3, 4, 6)
    settings = dict(weight_decay=1.0, momentum=0.9, nesterov=True)
    weight, found = stepped(Optim(name="muon", **settings), 0.1, gradients)
    theirs = nn.Parameter(weight.clone())
    reference = torch.optim.Muon([theirs], lr=0.1, adjust_lr_fn="match_rms_adamw", **settings)
    for gradient in gradients:
        theirs.grad = gradient.clone()
        reference.step()
    assert (found - theirs).norm() < 0.05 * (found - weight).norm()  # bfloat16 inside of both

    conv = nn.Conv2d(3, 8, 3)
    optimizer = optim.build(Optim(name="muon", momentum=0.0, weight_decay=0.0), conv)
    before = conv.weight.detach().clone()
    conv.weight.grad, conv.bias.grad = torch.randn(8, 3, 3, 3), torch.ones(8)
    optimizer.step()
    singular = torch.linalg.svdvals((before - conv.weight.detach()).flatten(1))
    assert singular.max() < 2.5 * singular.min()  # an orthogonal step, nearly


def test_translated_answers_are_airbenchs():
    torch.manual_seed(0)
    model = models.build(CifarModel(name="resnet8"), 5).eval()
    normalise = Normalise.of([0.5] * 3, [0.2] * 3, torch.float32, CPU)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)

    def mirrored(x):
        return (model(x) + model(x.flip(-1))) / 2

    inputs = normalise(images)
    padded = F.pad(inputs, (1,) * 4, "reflect")
    moved = torch.stack([mirrored(padded[:, :, 0:32, 0:32]), mirrored(padded[:, :, 2:34, 2:34])])
    expected = 0.5 * mirrored(inputs) + 0.5 * moved.mean(0)
    found = evaluation.predict(model, images, normalise, "mirror_translate")
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, evaluation.predict(model, images, normalise, "mirror"))


def test_each_block_is_left_out_as_often_as_it_should_and_none_after_another():
    network = models.build(CifarModel(name="resnet20", stochastic_depth=0.5), 5)
    depth, left_out = StochasticDepth(network, seed=0), []
    for step in range(1000):
        depth.draw(step)
        left_out.append([block.dropped for block in network.blocks])
    table = np.array(left_out)
    expected = np.arange(1, 10) / 9 * 0.5
    assert np.abs(table.mean(0) - expected).max() < 4 * np.sqrt(0.25 / 1000)
    together = (table[:, 7] & table[:, 8]).mean()
    assert together == pytest.approx(expected[7] * expected[8], abs=0.06)  # independent


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        "--data.cutout 8 --data.mix mixup --optim.ema 0.8 --optim.clip_norm 1 --optim.name lars "
        "--optim.lr 5 --train.eval_tta mirror_translate",
        "--data.mix cutmix --data.mix_share 0.5 --optim.name muon --optim.ema 0.8 "
        "--model.stochastic_depth 0.5 --model.shortcut C --model.downsample maxpool",
        "--optim.name lamb --optim.clip_norm 0.5",
    ],
    ids=lambda settings: settings.split("name ")[1].split()[0],
)
def test_they_do_not_depend_on_the_world_size_and_go_on_exactly(
    workers, small_path, tmp_path, settings
):
    """Two workers throughout, and one that goes on where the two had saved last but once."""
    overrides = (*settings.split(), "--batch.virtual_workers", 2, "--train.max_steps", 10)
    straight = workers.train(small_path, tmp_path / "a", *overrides, size=2)
    without_last_checkpoint(straight, tmp_path / "b")
    again = workers.train(small_path, tmp_path / "b", *overrides)
    assert "resuming at step 8 (world size 2 before)" in workers.output
    assert_identical(straight, again)
    assert curves(straight) == curves(again)
    last = [r for r in curves(straight) if "test/loss" in r][-1]
    _, means, _ = workers.call(worker.evaluate, str(again), "LATEST")[0]
    assert means.figures("test") == {key: last[key] for key in means.figures("test")}
