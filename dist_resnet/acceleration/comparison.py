"""Whether steps taken in a fast way are those of the plain way, on this device, from this state, on
a real batch; without a trace in the training."""

import copy
import dataclasses
import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dist_resnet.models.normalise import Normalise
from dist_resnet.training import optim
from dist_resnet.training.data_parallel import BucketedDDP
from dist_resnet.training.loop import Training

STEPS = 3
LR = 0.01  # of the learning rate: at the whole of it three steps make much of little rounding
NOISE = 10.0  # so many times what the plain way differs from itself is allowed
ROUNDING = 2.0  # to what rounds differently: so many times what half precision is from float32,
REST = 0.02  # and this much
LOSS = 0.1  # of what a gradient is allowed: a mean over samples hides rounding
WHAT = [f"{kind} of step {k + 1}" for k in range(STEPS) for kind in ("loss", "gradient")]


class Plain:
    """The steps that DDP's buckets, autocast and eager execution take from where a training stands,
    taken twice: what differs between the two, the device alone has done. And in float32 (no TF32),
    of fewer images where memory does not suffice for all."""

    def __init__(self, run: Training, images: torch.Tensor, labels: torch.Tensor) -> None:
        """To be made while nothing is attached to the network yet."""
        self.images, self.labels = images, labels
        network = copy.deepcopy(run.model.module)
        model = _Accumulating(network, run)
        optimizer = optim.build(run.config.optim, model, run.plan.whiten_bias_steps)
        optimizer.load_state_dict(run.optimizer.state_dict())
        scaler = optim.scaler(run.config.train.precision, run.world.device)
        scaler.load_state_dict(run.scaler.state_dict())
        twin = dataclasses.replace(run, model=model, optimizer=optimizer, scaler=scaler)
        self.expected, again = (steps_of(twin, images, labels) for _ in range(2))
        self.noise = [distance(a, b) for a, b in zip(again, self.expected)]
        self.rounding = self._rounding(twin)

    def _rounding(self, twin: Training) -> list[float]:
        """How far the plain steps are from float32's. Where memory does not suffice for those, of
        half as many images, and so on; of none, nothing may round. On every rank alike."""
        train = dataclasses.replace(twin.config.train, precision="fp32", cast="each")
        exact = dataclasses.replace(twin, config=dataclasses.replace(twin.config, train=train))
        say, parts, count = twin.tracker.say, twin.plan.parts, len(self.images)
        while count:
            images, labels, failed = self.images[:count], self.labels[:count], None
            try:
                with _without_tf32():
                    better = steps_of(exact, twin.normalise(images).float(), labels)
                whole = count == len(self.images)
                plain = self.expected if whole else steps_of(twin, images, labels)
            except RuntimeError as error:  # cuDNN and cuBLAS have their own words for it
                failed = str(error).split("\n")[0]
                exact.optimizer.zero_grad(set_to_none=True)
            if not (everyones := [told for told in twin.world.gather(failed) if told]):
                return [distance(a, b) for a, b in zip(plain, better, strict=True)]
            fewer = count // 2 // parts * parts
            say(f"comparison with {fewer} images in float32, since {count} fail: {everyones[0]}")
            count = fewer
            _free(twin.world.device)
        return [0.0 for _ in self.expected]

    def difference(self, run: Training, rounds: bool) -> str | None:
        """What of a training's steps is further from the plain ones (relative difference of norms)
        than it may be; None where nothing is. rounds: it may round in another way."""
        steps = steps_of(run, self.images, self.labels)
        found = [distance(a, b) for a, b in zip(steps, self.expected, strict=True)]
        for name, apart, noise, rounding in zip(
            [*WHAT, "weights' way"], found, self.noise, self.rounding, strict=True
        ):
            rest = REST * LOSS if name.startswith("loss") else REST
            allowed = NOISE * noise + rounds * (ROUNDING * rounding + rest)
            if not apart <= allowed:
                return f"the {name} differs by {apart:.1e}, {allowed:.1e} is allowed"
        return None


def steps_of(run: Training, images: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    """Loss and gradient of some steps (WHAT), and how far the weights have moved. Leaves no
    trace."""
    found: list[torch.Tensor] = []
    lr = LR * run.plan.lr_at(run.progress.step)
    run.model.train()
    with restored(run):
        weights = [p for p in run.model.parameters() if p.requires_grad]
        before = _flat(weights)
        for _ in range(STEPS):
            for tensor in run.sums.state():
                tensor.zero_()
            optim.set_lr(run.optimizer, lr, run.progress.step)
            run.update(images, labels)
            found.append(run.sums.losses.clone())
            found.append(_flat(p.grad for p in weights if p.grad is not None))
        found.append(_flat(weights) - before)
    return found


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Convolutions in float32 as it is, on GPUs too."""
    cudnn = torch.backends.cudnn
    same = {"benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
    with cudnn.flags(enabled=cudnn.enabled, **same, allow_tf32=False):
        yield


def _free(device: torch.device) -> None:
    """What a failed step has left."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


class _Accumulating(BucketedDDP):
    """DDP over several virtual workers: it adds up their gradients."""

    def __init__(self, network: torch.nn.Module, run: Training) -> None:
        plain = dataclasses.replace(run.config.train, gradient_type="fp32", static_graph=False)
        super().__init__(network, plain, run.world)
        self.parts = run.plan.parts

    def average_gradients(self) -> None:
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad /= self.parts


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """|a - b| / |b|, over what is finite; inf where not the same entries are (fp16 overflows in its
    first steps) or the sizes differ."""
    if a.shape != b.shape:
        return float("inf")
    finite = b.isfinite()
    if not torch.equal(finite, a.isfinite()):
        return float("inf")
    a, b = a[finite].double(), b[finite].double()
    apart = (a - b).norm().item()
    return apart / max(b.norm().item(), 1e-30) if apart else 0.0


def pixels(fast: torch.Tensor, plain: torch.Tensor, normalise: Normalise) -> str | None:
    """How the images of a batch differ; None where every bit is the same."""
    plain = normalise(plain) if fast.is_floating_point() else plain
    if fast.shape != plain.shape or fast.dtype != plain.dtype:
        return f"{fast.dtype} {tuple(fast.shape)} in place of {plain.dtype} {tuple(plain.shape)}"
    wrong = fast != plain
    if not wrong.any():
        return None
    images = wrong.flatten(1).any(1).sum().item()
    return f"{wrong.sum().item():,} of {wrong.numel():,} values differ, in {images} images"


@contextmanager
def restored(run: Training) -> Iterator[None]:
    """Weights, statistics, momenta, the scaler and the sums are afterwards what they were, in the
    very same memory."""
    before = {place: tensor.clone() for place, tensor in _changed_by_a_step(run)}
    scaler = run.scaler.state_dict()
    try:
        yield
    finally:
        with torch.no_grad():
            for place, tensor in _changed_by_a_step(run):
                if place in before:
                    tensor.copy_(before[place])
                else:  # made by the optimizer only now: it starts at zero
                    tensor.zero_()
        run.scaler.load_state_dict(scaler)


def _changed_by_a_step(run: Training) -> Iterator[tuple[Any, torch.Tensor]]:
    """(where it is, tensor)."""
    yield from ((("sums", i), tensor) for i, tensor in enumerate(run.sums.state()))
    owners = [*enumerate(run.optimizer.param_groups), *run.optimizer.state.items()]
    for where, values in (("model", run.model.module.state_dict()), *owners):
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                yield (where, key), value


def _flat(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat([t.detach().flatten() for t in tensors]).clone()
