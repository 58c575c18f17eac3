"""Every `auto` among what makes a step faster, settled for a kind of device."""

import dataclasses
from typing import Literal

from dist_resnet.config.root import Config

SMALL = ("cifar", "speedrun")  # families whose launches take longer than their gradients' way


def settle(config: Config, device: str) -> Config:
    """The configuration with train.all_reduce, cast and cuda_graph as a device of this type ('cpu',
    'cuda') is to have them. On the CPU that is the plain way, but for what was asked for. With
    train.fast_paths 'off' it is the plain way everywhere."""
    gpu = device == "cuda"
    if config.train.fast_paths == "off":
        return _plain(config)
    all_reduce = _all_reduce(config, gpu)
    cast = _cast(config, gpu and all_reduce != "buckets")
    graph = _graph(config, gpu and all_reduce == "flat")
    train = dataclasses.replace(config.train, all_reduce=all_reduce, cast=cast, cuda_graph=graph)
    return dataclasses.replace(config, train=train)


def _plain(config: Config) -> Config:
    """Virtual workers and dropped blocks have no other all-reduce than their own."""
    own = config.batch.virtual_workers is not None or config.drops_blocks
    all_reduce = _all_reduce(config, gpu=False) if own else "buckets"
    train = dataclasses.replace(
        config.train, all_reduce=all_reduce, cast="each", compile="none", cuda_graph=False
    )
    return dataclasses.replace(config, train=train)


def _all_reduce(config: Config, gpu: bool) -> Literal["buckets", "flat", "ordered"]:
    train = config.train
    if train.all_reduce != "auto":
        return train.all_reduce
    if config.batch.virtual_workers is not None:
        return "ordered"
    small = gpu and config.model.family in SMALL and not train.static_graph
    return "flat" if small or train.cuda_graph is True or config.drops_blocks else "buckets"


def _cast(config: Config, fits: bool) -> Literal["each", "together"]:
    train = config.train
    if train.cast != "auto":
        return train.cast
    joined = train.compile != "none" or train.activation_checkpointing
    return "together" if fits and train.precision != "fp32" and not joined else "each"


def _graph(config: Config, fits: bool) -> bool:
    train = config.train
    if train.cuda_graph != "auto":
        return bool(train.cuda_graph)
    one_size = config.data.min_resolution is None
    own = train.compile == "max-autotune"  # has graphs of its own
    same = one_size and not config.drops_blocks  # every step
    return fits and config.optim.name == "sgd" and same and not own


def with_precision(config: Config, name: Literal["bf16", "fp16", "fp32"]) -> Config:
    """A configuration whose train.precision is settled. In fp32 there is nothing to cast."""
    cast = "each" if name == "fp32" else config.train.cast
    train = dataclasses.replace(config.train, precision=name, cast=cast)
    return dataclasses.replace(config, train=train)


def with_residency(config: Config, where: Literal["stream", "device"]) -> Config:
    """A configuration whose data.residency is settled."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, residency=where))


def half_precisions(config: Config) -> tuple[Literal["bf16", "fp16"], ...]:
    """Those that `train.precision: auto` may become, the better first: timm's optimizers would wait
    for fp16's gradient scaler."""
    return ("bf16", "fp16") if config.optim.name in ("sgd", "adam", "adamw") else ("bf16",)


def with_buckets(config: Config) -> Config:
    """A settled configuration, with DDP's buckets in place of its all-reduce."""
    train = dataclasses.replace(config.train, all_reduce="buckets", cuda_graph=False)
    return dataclasses.replace(config, train=train)
