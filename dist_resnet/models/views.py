"""Test-time augmentation: what is looked at for one answer."""

import torch
import torch.nn.functional as F


def views(images: torch.Tensor, tta: str) -> list[tuple[float, torch.Tensor]]:
    """What is looked at for one answer, and with which weight: images (N, 3, H, W); with 'mirror'
    their mirror images too; with 'mirror_translate' besides, with half of all weight, both moved by
    a pixel up and left, and down and right (Jordan 2024, airbench, section 3.5)."""
    seen = [images]
    if tta == "mirror_translate":
        height, width = images.shape[2:]
        padded = F.pad(images, (1, 1, 1, 1), "reflect")
        seen += [padded[:, :, y : y + height, y : y + width] for y in (0, 2)]
    weights = [1.0] if len(seen) == 1 else [0.5, 0.25, 0.25]
    if tta == "none":
        return list(zip(weights, seen))
    return [(w / 2, side) for w, view in zip(weights, seen) for side in (view, view.flip(3))]
