"""The networks."""

from torch import nn

from dist_resnet.config import CifarModel, ImagenetModel, Model, SpeedrunModel
from dist_resnet.models import cifar, speedrun


def build(config: Model, num_classes: int) -> nn.Module:
    """A network that maps float images (N, 3, H, W) to logits (N, num_classes)."""
    model: nn.Module
    if isinstance(config, CifarModel):
        model = cifar.build(config, num_classes)
    elif isinstance(config, SpeedrunModel):
        model = speedrun.SpeedrunResNet(config, num_classes)
    else:
        assert isinstance(config, ImagenetModel)
        from dist_resnet.models import imagenet  # torchvision takes two seconds to import

        model = imagenet.build(config, num_classes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked = (
                None  # nobody reads it, and it costs a kernel launch per layer and step
            )
            module.momentum, module.eps = config.bn_momentum, config.bn_eps
            module.weight.requires_grad = config.bn_scale == "trained"
    return model
