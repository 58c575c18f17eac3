"""Data parallelism: a network whose gradients are averaged over the ranks, in DDP's buckets or all
at once."""

import warnings

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from dist_resnet.config import Train
from dist_resnet.runtime.distributed import World


def data_parallel(model: nn.Module, config: Train, world: World) -> "BucketedDDP | FlatAllReduce":
    """Wrap a network. Every rank starts from rank 0's weights; `average_gradients` is to be called
    after the backward pass."""
    return (
        FlatAllReduce(model, config, world)
        if config.all_reduce == "flat"
        else BucketedDDP(model, config, world)
    )


class BucketedDDP(DistributedDataParallel):
    """DDP, with its gradient buckets settled.

    After its first backward pass DDP sorts them anew, which changes the order in which three or
    more ranks' gradients are added. One pass before the first step, in eval mode, so that it leaves
    no trace, makes every step of a fresh and of a resumed training add in the same order. Where the
    graph is said to be static, DDP sorts them one pass later."""

    def __init__(self, model: nn.Module, config: Train, world: World) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # torch 2.15 renames broadcast_buffers; 2.11 has only this name
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

    def average_gradients(self) -> None:
        """The backward pass has done it."""


class FlatAllReduce(nn.Module):
    """All gradients in one buffer, averaged by one all-reduce after the backward pass: for small
    networks, whose many buckets and hooks take longer than they hide. Nothing here depends on the
    host, so that a CUDA graph may hold it."""

    def __init__(self, model: nn.Module, config: Train, world: World) -> None:
        super().__init__()
        self.module, self.world = model, world
        world.broadcast([t for t in model.state_dict().values() if t.is_floating_point()])
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.gradients = torch.zeros(sum(p.numel() for p in self.trained), device=world.device)
        self.wire = (
            self.gradients if config.gradient_type == "fp32" else self.gradients.to(torch.bfloat16)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)

    def average_gradients(self) -> None:
        torch._foreach_copy_(
            self._views(self.wire), [p.grad for p in self.trained if p.grad is not None]
        )
        self.world.sum(self.wire)
        torch.mul(self.wire, 1 / self.world.size, out=self.gradients)
        for parameter, gradient in zip(self.trained, self._views(self.gradients)):
            parameter.grad = gradient

    def _views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Of each parameter's place in the buffer, in the parameter's own memory format."""
        views, offset = [], 0
        for p in self.trained:
            views.append(flat.as_strided(p.shape, p.stride(), offset))
            offset += p.numel()
        return views
