"""Parameter groups, optimizer, gradient scaler and clipping, averages of weights."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from inspect import unwrap
from typing import Any

import torch
from torch import nn

from dist_resnet.config import Optim
from dist_resnet.models.speedrun import WHITENING_BIAS

OF_ADAM = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def build(
    config: Optim, model: nn.Module, whiten_bias_steps: float = math.inf
) -> torch.optim.Optimizer:
    """SGD as in He et al. 2015, Adam with L2 regularisation, AdamW, or one of timm's. The learning
    rate is set at every step, by `set_lr`."""
    groups = parameter_groups(config, model, whiten_bias_steps)
    if config.name == "sgd":
        optimizer = SGD(
            groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True
        )
        # left to itself it keeps uninitialised memory where fp16's first step overflows and is
        # skipped
        if config.momentum:
            for parameter in (p for group in groups for p in group["params"]):
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    betas = (config.momentum, config.adam_beta2)
    if config.name in OF_ADAM:
        return OF_ADAM[config.name](groups, lr=config.lr, betas=betas, fused=True)
    return _of_timm(config, groups, betas)


class SGD(torch.optim.SGD):
    """torch's, without the wrappers that keep torch.compile out of its methods: they import
    torch._dynamo, for a second of every start, and no optimizer is compiled here."""

    add_param_group = unwrap(torch.optim.SGD.add_param_group)
    state_dict = unwrap(torch.optim.SGD.state_dict)
    load_state_dict = unwrap(torch.optim.SGD.load_state_dict)
    zero_grad = unwrap(torch.optim.SGD.zero_grad)
    step = torch.no_grad()(unwrap(torch.optim.SGD.step))


def _of_timm(
    config: Optim, groups: list[dict], betas: tuple[float, float]
) -> torch.optim.Optimizer:
    """LARS: You et al. 2017, "Large batch training of convolutional networks", section 4. LAMB: You
    et al. 2020, algorithm 2. Muon: Jordan 2024, of each convolution as a matrix of its filters; its
    steps are scaled so that learning rates are AdamW's (Liu et al. 2025, section 2.2), which takes
    vectors and what is too narrow."""
    try:
        from timm.optim import Lamb, Lars, Muon
    except ImportError:
        raise RuntimeError(
            f"optim.name = {config.name!r} is timm's, which is not installed: "
            "pip install 'dist-resnet[optimizers]'"
        ) from None
    inertia: dict[str, Any] = {"momentum": config.momentum, "nesterov": config.nesterov}
    if config.name == "lars":
        return Lars(groups, lr=config.lr, **inertia)
    if config.name == "muon":
        return Muon(groups, lr=config.lr, betas=betas, ns_coefficients="original", **inertia)
    for group in groups:  # LAMB counts its steps here; made now, a warm-up can take them back
        group["step"] = torch.zeros(())
    return Lamb(groups, lr=config.lr, betas=betas, max_grad_norm=None)


def parameter_groups(
    config: Optim, model: nn.Module, whiten_bias_steps: float = math.inf
) -> list[dict]:
    """Weights, BN's gammas and biases (BN's among them), in as few groups as their settings allow:
    each is a launch. The last two are vectors and may go without weight decay; biases may have a
    learning rate of their own, and then keep the product of it and their weight decay (airbench
    does so). The whitening convolution's is trained as weights are where it is for these steps
    only (airbench); its gradient is computed after them too, so that every step is the same."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    biases = {name: p for name, p in trained if name.endswith("bias")}
    brief = [name for name in biases if name.endswith(WHITENING_BIAS)]
    whitening = [biases.pop(name) for name in brief if whiten_bias_steps < math.inf]
    gammas = [p for name, p in trained if p.ndim <= 1 and not name.endswith("bias")]
    weights = [p for _, p in trained if p.ndim > 1]
    decay = config.weight_decay if config.decay_norm_and_bias else 0.0
    groups: dict[tuple[float, float, float], list[nn.Parameter]] = {}
    for parameters, weight_decay, lr_factor, steps in (
        (weights, config.weight_decay, 1.0, math.inf),
        (gammas, decay, 1.0, math.inf),
        (list(biases.values()), decay / config.bias_lr, config.bias_lr, math.inf),
        (whitening, decay, 1.0, whiten_bias_steps),
    ):
        if parameters:
            groups.setdefault((weight_decay, lr_factor, steps), []).extend(parameters)
    return [
        {"params": parameters, "weight_decay": weight_decay, "lr_factor": lr_factor, "steps": steps}
        for (weight_decay, lr_factor, steps), parameters in groups.items()
    ]


