"""torchvision's ResNets (v1.5), with the options that large-batch and small-image training want."""

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
    return model
