"""Parameter groups, optimizer, gradient scaler, lookahead."""

import torch
from torch import nn

from dist_resnet.config import Optim


def build(config: Optim, model: nn.Module) -> torch.optim.Optimizer:
    """SGD as in He et al. 2015, or Adam with L2 regularisation. The learning rate is set at every
    step, by `set_lr`."""
    groups = parameter_groups(config, model)
    if config.name == "sgd":
        optimizer = torch.optim.SGD(
            groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True
        )
        # left to itself it keeps uninitialised memory where fp16's first step overflows and is
        # skipped
        if config.momentum:
            for parameter in (p for group in groups for p in group["params"]):
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    return torch.optim.Adam(
        groups, lr=config.lr, betas=(config.momentum, config.adam_beta2), fused=True
    )


def parameter_groups(config: Optim, model: nn.Module) -> list[dict]:
    """Weights, BN's gammas and biases (BN's among them), in as few groups as their settings allow:
    each is a launch. The last two are vectors and may go without weight decay; biases may have a
    learning rate of their own, and then keep the product of it and their weight decay (airbench
    does so)."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    biases = [p for name, p in trained if name.endswith("bias")]
    gammas = [p for name, p in trained if p.ndim <= 1 and not name.endswith("bias")]
    weights = [p for _, p in trained if p.ndim > 1]
    decay = config.weight_decay if config.decay_norm_and_bias else 0.0
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameters, weight_decay, lr_factor in (
        (weights, config.weight_decay, 1.0),
        (gammas, decay, 1.0),
        (biases, decay / config.bias_lr, config.bias_lr),
    ):
        if parameters:
            groups.setdefault((weight_decay, lr_factor), []).extend(parameters)
    return [
        {"params": parameters, "weight_decay": weight_decay, "lr_factor": lr_factor}
        for (weight_decay, lr_factor), parameters in groups.items()
    ]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr * group["lr_factor"])  # where a CUDA graph reads it
        else:
            group["lr"] = lr * group["lr_factor"]


def scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss for fp16 only; elsewhere it passes everything through."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


class Lookahead:
    """Every `every` steps the weights and BN statistics are set to their moving average (Zhang et
    al. 2019), which follows them ever
    less: its decay rises as 0.95^5 (t/T)^3 and is 1 at the last step (Jordan 2024, airbench)."""

    def __init__(self, model: nn.Module, every: int, last_step: int) -> None:
        self.every, self.last_step = every, last_step
        self.fast = (
            [t for t in model.state_dict().values() if t.is_floating_point()] if every else []
        )
        self.slow = [t.clone() for t in self.fast]

    @torch.no_grad()
    def after(self, step: int) -> None:
        """To be called when `step` updates are done."""
        if not self.every or (step % self.every and step != self.last_step):
            return
        if step < self.last_step:
            torch._foreach_lerp_(self.slow, self.fast, 1 - 0.95**5 * (step / self.last_step) ** 3)
        torch._foreach_copy_(self.fast, self.slow)

    def restore(self, slow: list[torch.Tensor]) -> None:
        for mine, saved in zip(self.slow, slow, strict=True):
            mine.copy_(saved)
