"""torchvision's ResNets (v1.5), with the options that large-batch and small-image training want."""

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from dist_resnet.config import ImagenetModel


def build(config: ImagenetModel, num_classes: int = 1000) -> nn.Module:
    model = torchvision.models.get_model(
        config.name,
        weights=None,
        num_classes=num_classes,
        zero_init_residual=config.zero_init_last_gamma,
    )
    if config.stem == "cifar":
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    if config.blurpool:
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d) and layer.stride[0] > 1 and layer.in_channels >= 16:
                layer.register_forward_pre_hook(lambda layer, inputs: blurred(*inputs))
    return model


def blurred(x: torch.Tensor) -> torch.Tensor:
    """Each pixel of (N, C, H, W) a mean over itself and its neighbours, with the weights 1, 2, 1 by
    1, 2, 1 and zeros beyond the edge (Zhang 2019, Triangle-3): two 2x2 means."""
    return F.avg_pool2d(F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 2, stride=1), 2, stride=1)
