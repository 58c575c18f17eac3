"""FFCV as a stream of batches: the caller says which samples, errors surface, nothing leaks.

In FFCV 1.0.2 itself an exception in its thread leaves the caller waiting for ever, and leaving an
epoch early leaks the thread and its buffers."""

import os
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
import torch

from dist_resnet.data.augment import AS_IS, CropFlip, PassthroughDecoder, ReadCropFlip
from dist_resnet.data.decoders import CenterCrop, RandomResizedCrop, ResizedCrop, Undecoded
from dist_resnet.data.ffcv import (
    IMAGE_MODES,
    EpochIterator,
    IntDecoder,
    Loader,
    Reader,
    SimpleRGBImageDecoder,
    Squeeze,
    ToDevice,
    ToTensor,
    ToTorchImage,
)
from dist_resnet.data.sampling import Augment

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Resize:
    """Every image to one square size: crops drawn with a seed for training, central ones for
    evaluation."""

    size: Callable[[int], int]  # epoch -> pixels a side
    seed: int = 0
    area: tuple[float, float] | None = None  # of random crops; None: central ones
    share: float = 0.875  # of the shorter side, for central ones

    def crop(self) -> ResizedCrop:
        return (
            RandomResizedCrop(self.seed, self.size(0), self.area)
            if self.area
            else CenterCrop(self.size(0), self.share)
        )


class StreamingLoader:
    """Batches of one beton: uint8 images (N, 3, H, W) in channels_last, int64 labels (N,), both on
    `device`.

    os_cache: leave the file to the operating system's cache; False reads pages ahead in the order
    of the samples, for files larger than the memory. A batch is valid until the next one is asked
    for: FFCV reuses its buffers. Build a loader once where it compiles: for JPEGs of one size, or
    pages of raw images, that are not resized."""

    def __init__(
        self,
        path: Path,
        batch_size: int,
        device: torch.device,
        *,
        augment: Augment | None = None,
        resize: Resize | None = None,
        threads: int | None = None,
        batches_ahead: int = 3,
        timeout_s: float = 120.0,
        os_cache: bool = True,
    ) -> None:
        self.timeout_s, self.resize = timeout_s, resize
        fields = Reader(str(path)).metadata["f0"]
        self.resized_crop = resize.crop() if resize else None
        self.crop_flip = CropFlip(augment) if augment else None
        decoder: SimpleRGBImageDecoder
        if self.resized_crop:
            decoder = Undecoded()
        elif os_cache and (fields["mode"] == IMAGE_MODES["raw"]).all():
            # one pass, compiled once for all processes
            decoder, self.crop_flip = PassthroughDecoder(), ReadCropFlip(path, augment or AS_IS)
        else:
            decoder = SimpleRGBImageDecoder()
        to_device = [] if device.type == "cpu" else [ToDevice(device, non_blocking=True)]
        image = [
            decoder,
            *filter(None, (self.resized_crop, self.crop_flip)),
            ToTensor(),
            *to_device,
            ToTorchImage(channels_last=True),
        ]
        label = [IntDecoder(), ToTensor(), Squeeze(1), *to_device]
        self._loader = Loader(
            str(path),
            batch_size,
            threads or len(os.sched_getaffinity(0)),
            drop_last=False,
            seed=0,
            os_cache=os_cache,
            batches_ahead=batches_ahead,
            pipelines={"image": image, "label": label},
        )
        self.num_samples = len(fields)
        self.pages = (fields["data_ptr"] // np.uint64(self._loader.reader.page_size)).astype(
            np.int64
        )  # of each sample

    def batches(self, ids: np.ndarray, epoch: int = 0) -> Generator[Batch]:
        """The samples `ids` (int64, in this order) of an epoch, the last batch perhaps smaller.

        Raises IndexError for an id that the beton does not hold, RuntimeError when the loader dies
        or stalls."""
        if len(ids) == 0:
            return
        if ids.min() < 0 or ids.max() >= self.num_samples:
            raise IndexError(
                f"sample ids {ids.min()}..{ids.max()} asked of a beton of {self.num_samples} "
                "samples"
            )
        self._set_epoch(epoch)
        iterator = _WatchedIterator(
            self._loader, ids.astype(np.uint64), self.timeout_s, self.resized_crop
        )
        try:
            yield from iterator
        finally:
            iterator.stop()

    def _set_epoch(self, epoch: int) -> None:
        for operation in (self.crop_flip, self.resized_crop):
            if isinstance(operation, CropFlip | RandomResizedCrop):
                operation.set_epoch(epoch)
        if self.resize and self.resized_crop:  # the buffers', which an epoch's iterator asks for
            self.resized_crop.size = self.resize.size(epoch)


class _WatchedIterator(EpochIterator):
    """FFCV's iterator, whose caller learns of its death and who can be stopped in the middle."""

    def __init__(
        self, loader: Loader, order: np.ndarray, timeout_s: float, crop: ResizedCrop | None
    ) -> None:
        self.timeout_s, self.crop = timeout_s, crop
        self.error: BaseException | None = None
        super().__init__(loader, order)

    def run(self) -> None:
        try:
            if self.cuda_streams[0] is not None:
                torch.cuda.set_device(self.current_stream.device)  # a thread starts with GPU 0
            for stream in filter(None, self.cuda_streams):
                stream.wait_stream(
                    self.current_stream
                )  # this memory may still be read as another epoch's
            super().run()
        except BaseException as error:  # handed to the consumer, who raises it
            self.error = error

    def run_pipeline(
        self, b_ix: int, batch_indices: np.ndarray, batch_slot: int, cuda_event: Any
    ) -> Any:
        if self.cuda_streams[batch_slot] is not None:
            self.cuda_streams[
                batch_slot
            ].synchronize()  # a copy from the slot's pinned buffer may still be queued
        if self.crop:
            self.crop.storage_state = self.storage_state
        return super().run_pipeline(b_ix, batch_indices, batch_slot, cuda_event)

    def __next__(self) -> Any:
        deadline = time.monotonic() + self.timeout_s
        queue = self.output_queue
        while True:
            with queue.not_empty:
                if queue.not_empty.wait_for(queue._qsize, timeout=0.5):
                    break
            if not self.is_alive() and queue.empty():
                raise RuntimeError(
                    f"the data loader's thread ended early: {self.error!r}"
                ) from self.error
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"the data loader has delivered nothing for {self.timeout_s:g} s "
                    "(data.timeout_s): "
                    "is the file system that holds the betons stalled?"
                )
        return super().__next__()

    def stop(self) -> None:
        """End the thread and let its buffers go, wherever it is."""
        self.close()
        self.closed = True
        while self.is_alive() and threading.current_thread() is not self:
            try:
                self.output_queue.get_nowait()  # it may be waiting for room
            except Empty:
                self.join(0.01)
        for stream in filter(None, self.cuda_streams):
            stream.synchronize()  # copies may be queued from buffers that now go
