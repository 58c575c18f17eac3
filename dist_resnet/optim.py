"""Parameter groups, optimizer, gradient scaler."""

import torch
from torch import nn

from dist_resnet.config import Optim


def build(config: Optim, model: nn.Module) -> torch.optim.Optimizer:
    """SGD as in He et al. 2015, or Adam with L2 regularisation. The learning rate is set at every step."""
    groups = parameter_groups(config, model)
    if config.name == "sgd":
        optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True)
        if config.momentum:  # left to itself it keeps uninitialised memory where fp16's first step overflows and is skipped
            for parameter in (p for group in groups for p in group["params"]):
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    return torch.optim.Adam(groups, lr=config.lr, betas=(config.momentum, config.adam_beta2), fused=True)


def parameter_groups(config: Optim, model: nn.Module) -> list[dict]:
    """Weights, and apart from them BN's parameters and biases: those are the vectors, whatever they are called."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1],
         "weight_decay": config.weight_decay if config.decay_norm_and_bias else 0.0},
    ]


def scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss for fp16 only; elsewhere it passes everything through."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
