"""What comes before a network: uint8 images made zero-mean and unit-variance in the training
dtype."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Normalise:
    """uint8 images (N, 3, H, W) -> (x / 255 - mean) / std in the training dtype, on the device they
    are on. Images that come in a floating type are normalised already."""

    mean: torch.Tensor  # float32 (1, 3, 1, 1), in units of uint8
    scale: torch.Tensor
    dtype: torch.dtype

    @classmethod
    def of(
        cls, mean: list[float], std: list[float], dtype: torch.dtype, device: torch.device
    ) -> "Normalise":
        """mean, std: of each colour, of images scaled to [0, 1]."""
        mean_, std_ = (
            255 * torch.tensor(v, dtype=torch.float32, device=device).view(1, 3, 1, 1)
            for v in (mean, std)
        )
        return cls(mean_, 1 / std_, dtype)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if images.is_floating_point():
            return images
        return ((images.float() - self.mean) * self.scale).to(self.dtype)

    def table(self) -> torch.Tensor:
        """What each of the 256 values becomes in each colour, (256, 3), for a kernel that only
        looks it up."""
        values = torch.arange(256, dtype=torch.uint8, device=self.mean.device)
        return self(values.view(256, 1, 1, 1).expand(256, 3, 1, 1)).reshape(256, 3)
