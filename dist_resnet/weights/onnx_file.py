"""A Classifier as an ONNX graph: uint8 `images` (batch, 3, H, W) -> float32 `logits` (batch,
classes), the normalisation inside; its card in the metadata."""

import importlib.util
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dist_resnet.weights import files
from dist_resnet.weights.card import Card
from dist_resnet.weights.classifier import Classifier

TOLERANCE = 1e-3  # of logits, or of the largest; other sums of the same numbers differ by less


def export(classifier: Classifier, path: Path) -> float:
    """Write the graph, and return by how much its logits differ from torch's at most, where they
    are above 1 as a share of the largest.

    Raises RuntimeError, and writes nothing, where that is more than TOLERANCE."""
    _require("onnx", "onnxscript", "onnxruntime")
    example = _some_images(classifier.card, 4)
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            classifier,
            (example,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: batch},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props["card"] = json.dumps(classifier.card.to_dict())
    aside = files.aside_of(path)
    program.save(aside)
    try:
        difference = _difference(classifier, aside)
        if not difference <= TOLERANCE:
            raise RuntimeError(
                f"the ONNX graph's logits differ from torch's by {difference:.2g}: not written; "
                "use --format safetensors"
            )
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return difference


def open_session(path: Path) -> tuple[Card, Callable[[np.ndarray], np.ndarray]]:
    """The graph's card, and what makes logits, float32 (N, classes), of uint8 (N, 3, H, W).

    Raises ValueError for a file that is no graph of ours."""
    _require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        card = Card.from_dict(json.loads(session.get_modelmeta().custom_metadata_map["card"]))
    except KeyError:
        raise ValueError(f"{path} has no card: it is not of `dist-resnet export`") from None
    except Exception as error:  # onnxruntime's have no class in common
        reason = str(error).split("\n")[0]
        raise ValueError(f"{path} is not an ONNX graph that can be read ({reason})") from None
    return card, lambda images: session.run(["logits"], {"images": images})[0]


def _require(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise RuntimeError(
            f"ONNX needs {', '.join(missing)}: pip install 'dist-resnet[export]', or use --format "
            "safetensors"
        )


def _difference(classifier: Classifier, path: Path) -> float:
    """Between the logits of torch and onnxruntime, at most, for one image and for several."""
    _, run = open_session(path)
    found = 0.0
    with torch.inference_mode():
        for count in (1, 16):
            images = _some_images(classifier.card, count)
            expected = classifier(images).numpy()
            difference = np.abs(run(images.numpy()) - expected).max()
            found = max(found, float(difference / max(1.0, np.abs(expected).max())))
    return found


def _some_images(card: Card, count: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, *card.size), dtype=torch.uint8, generator=draw)
