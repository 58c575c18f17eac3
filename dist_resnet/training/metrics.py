"""Loss, top-1 and top-5 as sums on the device; the only metric all-reduce."""

import math
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


RANKS = 5  # a label may be the best answer, the second best ... the fifth
COLUMNS = ("loss", "top1", "top5", "bad_steps", "samples")  # of the sums


class Sums:
    """Sums over batches, kept on the device: adding takes few launches, and no host
    synchronisation.

    A row for each of this rank's virtual workers. All ranks' rows are added in the order of the
    virtual workers' numbers, so that the sums do not depend on the world size."""

    def __init__(self, device: torch.device, parts: int = 1) -> None:
        self.parts = parts
        self.losses = torch.zeros(parts, dtype=torch.float64, device=device)
        self.finite = torch.zeros(parts, dtype=torch.float64, device=device)  # losses that are
        self.hits = torch.zeros((parts, RANKS), dtype=torch.int64, device=device)  # the k-th best
        self._samples, self._steps = [0] * parts, [0] * parts

    @torch.no_grad()
    def add(
        self, logits: torch.Tensor, labels: torch.Tensor, mean_loss: torch.Tensor, part: int = 0
    ) -> None:
        """What the device counts of a batch; a CUDA graph may hold it. logits: (N, classes);
        labels: int64 (N,); mean_loss: scalar over these N samples."""
        ranks = min(RANKS, logits.shape[1])
        best = logits.topk(ranks, dim=1).indices
        self.hits[part, :ranks] += (best == labels[:, None]).sum(0)
        self.losses[part].add_(mean_loss, alpha=len(labels))
        self.finite[part] += mean_loss < math.inf  # neither NaN nor inf: no loss is negative

    def count(self, samples: int, part: int = 0) -> None:
        """What the host knows of a batch: to be called for every `add`."""
        self._samples[part] += samples
        self._steps[part] += 1

    def clear(self) -> None:
        for tensor in self.state():
            tensor.zero_()
        self._samples, self._steps = [0] * self.parts, [0] * self.parts

    def state(self) -> list[torch.Tensor]:
        """What the device counts, in the memory that a CUDA graph holds on to."""
        return [self.losses, self.finite, self.hits]

    def table(self, world: World) -> list[list[float]]:
        """All virtual workers' sums, a row of COLUMNS each. One all-gather, one host sync."""
        steps, samples = torch.tensor([self._steps, self._samples], dtype=torch.float64).to(
            self.losses.device
        )
        top1, top5 = self.hits[:, 0].double(), self.hits.sum(1).double()
        columns = torch.stack([self.losses, top1, top5, steps - self.finite, samples], 1)
        return world.stack(columns).flatten(0, 1).tolist()

    def reduce(self, world: World) -> Means:
        """The means over all ranks; the sums start again from zero."""
        rows = self.table(world)
        self.clear()
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
        rows = torch.tensor(table, dtype=torch.float64)
        if len(rows) == self.parts * world.size:
            self._set(rows[world.rank * self.parts :][: self.parts])
        elif world.rank == 0:
            first = torch.zeros((self.parts, len(COLUMNS)), dtype=torch.float64)
            first[0] = rows.sum(0)
            self._set(first)

    def _set(self, rows: torch.Tensor) -> None:
        """rows: (parts, COLUMNS), on the CPU."""
        loss, top1, top5, bad_steps, samples = rows.unbind(1)
        self.losses.copy_(loss)
        self.finite.copy_(-bad_steps)
        self.hits.zero_()
        self.hits[:, 0] = top1.long()
        self.hits[:, 1] = (top5 - top1).long()
        self._samples, self._steps = [int(n) for n in samples.tolist()], [0] * self.parts
