"""Evaluation: every sample counted once, for any world size; and the images that a network gets
most wrong."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dist_resnet.data.loader import DataLoader
from dist_resnet.models.normalise import Normalise
from dist_resnet.models.tta import answer
from dist_resnet.runtime.distributed import World
from dist_resnet.training.metrics import Means, Sums


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    data: DataLoader,
    normalise: Normalise,
    world: World,
    parts: int = 1,
    tta: str = "none",
) -> Means:
    """Mean loss and accuracies over the whole set, each sample counted once, for any world size.

    All ranks answer with rank 0's running BN statistics, which with virtual workers are
    everybody's. A rank answers for its `parts` virtual workers, each of which has batches of its
    own. The ranks may have different numbers of batches: the one collective comes after the
    last."""
    world.broadcast([buffer for buffer in model.buffers() if buffer.is_floating_point()])
    model.eval()
    sums = Sums(world.device, parts)
    for part in range(parts):
        ids = np.arange(world.rank * parts + part, data.num_samples, parts * world.size)
        for images, labels in data.batches(ids):
            logits = predict(model, images, normalise, tta)
            sums.add(logits, labels, F.cross_entropy(logits, labels), part)
            sums.count(len(labels), part)
    means = sums.reduce(world)
    model.train()
    return means


def predict(model: nn.Module, images: torch.Tensor, normalise: Normalise, tta: str) -> torch.Tensor:
    """Logits, float32 (N, classes), of uint8 images (N, 3, H, W)."""
    half = normalise.dtype != torch.float32
    with torch.autocast(images.device.type, normalise.dtype, enabled=half):
        # past torch.compile, which would compile for every size of batch
        return answer(model.forward, normalise(images), tta)


@torch.inference_mode()
def answers(
    model: nn.Module, data: DataLoader, normalise: Normalise, world: World, tta: str
) -> tuple[np.ndarray, np.ndarray]:
    """(labels, answers) of every sample, int64 (N,) each, over all ranks, each sample once.

    Like evaluate, one collective at the end."""
    model.eval()
    found = [np.zeros((2, 0), np.int64)]
    for images, labels in data.batches(np.arange(data.num_samples)[world.rank :: world.size]):
        given = predict(model, images, normalise, tta).argmax(1)
        found.append(torch.stack([labels, given]).cpu().numpy())
    labels, given = np.concatenate(world.gather(np.concatenate(found, 1)), 1)
    return labels, given


@dataclass(frozen=True)
class WorstImage:
    """An evaluated image, and how far its network is from its label."""

    probability: float  # of the label
    sample: int
    label: int
    prediction: int
    image: np.ndarray  # uint8 (H, W, 3)


Score = tuple[float, int, int, int]  # a WorstImage without its image


@torch.inference_mode()
def top_losses(
    model: nn.Module,
    data: DataLoader,
    normalise: Normalise,
    world: World,
    tta: str,
    count: int,
) -> list[WorstImage]:
    """The images whose label has the least probability, the worst first, over all ranks: those of
    the largest losses.

    Like evaluate, with its collectives at the end: everybody's scores, then the images of the few
    that are left."""
    if count == 0:
        return []
    found: dict[Score, torch.Tensor] = {}
    model.eval()
    ids = np.arange(data.num_samples)[world.rank :: world.size]
    seen = 0
    for images, labels in data.batches(ids):
        probabilities = predict(model, images, normalise, tta).softmax(1)
        right = probabilities.gather(1, labels[:, None])[:, 0]
        for i in right.argsort()[:count].tolist():
            prediction = int(probabilities[i].argmax())
            score = (right[i].item(), int(ids[seen + i]), int(labels[i]), prediction)
            found[score] = images[i].permute(1, 2, 0).contiguous()
        found = {score: found[score].clone() for score in sorted(found)[:count]}
        seen += len(labels)
    everyones: list[list[Score]] = world.gather(list(found))
    worst = sorted(score for scores in everyones for score in scores)[:count]
    return [WorstImage(*score, image) for score, image in zip(worst, _images(worst, found, world))]


def _images(worst: list[Score], found: dict[Score, torch.Tensor], world: World) -> np.ndarray:
    """Of these scores, uint8 (N, H, W, 3), on every rank: of each, one rank has it."""
    shape = next(filter(None, world.gather([*next(iter(found.values())).shape] if found else None)))
    images = torch.zeros(len(worst), *shape, dtype=torch.uint8, device=world.device)
    for place, score in enumerate(worst):
        if score in found:
            images[place] = found[score]
    return world.sum(images).cpu().numpy()
