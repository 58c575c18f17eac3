"""Loss, top-1 and top-5 as sums on the device; the only metric all-reduce."""

from dataclasses import dataclass

import torch

from dist_resnet.runtime.distributed import World


@dataclass(frozen=True)
class Means:
    """Over `samples` samples of all ranks: mean loss, and fractions of correct answers."""

    loss: float
    top1: float
    top5: float
    samples: int
    bad_steps: float  # steps with a non-finite loss, mean over the ranks

    def figures(self, part: str) -> dict[str, float]:
        """What is logged of them, under 'train/...', 'val/...' or 'test/...'."""
        return {
            f"{part}/loss": self.loss,
            f"{part}/top1": self.top1,
            f"{part}/top5": self.top5,
            f"{part}/top1_error": 1 - self.top1,
            f"{part}/top5_error": 1 - self.top5,
        }


class Sums:
    """Sums over batches, kept on the device: adding makes no host synchronisation."""

    def __init__(self, device: torch.device) -> None:
        self.totals = torch.zeros(5, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, logits: torch.Tensor, labels: torch.Tensor, mean_loss: torch.Tensor) -> None:
        """logits: (N, classes); labels: int64 (N,); mean_loss: scalar over these N samples."""
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        correct = best == labels[:, None]
        loss = mean_loss.double()
        self.totals += torch.stack(
            [
                loss * len(labels),
                correct[:, 0].sum().double(),
                correct.sum().double(),
                (~torch.isfinite(loss)).double(),
                torch.full_like(loss, len(labels)),
            ]
        )

    def total(self, world: World) -> list[float]:
        """The sums over all ranks. One all-reduce, one host sync."""
        return world.sum(self.totals.clone()).tolist()

    def reduce(self, world: World) -> Means:
        """The means over all ranks; the sums start again from zero."""
        loss, top1, top5, bad, samples = self.total(world)
        self.totals.zero_()
        n = max(samples, 1)
        return Means(loss / n, top1 / n, top5 / n, int(samples), bad / world.size)

    def restore(self, total: list[float], world: World) -> None:
        """Go on from a `total`, whatever number of ranks it was taken over: rank 0 takes it all."""
        if world.rank == 0:
            self.totals.copy_(torch.tensor(total, dtype=torch.float64))
