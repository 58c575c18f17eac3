"""The networks."""

from torch import nn

from dist_resnet.config import Model
from dist_resnet.models import cifar


def build(config: Model, num_classes: int) -> nn.Module:
    """A network that maps float images (N, 3, H, W) to logits (N, num_classes)."""
    if config.family == "cifar":
        return cifar.build(config, num_classes)
    from dist_resnet.models import imagenet  # torchvision takes two seconds to import

    return imagenet.build(config, num_classes)
