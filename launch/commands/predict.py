"""`dist-resnet predict`: what a trained network answers to images."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dist_resnet.reports.confusion import Confusion
    from dist_resnet.weights.prediction import Prediction


def options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Class and probability of images of any size, cut out and resized as evaluations do, in "
        "float32. For a folder with subfolders of the classes' names: accuracy of each class, and "
        "which are taken for which."
    )
    parser.add_argument("source", type=Path, metavar="RUN|FILE", help="a run, weights or ONNX")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="images, or folders")
    parser.add_argument(
        "--checkpoint", choices=("latest", "best"), help="of a run (default: latest)"
    )
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")


def predict(options: argparse.Namespace) -> int:
    from dist_resnet.weights import images, prediction

    card, run = prediction.open_network(options.source, options.checkpoint)
    found = images.find(options.images, card.classes)
    answers = list(prediction.predict(card, run, found))
    if options.json:
        print(json.dumps(_content(answers, card.classes)))
    else:
        _show(answers, card.classes)
    return 0


def _show(answers: "list[Prediction]", classes: list[str]) -> None:
    for answer in answers:
        if answer.label is None:
            print(f"{answer.file}: {classes[answer.answer]} {answer.probability:.1%}")
    if any(answer.label is not None for answer in answers):
        from rich.console import Console

        confusion = _confusion(answers, classes)
        Console(width=160).print(confusion.table())
        print(f"{confusion.accuracy:.2%} of {confusion.counts.sum():,} labelled images are right")


def _content(answers: "list[Prediction]", classes: list[str]) -> dict:
    rows = []
    for answer in answers:
        row = {
            "file": str(answer.file),
            "class": classes[answer.answer],
            "probability": answer.probability,
        }
        rows.append(row if answer.label is None else row | {"label": classes[answer.label]})
    labelled = any(answer.label is not None for answer in answers)
    return {"predictions": rows} | (_confusion(answers, classes).to_dict() if labelled else {})


def _confusion(answers: "list[Prediction]", classes: list[str]) -> "Confusion":
    """Of the images whose label is known."""
    import numpy as np

    from dist_resnet.reports.confusion import Confusion

    known = [(a.label, a.answer) for a in answers if a.label is not None]
    labels, given = np.array(known, dtype=np.int64).T
    return Confusion.of(classes, labels, given)
