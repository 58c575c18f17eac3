"""Probabilities of images by a trained network, in torch or as an ONNX graph."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dist_resnet.weights import classifier, images
from dist_resnet.weights.card import Card

BATCH = 100
Run = Callable[[np.ndarray], np.ndarray]  # uint8 (N, 3, H, W) -> logits, float32 (N, classes)


@dataclass(frozen=True)
class Prediction:
    file: Path
    answer: int  # the class of the largest probability
    probability: float
    label: int | None  # where it is known


def open_network(source: Path, which: str | None) -> tuple[Card, Run]:
    """The network of a run, a file of weights, or an ONNX graph. Raises ValueError."""
    if source.suffix == ".onnx" and source.is_file():
        from dist_resnet.weights import onnx_file

        return onnx_file.open_session(source)
    trained = classifier.load(source, which)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained.to(device)

    @torch.inference_mode()
    def run(batch: np.ndarray) -> np.ndarray:
        return trained(torch.from_numpy(batch).to(device)).cpu().numpy()

    return trained.card, run


def predict(card: Card, run: Run, found: list[tuple[Path, int | None]]) -> Iterator[Prediction]:
    """The network's answer to each image, in their order. Raises ValueError for a file that is
    none."""
    for start in range(0, len(found), BATCH):
        some = found[start : start + BATCH]
        logits = run(np.stack([images.prepare(file, card) for file, _ in some]))
        probabilities = torch.from_numpy(logits).softmax(1).numpy()
        for (file, label), row in zip(some, probabilities):
            answer = int(row.argmax())
            yield Prediction(file, answer, float(row[answer]), label)
