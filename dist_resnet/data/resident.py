"""The whole beton on the training device: batches are gathered, cropped and flipped there."""

from collections.abc import Iterator
from pathlib import Path

import numba
import numpy as np
import psutil
import torch

from dist_resnet.data.augment import crop_flip
from dist_resnet.data.ffcv import Reader
from dist_resnet.data.manifest import Manifest
from dist_resnet.stream import Augment

SHARE = 0.25  # of the device's free memory, at most
Batch = tuple[torch.Tensor, torch.Tensor]


class ResidentLoader:
    """Batches of one beton of raw images of one size, with the very pixels of StreamingLoader.

    uint8 images (N, 3, H, W) in channels_last, int64 labels (N,), on `device`. A batch is the caller's to keep."""

    def __init__(self, path: Path, batch_size: int, device: torch.device, *, augment: Augment | None = None,
                 threads: int | None = None) -> None:
        images, labels = read_raw(path)
        self.images, self.labels = torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)
        self.batch_size, self.augment, self.threads = batch_size, augment, threads
        self.num_samples = len(labels)

    def batches(self, ids: np.ndarray, epoch: int = 0) -> Iterator[Batch]:
        """The samples `ids` (int64, in this order) of an epoch, the last batch perhaps smaller.

        Raises IndexError for an id that the beton does not hold."""
        if len(ids) and (ids.min() < 0 or ids.max() >= self.num_samples):
            raise IndexError(f"sample ids {ids.min()}..{ids.max()} asked of a beton of {self.num_samples} samples")
        on_device = torch.from_numpy(np.ascontiguousarray(ids)).to(self.images.device)
        for chosen in on_device.split(self.batch_size) if len(ids) else ():
            yield self._images(chosen, epoch).permute(0, 3, 1, 2), self.labels[chosen]

    def _images(self, ids: torch.Tensor, epoch: int) -> torch.Tensor:
        if self.augment is None:
            return self.images[ids]
        if ids.device.type == "cuda":
            from dist_resnet.data import gpu  # here, because torch for CPUs comes without triton

            return gpu.crop_flip(self.images, ids, epoch, self.augment)
        out = torch.empty((len(ids), *self.images.shape[1:]), dtype=torch.uint8)
        if self.threads:
            numba.set_num_threads(self.threads)
        samples = ids.numpy()
        crop_flip(self.images.numpy().reshape(-1), samples * self.images[0].numel(), samples, out.numpy(), self.augment, epoch)
        return out


def read_raw(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 (samples, H, W, 3), labels int64 (samples,)) of a beton of raw images of one size."""
    reader = Reader(str(path))
    fields, labels = reader.metadata["f0"], reader.metadata["f1"].ravel().astype(np.int64)
    height, width = int(fields["height"][0]), int(fields["width"][0])
    content = np.memmap(path, np.uint8, mode="r")
    images = np.empty((len(labels), height, width, 3), np.uint8)
    flat, size = images.reshape(len(labels), -1), height * width * 3
    for i, start in enumerate(fields["data_ptr"].tolist()):
        flat[i] = content[start : start + size]
    return images, labels


def obstacle(betons: Manifest, splits: tuple[str, ...], device: torch.device, copies: int) -> str | None:
    """Why `copies` of these splits should not lie on the device; None where they may."""
    if betons.mode != "raw" or betons.shape is None:
        return f"the images are {betons.mode}" + ("" if betons.shape else " of different sizes")
    needed = copies * sum(betons.splits[split].bytes for split in splits)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > SHARE * free:
        return f"{needed / 2**20:,.0f} MiB are more than {SHARE:.0%} of the {free / 2**20:,.0f} MiB free on {device.type}"
    return None
