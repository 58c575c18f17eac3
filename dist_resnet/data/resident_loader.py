"""The whole beton on the training device: batches are gathered, cropped and flipped there."""

import math
from collections.abc import Callable, Generator
from pathlib import Path

import numba
import numpy as np
import psutil
import torch

from dist_resnet.data import sampling
from dist_resnet.data.augment import crop_flip
from dist_resnet.data.ffcv import Reader
from dist_resnet.data.manifest import Manifest
from dist_resnet.data.sampling import Augment

SHARE = 0.25  # of the device's free memory, at most
CPU = torch.device("cpu")
BLOCK = 4096  # images that are read at once
Batch = tuple[torch.Tensor, torch.Tensor]
Kernel = Callable[[torch.Tensor, torch.Tensor, int, Augment], torch.Tensor]


class ResidentLoader:
    """Batches of one beton of raw images of one size, with the very pixels of StreamingLoader.

    uint8 images (N, 3, H, W) in channels_last, int64 labels (N,), on `device`. A batch is the
    caller's to keep. With a `kernel` that normalises too, images are in the training dtype."""

    def __init__(
        self,
        path: Path,
        batch_size: int,
        device: torch.device,
        *,
        augment: Augment | None = None,
        threads: int | None = None,
    ) -> None:
        self.images, self.labels = read_raw(path, device)
        self.batch_size, self.augment, self.threads = batch_size, augment, threads
        self.num_samples = len(self.labels)
        # in place of what crops and flips: (images, ids, epoch, augment) -> images (N, H, W, 3)
        self.kernel: Kernel | None = None

    def batches(self, ids: np.ndarray, epoch: int = 0) -> Generator[Batch]:
        """The samples `ids` (int64, in this order) of an epoch, the last batch perhaps smaller.

        Raises IndexError for an id that the beton does not hold."""
        if len(ids) and (ids.min() < 0 or ids.max() >= self.num_samples):
            raise IndexError(
                f"sample ids {ids.min()}..{ids.max()} asked of a beton of {self.num_samples} "
                "samples"
            )
        on_device = torch.from_numpy(np.ascontiguousarray(ids)).to(self.images.device)
        for chosen in on_device.split(self.batch_size) if len(ids) else ():
            yield self._images(chosen, epoch).permute(0, 3, 1, 2), self.labels[chosen]

    def _images(self, ids: torch.Tensor, epoch: int) -> torch.Tensor:
        if self.augment is None:
            return self.images[ids]
        if self.kernel is not None:
            return self.kernel(self.images, ids, epoch, self.augment)
        if ids.device.type != "cpu":
            return sampling.augment(self.images, ids, epoch, self.augment)
        out = torch.empty((len(ids), *self.images.shape[1:]), dtype=torch.uint8)
        if self.threads:
            numba.set_num_threads(self.threads)
        samples = ids.numpy()
        crop_flip(
            self.images.numpy().reshape(-1),
            samples * self.images[0].numel(),
            samples,
            out.numpy(),
            self.augment,
            epoch,
        )
        return out


def read_raw(path: Path, device: torch.device = CPU) -> tuple[torch.Tensor, torch.Tensor]:
    """(images uint8 (samples, H, W, 3), labels int64 (samples,)) of a beton of raw images of one
    size, on the device."""
    reader = Reader(str(path))
    fields, labels = reader.metadata["f0"], reader.metadata["f1"].ravel().astype(np.int64)
    height, width = int(fields["height"][0]), int(fields["width"][0])
    content, size = np.memmap(path, np.uint8, mode="r"), height * width * 3
    images = torch.empty((len(labels), height, width, 3), dtype=torch.uint8, device=device)
    for block, starts in zip(
        images.split(BLOCK),
        np.split(fields["data_ptr"].astype(np.int64), range(BLOCK, len(labels), BLOCK)),
    ):
        block.copy_(
            torch.from_numpy(np.stack([content[start : start + size] for start in starts])).view_as(
                block
            )
        )
    return images, torch.from_numpy(labels).to(device)


def obstacle(
    betons: Manifest, splits: tuple[str, ...], device: torch.device, copies: int
) -> str | None:
    """Why `copies` of these splits should not lie on the device; None where they may."""
    if betons.mode != "raw" or betons.shape is None:
        return f"the images are {betons.mode}" + ("" if betons.shape else " of different sizes")
    needed = copies * sum(betons.splits[split].bytes for split in splits if split in betons.splits)
    free = (
        torch.cuda.mem_get_info(device)[0]
        if device.type == "cuda"
        else min(psutil.virtual_memory().available, memory_limit())
    )
    if needed > SHARE * free:
        return (
            f"{needed / 2**20:,.0f} MiB are more than {SHARE:.0%} of the {free / 2**20:,.0f} MiB "
            f"free on {device.type}"
        )
    return None


def memory_limit(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> float:
    """Bytes that the control groups of this process may take, as a scheduler or a container engine
    has set it; inf where none has."""
    limits = [math.inf]
    for line in membership.read_text().splitlines() if membership.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # cgroups of version 2
            top, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = top / path.lstrip("/")
        files = [f / name for f in (folder, *folder.parents) if f.is_relative_to(top)]
        limits += [
            float(text)
            for text in (file.read_text().strip() for file in files if file.exists())
            if text != "max"
        ]
    return min(limits)
