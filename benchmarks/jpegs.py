"""Images per second out of JPEGs, the ImageNet way: python -m benchmarks.jpegs

Random resized crops to 224 pixels of 500 x 375 images in JPEG of quality 90: torchvision's
ImageFolder and DataLoader, FFCV's own decoder, and ours over the same beton and over one whose
JPEGs have restart markers, of which only the crop is decoded. The pictures are those of
benchmarks.cores."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks import measure
from benchmarks.cores import pictures
from dist_resnet.data import jpeg
from dist_resnet.data.ffcv import IntDecoder, Loader, ToTensor
from dist_resnet.data.streaming_loader import Resize, StreamingLoader
from dist_resnet.prepare import betons
from dist_resnet.prepare.encoding import Encoding, Samples

SIZE, QUALITY = 224, 90
BATCH, CPU = 64, torch.device("cpu")


def plain(image: np.ndarray, quality: int) -> np.ndarray:
    """As FFCV encodes, without markers."""
    flags = [int(cv2.IMWRITE_JPEG_QUALITY), quality]
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), flags)[1].reshape(-1)


def prepare(images: list[np.ndarray], out: Path) -> Path:
    labels = np.arange(len(images)) % 10
    split = Samples(labels, images.__getitem__)
    few = Samples(labels[:10], images.__getitem__)
    named = betons.Dataset("pictures", [*"0123456789"], split, few, "made", Encoding("jpg"))
    betons.prepare(named, out, val=0, seed=0)
    return out / "train.beton"


def rate(batches: Callable[[], Iterator]) -> Callable[[], float]:
    def epoch() -> float:
        began, seen = time.perf_counter(), 0
        for images, *_ in batches():
            seen += len(images)
        return seen / (time.perf_counter() - began)

    return epoch


def ours(path: Path, count: int, threads: int) -> Callable[[], float]:
    resize = Resize(lambda epoch: SIZE, seed=1, area=(0.08, 1.0))
    loader = StreamingLoader(path, BATCH, CPU, resize=resize, threads=threads)
    order = np.random.default_rng(0).permutation(count)
    return rate(lambda: loader.batches(order, 0))


def ffcvs(path: Path, threads: int) -> Callable[[], float]:
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import OrderOption

    decoder = RandomResizedCropRGBImageDecoder((SIZE, SIZE))
    pipelines = {"image": [decoder, ToTensor()], "label": [IntDecoder(), ToTensor()]}
    options = {"order": OrderOption.RANDOM, "os_cache": True, "seed": 0, "drop_last": False}
    loader = Loader(str(path), BATCH, threads, pipelines=pipelines, **options)
    return rate(lambda: iter(loader))


def theirs(folder: Path, workers: int) -> Callable[[], float]:
    steps = [transforms.RandomResizedCrop(SIZE), transforms.PILToTensor()]
    data = ImageFolder(str(folder), transforms.Compose(steps))
    return rate(lambda: iter(DataLoader(data, BATCH, shuffle=True, num_workers=workers)))


def main() -> None:
    parser = measure.arguments(__doc__, rounds=5)
    parser.add_argument("--images", type=int, default=1024, help="(1024)")
    options = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    images = pictures(options.data, options.images)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i, image in enumerate(images):
            path = folder / f"tree/{i % 10}/{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path, quality=QUALITY, subsampling="4:2:0")
        with mock.patch.object(jpeg, "encode", plain):
            without = prepare(images, folder / "without")
        marked = prepare(images, folder / "marked")
        sizes = [
            np.mean([len(encode(image, QUALITY)) for image in images[:64]]) / 1000
            for encode in (plain, jpeg.encode)
        ]
        found = measure.interleaved(
            {
                f"torchvision's ImageFolder and DataLoader, {threads} workers": theirs(
                    folder / "tree", threads
                ),
                "FFCV's RandomResizedCropRGBImageDecoder": ffcvs(without, threads),
                f"ours, without markers ({sizes[0]:.0f} KB)": ours(without, len(images), threads),
                f"ours, with them ({sizes[1]:.0f} KB)": ours(marked, len(images), threads),
            },
            options.rounds,
        )
    baseline, ffcv, *_ = found.values()
    rows = [
        {"loader": name, "images/s": value, "ratio": value / baseline, "of FFCV": value / ffcv}
        for name, value in found.items()
    ]
    measure.show(f"500 x 375 JPEGs, {threads} threads", rows, options.json)


if __name__ == "__main__":
    main()
