"""configs/speedrun.yaml against airbench94 (Jordan 2024, arXiv:2404.00498; legacy/airbench94.py of
its repository), whose network, optimizer and schedule are written down here in plain torch. With
our shortcut; theirs has none."""

from itertools import pairwise
from math import ceil, inf

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from torch import nn

from dist_resnet import models, worker
from dist_resnet.config import config_file
from dist_resnet.config.schedule import plan
from dist_resnet.data import loader
from dist_resnet.runtime import distributed
from dist_resnet.runtime.signals import StopSignal
from dist_resnet.training import loop, optim
from dist_resnet.training.progress import Progress

SPEEDRUN = ROOT / "configs/speedrun.yaml"
LR, MOMENTUM, DECAY, BIAS_SCALER = 11.5, 0.85, 0.0153, 64  # per 1,024 samples, decoupled
KILOSTEP = 1024 * (1 + 1 / (1 - MOMENTUM))  # what Nesterov's momentum makes of a constant gradient
WHITEN_BIAS_EPOCHS = 3
STEPS, BATCH, WIDTHS = 32, 64, (24, 32, 40)  # of the comparison; an epoch has 9 steps


def rate(step: int, steps: int) -> float:
    """Of the peak: up from 0.2 in 23 % of the steps, down to 0.07 in the rest."""
    up = int(0.23 * steps)
    return float(np.interp(step, [0, up, steps], [0.2, 1.0, 0.07]))


def test_every_steps_learning_rate_is_airbenchs():
    """But for one step: theirs has the peak in step 109, ours in step 110 too."""
    ours = plan(config_file.load(SPEEDRUN, []), 1, 50_000)
    assert ours.last_step == ceil(9.9 * ours.steps_per_epoch) == 476
    assert ours.whiten_bias_steps == 3 * 48
    peak = 1024 * LR / KILOSTEP  # of a mean of losses
    for step in range(476):
        assert ours.lr_at(step) == pytest.approx(peak * rate(step, 476), rel=0.003)


def test_settings_that_few_steps_do_not_show_are_airbenchs():
    config = config_file.load(SPEEDRUN, [])
    network = models.build(config.model, 10)
    groups = optim.parameter_groups(config.optim, network, whiten_bias_steps=144)
    decay = pytest.approx(DECAY / LR, rel=1e-4)  # of a mean of losses
    assert [(g["lr_factor"], g["weight_decay"], g["steps"]) for g in groups] == [
        (1, decay, inf),
        (BIAS_SCALER, pytest.approx(DECAY / LR / BIAS_SCALER, rel=1e-4), inf),
        (1, decay, 144),
    ]
    assert groups[2]["params"] == [network.conv.bias]
    assert all(m.eps == 1e-12 for m in network.modules() if isinstance(m, nn.BatchNorm2d))


class Group(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding="same", bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding="same", bias=False)
        self.norm1, self.norm2 = (
            nn.BatchNorm2d(outputs, eps=1e-12, momentum=1 - 0.6) for _ in range(2)
        )

    def forward(self, x):
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return x + F.gelu(self.norm2(self.conv2(x)))  # theirs without `x +`


