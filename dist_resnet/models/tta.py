"""Test-time augmentation: one answer from several views of an image."""

from collections.abc import Callable

import torch
import torch.nn.functional as F


def answer(
    network: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, tta: str
) -> torch.Tensor:
    """Logits, float32 (N, classes), of normalised images (N, 3, H, W): the weighted mean over their
    `views`."""
    given = (weight * network(view).float() for weight, view in views(images, tta))
    return torch.stack(list(given)).sum(0)


def views(images: torch.Tensor, tta: str) -> list[tuple[float, torch.Tensor]]:
    """What is looked at, and with which weight: the images; with 'mirror' their mirror images too;
    with 'mirror_translate' besides, with half of all weight, both moved by a pixel up and left, and
    down and right (Jordan 2024, airbench, "multi-crop evaluation")."""
    seen = [(1.0, images)]
    if tta == "mirror_translate":
        height, width = images.shape[2:]
        padded = F.pad(images, (1, 1, 1, 1), "reflect")
        moved = (padded[:, :, y : y + height, y : y + width] for y in (0, 2))
        seen = [(0.5, images), *((0.25, view) for view in moved)]
    if tta == "none":
        return seen
    return [(weight / 2, side) for weight, view in seen for side in (view, view.flip(3))]