def set_lr(optimizer: torch.optim.Optimizer, lr: float, step: int) -> None:
    """For the update that makes step `step` into step + 1. Parameters whose steps are over have a
    rate of 0: they stay as they are, to the bit, whatever their momentum."""
    for group in optimizer.param_groups:
        rate = lr * group["lr_factor"] if step < group["steps"] else 0.0
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)  # where a CUDA graph reads it
        else:
            group["lr"] = rate


def scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss for fp16 only; elsewhere it passes everything through."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def clip(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, norm: float) -> None:
    """Scale the whole gradient down to this Euclidean norm where it is longer (Pascanu et al. 2013,
    algorithm 1), without waiting for the device. norm: 0 for never."""
    if norm:
        scaler.unscale_(optimizer)
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(weights, norm, foreach=True)


def moving_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights and BN statistics, by their names in the state dict."""
    return {name: t for name, t in model.state_dict().items() if t.is_floating_point()}


class Lookahead:
    """Every `every` steps the weights and BN statistics are set to their moving average (Zhang et
    al. 2019), which follows them ever
    less: its decay rises as 0.95^5 (t/T)^3 and is 1 at the last step (Jordan 2024, airbench)."""

    def __init__(self, model: nn.Module, every: int, last_step: int) -> None:
        self.every, self.last_step = every, last_step
        self.fast = list(moving_tensors(model).values()) if every else []
        self.slow = [t.clone() for t in self.fast]

    @torch.no_grad()
    def after(self, step: int) -> None:
        """To be called when `step` updates are done."""
        if not self.every or (step % self.every and step != self.last_step):
            return
        if step < self.last_step:
            torch._foreach_lerp_(self.slow, self.fast, 1 - 0.95**5 * (step / self.last_step) ** 3)
        torch._foreach_copy_(self.fast, self.slow)

    def restart(self) -> None:
        """The average begins at the weights as they are now."""
        self.restore(self.fast)

    def restore(self, slow: list[torch.Tensor]) -> None:
        _copy(slow, self.slow)


class Ema:
    """An exponential moving average of weights and BN statistics (Polyak and Juditsky 1992; that of
    torch.optim.swa_utils.AveragedModel, which starts from the weights after the first step). It is
    what is evaluated, and what a checkpoint has as its model."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        named = moving_tensors(model) if decay else {}
        self.trained = list(named.values())
        self.averaged = {name: t.clone() for name, t in named.items()}

    @torch.no_grad()
    def after(self, step: int) -> None:
        """To be called when `step` updates are done."""
        if self.decay:
            weight = 1 - self.decay if step > 1 else 1.0
            torch._foreach_lerp_(list(self.averaged.values()), self.trained, weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The network holds the average meanwhile."""
        before = [t.clone() for t in self.trained]
        _copy(self.averaged.values(), self.trained)
        try:
            yield
        finally:
            _copy(before, self.trained)

    def restore(self, trained: list[torch.Tensor]) -> None:
        """Go on from a checkpoint, of whose model the network holds the weights: the average."""
        _copy(self.trained, self.averaged.values())
        _copy(trained, self.trained)


def _copy(these: Iterable[torch.Tensor], to: Iterable[torch.Tensor]) -> None:
    for source, target in zip(these, to, strict=True):
        target.copy_(source)