class Airbench(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.whitening = nn.Conv2d(3, 24, 2)
        self.groups = nn.ModuleList(Group(i, o) for i, o in pairwise((24, *WIDTHS)))
        self.linear = nn.Linear(WIDTHS[-1], 10, bias=False)

    def forward(self, x):
        x = F.gelu(self.whitening(x))
        for group in self.groups:
            x = group(x)
        return self.linear(F.max_pool2d(x, 3).flatten(1)) / 9

    def start_as(self, network: nn.Module) -> None:
        """From the very weights of ours."""
        self.whitening.load_state_dict(network.conv.state_dict())
        assert not self.whitening.bias.any()
        self.linear.load_state_dict(network.fc.state_dict())
        for mine, group in zip(self.groups, network.groups, strict=True):
            for conv, theirs in zip((mine.conv1, mine.conv2), group.convs, strict=True):
                conv.load_state_dict(theirs.state_dict())
                identity = torch.eye(conv.in_channels)
                assert torch.equal(conv.weight[: conv.in_channels, :, 1, 1], identity)


class Trainer:
    """Their optimizer: steps over sums of losses; weight decay independent of the learning rate."""

    def __init__(self, network: Airbench) -> None:
        self.network, self.step = network, 0
        lr, wd = LR / KILOSTEP, DECAY * BATCH / KILOSTEP
        biases = [norm.bias for g in network.groups for norm in (g.norm1, g.norm2)]
        others = [w for g in network.groups for w in (g.conv1.weight, g.conv2.weight)]
        others += [network.whitening.bias, network.linear.weight]
        self.optimizer = torch.optim.SGD(
            [
                {"params": biases, "lr": lr * BIAS_SCALER, "weight_decay": wd / lr / BIAS_SCALER},
                {"params": others, "lr": lr, "weight_decay": wd / lr},
            ],
            momentum=MOMENTUM,
            nesterov=True,
        )
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.slow = {name: t.clone() for name, t in network.state_dict().items()}

    def train(self, images, labels, epoch: int, rate: float) -> float:
        """A step; returns the mean loss before it."""
        self.network.whitening.bias.requires_grad = epoch < WHITEN_BIAS_EPOCHS
        for group, peak in zip(self.optimizer.param_groups, self.peaks):
            group["lr"] = peak * rate
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=0.2, reduction="sum")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        if self.step % 5 == 0:
            self.look_ahead(0.95**5 * (self.step / STEPS) ** 3)
        if self.step == STEPS:
            self.look_ahead(1.0)
        return loss.item() / len(labels)

    @torch.no_grad()
    def look_ahead(self, decay: float) -> None:
        for name, fast in self.network.state_dict().items():
            if fast.is_floating_point():
                self.slow[name].mul_(decay).add_(fast, alpha=1 - decay)
                fast.copy_(self.slow[name])


def both(run_dir) -> tuple[list[float], list[float], dict[str, tuple[float, float]]]:
    """(our losses, theirs, of some tensors in the end: size, and how far theirs is from ours), in a
    worker."""
    config = config_file.load(run_dir / "config.yaml")
    with (
        distributed.connect("cpu", 120) as world,
        loader.betons_of(config, run_dir, world) as (data_dir, betons),
    ):
        config, _ = worker.settle(config, betons, world)
        run = worker.build(config, run_dir, data_dir, betons, world, StopSignal(), Progress())
        mine, theirs = run.model.module, Airbench()
        theirs.start_as(mine)
        trainer = Trainer(theirs)
        batches, ours, reference = run.train_data.batches, [], []

        def recorded(ids, epoch):
            for images, labels in batches(ids, epoch):
                rate = run.plan.lr_at(run.progress.step) / run.plan.peak_lr
                reference.append(trainer.train(run.normalise(images), labels, epoch, rate))
                yield images, labels

        run.train_data.batches = recorded
        while run.progress.step < STEPS:
            for step in loop.train_epoch(run):
                ours.append(run.sums.reduce(world).loss)
                if step == STEPS:
                    break
        world.barrier()
    pairs = {
        "whitening's bias": (mine.conv.bias, theirs.whitening.bias),
        "variance": (mine.groups[0].norms[1].running_var, theirs.groups[0].norm2.running_var),
        "last layer": (mine.fc.weight, theirs.linear.weight),
    }
    return (
        ours,
        reference,
        {n: (a.norm().item(), (a - b).norm().item()) for n, (a, b) in pairs.items()},
    )


@pytest.mark.slow
def test_a_training_has_airbenchs_losses(workers, shapes_dir, tmp_path):
    settings = {
        "model.channels": list(WIDTHS),
        "data.dir": shapes_dir,
        "data.dataset": "shapes",
        "batch.global": BATCH,
        "scaling.milestones": "steps",
        "schedule.steps": STEPS,
        "schedule.warmup_length": "8 steps",
        "train.precision": "fp32",
    }
    words = [word for key, value in settings.items() for word in (f"--{key}", value)]
    workers.make(SPEEDRUN, tmp_path / "run", *words)
    [(ours, theirs, tensors)] = workers.call(both, tmp_path / "run")
    assert len(ours) == len(theirs) == STEPS
    assert ours == pytest.approx(theirs, abs=1e-4)  # a weight decay 2 % off makes 3e-4
    rounding = {"whitening's bias": 0.01, "variance": 1.5e-4, "last layer": 5e-5}
    for name, (size, apart) in tensors.items():
        assert size > 0 and apart < rounding[name] * size, name
