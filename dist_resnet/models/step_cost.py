"""What a training step asks of a device: floating-point operations, bytes and launches. Counted on
torch's meta device: nothing is computed."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from dist_resnet import models
from dist_resnet.config import Model

Operation = tuple[int, int]
FREE = {  # views, and memory that is only taken
    *("as_strided", "detach", "t", "transpose", "permute", "slice", "select", "split", "view"),
    *("expand", "unsqueeze", "squeeze", "alias", "_unsafe_view"),
    *("empty", "empty_like", "empty_strided", "new_empty"),
    *("_record_function_enter_new", "_record_function_exit", "lift_fresh"),
}
SGD_TENSORS = 5  # weights, gradients and momenta are read, weights and momenta written; float32


def step_cost(
    config: Model,
    classes: int,
    size: tuple[int, int],
    batch: int,
    dtype: torch.dtype = torch.bfloat16,
) -> list[Operation]:
    """(floating-point operations, bytes) of every launch of an eager step in this precision, over
    images of (height, width); the last is SGD's.

    A multiplication and an addition are two operations. The bytes are those of every tensor that an
    operation takes or gives, once: what caches keep and what a convolution reads twice is not
    known here."""
    with torch.device("meta"):
        network = models.build(config, classes)
        images = torch.empty(batch, 3, *size, dtype=dtype)
        labels = torch.empty(batch, dtype=torch.int64)
    network.to(dtype).to(memory_format=torch.channels_last)
    with _Counter() as counter:
        logits = network(images.to(memory_format=torch.channels_last))
        F.cross_entropy(logits.float(), labels).backward()
    weights = sum(p.numel() for p in network.parameters())
    return [*counter.operations, (0, SGD_TENSORS * 4 * weights)]


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        keywords = keywords or {}
        result = function(*arguments, **keywords)
        if function.overloadpacket.__name__ not in FREE:
            flops: Callable | None = flop_registry.get(function.overloadpacket)
            tensors = tree_leaves((arguments, keywords, result))
            self.operations.append(
                (
                    int(flops(*arguments, **keywords, out_val=result)) if flops else 0,
                    sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor)),
                )
            )
        return result
