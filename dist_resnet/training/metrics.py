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


COLUMNS = ("loss", "top1", "top5", "bad_steps", "samples")  # of the sums


class Sums:
    """Sums over batches, kept on the device: adding makes no host synchronisation.

    A row for each of this rank's virtual workers. All ranks' rows are added in the order of the
    virtual workers' numbers, so that the sums do not depend on the world size."""

    def __init__(self, device: torch.device, parts: int = 1) -> None:
        self.totals = torch.zeros((parts, len(COLUMNS)), dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(
        self, logits: torch.Tensor, labels: torch.Tensor, mean_loss: torch.Tensor, part: int = 0
    ) -> None:
        """logits: (N, classes); labels: int64 (N,); mean_loss: scalar over these N samples."""
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        correct = best == labels[:, None]
        loss = mean_loss.double()
        found = {
            "loss": loss * len(labels),
            "top1": correct[:, 0].sum().double(),
            "top5": correct.sum().double(),
            "bad_steps": (~torch.isfinite(loss)).double(),
            "samples": torch.full_like(loss, len(labels)),
        }
        self.totals[part] += torch.stack([found[column] for column in COLUMNS])

    def table(self, world: World) -> list[list[float]]:
        """All virtual workers' sums, a row each. One all-gather, one host sync."""
        return world.stack(self.totals).flatten(0, 1).tolist()

    def reduce(self, world: World) -> Means:
        """The means over all ranks; the sums start again from zero."""
        rows = self.table(world)
        self.totals.zero_()
        total = {name: sum(column) for name, column in zip(COLUMNS, zip(*rows))}
        n = max(total["samples"], 1)
        return Means(
            loss=total["loss"] / n,
            top1=total["top1"] / n,
            top5=total["top5"] / n,
            samples=int(total["samples"]),
            bad_steps=total["bad_steps"] / len(rows),
        )

    def restore(self, table: list[list[float]], world: World) -> None:
        """Go on from a `table`. Where it was of other virtual workers, the first takes it all."""
        parts = len(self.totals)
        rows = torch.tensor(table, dtype=torch.float64)
        if len(rows) == parts * world.size:
            self.totals.copy_(rows[world.rank * parts :][:parts])
        elif world.rank == 0:
            self.totals[0] = rows.sum(0)
