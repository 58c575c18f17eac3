"""The loop that people copy, which ours is held against: fp32, NCHW, eager, torchvision's CIFAR10
and DataLoader, `.item()` every step. Apart from measure.py, since torchvision takes a second to
import."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import CIFAR10, ImageFolder

from dist_resnet import models
from dist_resnet.config import config_file
from dist_resnet.data import manifest
from dist_resnet.data.manifest import Manifest
from dist_resnet.data.resident_loader import read_raw


def train(
    config_path: str, overrides: list[str], steps: int, images: Path, device: str
) -> Callable[[], float]:
    """images/s of so many steps of a configuration's network and batch. images: betons, or, for a
    network that crops, a folder of photographs."""
    config = config_file.load(config_path, overrides)
    batch, size = config.batch.global_, config.data.resolution
    assert batch
    model = models.build(config.model, 10).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    workers = len(os.sched_getaffinity(0))
    batches = photographs(images, size, batch, workers) if size else loader(images, batch, workers)
    state = {"iterator": iter(batches), "loss": 0.0}

    def some() -> float:
        model.train()
        began = time.perf_counter()
        for _ in range(steps):
            found = next(state["iterator"], None)
            if found is None:
                state["iterator"] = iter(batches)
                found = next(state["iterator"])
            images, labels = (t.to(device) for t in found)
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            state["loss"] += loss.item()
        return steps * batch / (time.perf_counter() - began)

    return some


def strong(
    config_path: str, overrides: list[str], steps: int, data: Path, device: str
) -> Callable[[], float]:
    """images/s of what a reader of PyTorch's guides would write: bf16 by autocast, channels_last,
    torch.compile, fused SGD, and the images on the device, cropped and flipped there."""
    config = config_file.load(config_path, overrides)
    batch = config.batch.global_
    assert batch
    betons = manifest.load(data)
    images, labels = read_raw(data / betons.splits["train"].file, torch.device(device))
    mean, std = (
        255 * torch.tensor(v, device=device).view(3, 1, 1) for v in (betons.mean, betons.std)
    )
    images = (images.permute(0, 3, 1, 2) - mean) / std
    padded = F.pad(images, (4, 4, 4, 4)).to(memory_format=torch.channels_last)
    model = models.build(config.model, 10).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=1e-4, fused=True)
    forward = torch.compile(model)

    def some() -> float:
        model.train()
        began, loss = time.perf_counter(), torch.zeros(())
        for _ in range(steps):
            ids = torch.randint(len(labels), (batch,), device=device)
            y, x = torch.randint(9, (2,)).tolist()  # one place for all of a batch
            crops = padded[ids, :, y : y + 32, x : x + 32]
            mirrored = torch.rand(batch, 1, 1, 1, device=device) < 0.5
            inputs = torch.where(mirrored, crops.flip(3), crops)
            with torch.autocast(device, torch.bfloat16):
                loss = F.cross_entropy(forward(inputs), labels[ids])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()
        return steps * batch / (time.perf_counter() - began)

    return some


def loader(data: Path, batch: int, workers: int) -> DataLoader:
    """torchvision's CIFAR10 and DataLoader with the usual transforms, over the same images."""
    betons = manifest.load(data)
    usual = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(betons.mean, betons.std),
        ]
    )
    return _loader(Images(data, betons, "train", usual), batch, workers)


def photographs(folder: Path, size: int, batch: int, workers: int) -> DataLoader:
    """torchvision's ImageFolder of FOLDER/train with the usual transforms."""
    usual = transforms.Compose(
        [
            transforms.RandomResizedCrop(size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    return _loader(ImageFolder(str(folder / "train"), usual), batch, workers)


def _loader(images: Dataset, batch: int, workers: int) -> DataLoader:
    return DataLoader(
        images,
        batch,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=True,
        multiprocessing_context="fork" if workers else None,  # as usual, also in `elsewhere`
    )


class Images(CIFAR10):
    """CIFAR10 over the pixels of a beton: everything but its download."""

    def __init__(self, data: Path, betons: Manifest, split: str, transform: Callable) -> None:
        images, labels = read_raw(data / betons.splits[split].file)
        self.data, self.targets = images.numpy(), labels.tolist()
        self.transform, self.target_transform = transform, None
