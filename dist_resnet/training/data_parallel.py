"""Data parallelism: a network whose gradients are averaged over the workers, in DDP's buckets, all
at once, or all at once in an order that does not depend on the world size."""

import warnings

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from dist_resnet.config import Config, Train
from dist_resnet.runtime.distributed import World
from dist_resnet.runtime.ordered_sum import OrderedSum


def data_parallel(
    model: nn.Module, config: Config, parts: int, world: World
) -> "BucketedDDP | FlatAllReduce":
    """Wrap a network. Every rank starts from rank 0's weights.

    In a step each rank goes `parts` times forward and backward, once for each of its virtual
    workers, and calls `collect` after each; then all call `average_gradients`."""
    train = config.train
    flat = train.all_reduce in ("flat", "ordered") or config.batch.virtual_workers
    if flat or config.drops_blocks:  # DDP's buckets would wait for gradients that do not come
        return FlatAllReduce(model, config, parts, world)
    return BucketedDDP(model, train, world)


class BucketedDDP(DistributedDataParallel):
    """DDP, with its gradient buckets settled.

    After its first backward pass DDP sorts them anew, which changes the order in which three or
    more ranks' gradients are added. One pass before the first step, in eval mode, so that it leaves
    no trace, makes every step of a fresh and of a resumed training add in the same order. Where the
    graph is said to be static, DDP sorts them one pass later."""

    def __init__(self, model: nn.Module, config: Train, world: World) -> None:
        with warnings.catch_warnings():
            # torch 2.15 renames broadcast_buffers; 2.11 has only this name
            warnings.simplefilter("ignore", FutureWarning)
            super().__init__(
                model,
                device_ids=[world.device] if world.device.type == "cuda" else None,
                bucket_cap_mb=config.bucket_mib,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                static_graph=config.static_graph,
            )
        if config.gradient_type == "bf16":
            self.register_comm_hook(None, bf16_compress_hook)
        self.eval()
        for _ in range(2 if config.static_graph else 1):
            self(torch.zeros(1, 3, 32, 32, device=world.device)).sum().backward()
            self.zero_grad(set_to_none=True)

    def collect(self) -> None:
        """The backward pass has done it."""

    def average_gradients(self) -> None:
        """The backward pass has done it."""


class FlatAllReduce(nn.Module):
    """All gradients in one buffer, summed after the backward passes by one all-reduce, or in the
    order of the virtual workers' numbers (OrderedSum). For small networks, whose many buckets and
    hooks take longer than they hide. Nothing here depends on the host, so that a CUDA graph may
    hold it.

    With virtual workers, BN's running statistics travel along: each starts from the same ones, and
    the mean of what they become is everybody's."""

    def __init__(self, model: nn.Module, config: Config, parts: int, world: World) -> None:
        super().__init__()
        self.module, self.world, self.parts = model, world, parts
        world.broadcast([t for t in model.state_dict().values() if t.is_floating_point()])
        self.trained = [p for p in model.parameters() if p.requires_grad]
        virtual = config.batch.virtual_workers is not None
        moving = [b for b in model.buffers() if b.is_floating_point()]
        self.statistics = moving if virtual else []
        self._before = [torch.empty_like(b) for b in self.statistics]  # what each part starts from
        self._part = 0
        size = sum(t.numel() for t in [*self.trained, *self.statistics])
        self.ordered = virtual and config.train.all_reduce != "flat"
        self.sum = OrderedSum(size, parts, world)
        self.average = torch.empty(size, device=world.device)
        compressed = config.train.gradient_type == "bf16"
        self.wire = torch.empty_like(self.average, dtype=torch.bfloat16) if compressed else None
        one = parts * world.size == 1
        self.alone = one and not compressed and not config.drops_blocks  # nothing to average with

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.statistics and self.parts > 1:
            if self._part == 0:
                torch._foreach_copy_(self._before, self.statistics)
            else:
                torch._foreach_copy_(self.statistics, self._before)
        return self.module(x)

    def collect(self) -> None:
        """Take over the gradients of the backward pass that has just ended."""
        if self.alone:
            return
        leaf = self.sum.buffer()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.trained]
        torch._foreach_copy_(self._views(leaf), gradients + self.statistics)
        self.sum.add(leaf)
        self._part = (self._part + 1) % self.parts
        for parameter in self.trained:
            parameter.grad = None

    def average_gradients(self) -> None:
        if self.alone:
            return
        total = self.sum.total() if self.ordered else self._all_reduced(self.sum.local())
        torch.mul(total, 1 / (self.parts * self.world.size), out=self.average)
        views = self._views(self.average)
        for parameter, gradient in zip(self.trained, views):
            parameter.grad = gradient
        if self.statistics:
            torch._foreach_copy_(self.statistics, views[len(self.trained) :])

    def _all_reduced(self, mine: torch.Tensor) -> torch.Tensor:
        if self.wire is None:
            return self.world.sum(mine)
        self.wire.copy_(mine)
        return self.world.sum(self.wire)

    def _views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Of each tensor's place in the buffer, in the tensor's own memory format."""
        views, offset = [], 0
        for t in [*self.trained, *self.statistics]:
            views.append(flat.as_strided(t.shape, t.stride(), offset))
            offset += t.numel()
        return views
