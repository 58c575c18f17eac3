"""Weights in files: those of a run, of an export, of others (torchvision's state dicts)."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dist_resnet.weights import checkpoint
from dist_resnet.weights.card import Card

SUFFIXES = {"safetensors": ".safetensors", "torch": ".pt", "onnx": ".onnx"}
KINDS = "a run directory, a checkpoint, or a .safetensors or .pt file"


@dataclass(frozen=True)
class Weights:
    tensors: dict[str, torch.Tensor]  # a network's state dict, on the CPU
    card: Card | None  # None: a state dict alone
    path: Path  # of the file that held them

    def known(self) -> Card:
        """Raises ValueError where there is no card: such weights can only start a training."""
        if self.card is None:
            raise ValueError(
                f"{self.path} holds a state dict alone, without its network's settings and "
                "classes: start a training from it with --train.init_from"
            )
        return self.card


def locate(path: Path, which: str | None = None) -> Path:
    """The file of weights that is meant by a RUN_DIR, a pointer (RUN_DIR/checkpoints/BEST) or a
    file.

    which: latest or best, of a RUN_DIR; None: latest. Raises ValueError where there is none."""
    if path.is_dir():
        if not (path / "config.yaml").exists():
            raise ValueError(f"{path} is not a run directory: it has no config.yaml")
        return checkpoint.named(path / "checkpoints", (which or "latest").upper())
    if not path.is_file():
        raise ValueError(f"{path}: no such file or run directory; name {KINDS}")
    if which is not None:
        raise ValueError(f"--checkpoint {which} is of run directories, and {path} is a file")
    return checkpoint.named(path.parent, path.name) if path.name in ("LATEST", "BEST") else path


def read(path: Path, which: str | None = None) -> Weights:
    """The weights that `locate` finds. Raises ValueError for a file that holds none."""
    file = locate(path, which)
    if file.suffix == ".onnx":
        raise ValueError(
            f"{file} is a graph, not weights: `dist-resnet predict` and onnxruntime read it; "
            "for weights export --format safetensors"
        )
    try:
        return _of_safetensors(file) if file.suffix == ".safetensors" else _of_torch(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} holds no weights ({error}); name {KINDS}") from None


def write(weights: Weights, path: Path, kind: str) -> None:
    """Tensors and card in one file, whole or not at all. kind: safetensors or torch."""
    card, aside = weights.known().to_dict(), aside_of(path)
    tensors = {name: tensor.contiguous() for name, tensor in weights.tensors.items()}
    if kind == "torch":
        torch.save({"model": tensors, "card": card}, aside)
    else:
        from safetensors.torch import save_file

        save_file(tensors, aside, {"format": "pt", "card": json.dumps(card)})
    os.replace(aside, path)


def aside_of(path: Path) -> Path:
    """Where to write what shall be at `path`, with its folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.partial")


def _of_torch(file: Path) -> Weights:
    """A checkpoint, an export of ours, or a state dict, alone or as `model`."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # of any kind, from bytes that torch has not written
        raise ValueError("not a whole file of tensors and plain values") from None
    card: dict[str, Any] | None = content.get("card") if isinstance(content, dict) else None
    tensors = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not _are_tensors(tensors):
        raise ValueError("neither a checkpoint nor a state dict")
    return Weights(dict(tensors), Card.from_dict(card) if card else None, file)


def _of_safetensors(file: Path) -> Weights:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as content:
            metadata = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    card = Card.from_dict(json.loads(metadata["card"])) if "card" in metadata else None
    return Weights(tensors, card, file)


def _are_tensors(values: dict[Any, Any]) -> bool:
    return bool(values) and all(isinstance(value, torch.Tensor) for value in values.values())
