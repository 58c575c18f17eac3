"""Images per second of CPU time of loaders of JPEGs, cropped at random and resized to 224:
python -m benchmarks.jpegs

Counted in CPU time, of all threads and workers, so that other work beside it hardly matters.

The pictures stand in for ImageNet's, 500 x 375 at quality 90 and about 100 KB: six of CIFAR-10's,
enlarged, side by side, with noise whose spectrum falls as that of photographs does, with 1/f."""

import io
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from unittest import mock

import numpy as np
import psutil
import torch
from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
from ffcv.loader import OrderOption
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks import measure
from dist_resnet.data import jpeg, sampling
from dist_resnet.data.ffcv import Loader, Reader, ToTensor, ToTorchImage
from dist_resnet.data.resident_loader import read_raw
from dist_resnet.data.streaming_loader import Resize, StreamingLoader
from dist_resnet.prepare import betons
from dist_resnet.prepare.betons import Dataset
from dist_resnet.prepare.encoding import Encoding, Samples

CPU, IMAGES, BATCH, SIZE, AREA = torch.device("cpu"), 512, 64, 224, (0.08, 1.0)
HEIGHT, WIDTH, QUALITY, NOISE = 375, 500, 90, 30  # NOISE: of 255, makes files of about 100 KB


def pictures(data: Path) -> Samples:
    small = read_raw(data / "train.beton")[0].numpy()
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.fftfreq(WIDTH))
    frequency[0, 0] = 1

    def read(i: int) -> np.ndarray:
        six = small[6 * i : 6 * i + 6].reshape(2, 3, 32, 32, 3).swapaxes(1, 2).reshape(64, 96, 3)
        picture = Image.fromarray(six).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        white = np.random.default_rng(i).normal(size=(HEIGHT, WIDTH))
        noise = np.fft.ifft2(np.fft.fft2(white) / frequency).real
        noise *= NOISE / noise.std()
        return np.clip(np.asarray(picture) + noise[..., None], 0, 255).astype(np.uint8)

    return Samples(np.zeros(IMAGES, np.int64), read)


def unmarked(image: np.ndarray, quality: int) -> np.ndarray:
    """JPEG without restart markers, else the same, as FFCV's writer makes it."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return np.frombuffer(file.getbuffer(), np.uint8)


def beton(data: Path, out: Path, encode: Callable) -> Path:
    samples = pictures(data)
    few = samples.subset(np.arange(1))
    dataset = Dataset("jpegs", ["one"], samples, few, "", Encoding("jpg", jpeg_quality=QUALITY))
    with mock.patch.object(jpeg, "encode", encode):
        betons.prepare(dataset, out, 0, 0)
    return out / "train.beton"


def tree(data: Path, out: Path) -> Path:
    samples = pictures(data)
    (out / "one").mkdir(parents=True)
    for i in range(IMAGES):
        (out / f"one/{i}.jpg").write_bytes(unmarked(samples.read(i), QUALITY).tobytes())
    return out


def ours(path: Path, threads: int) -> Callable[[], Iterable]:
    resize = Resize(lambda epoch: SIZE, area=AREA)
    loader = StreamingLoader(path, BATCH, CPU, resize=resize, threads=threads)
    return lambda: loader.batches(sampling.epoch_order(0, 0, IMAGES), 0)


def ffcvs(path: Path, threads: int) -> Callable[[], Iterable]:
    """With the decoder that FFCV has for this."""
    decoder = RandomResizedCropRGBImageDecoder((SIZE, SIZE), scale=AREA)
    pipelines = {"image": [decoder, ToTensor(), ToTorchImage()], "label": None}
    loader = Loader(
        str(path), BATCH, threads, os_cache=True, order=OrderOption.RANDOM, pipelines=pipelines
    )
    return lambda: loader


def torchvisions(folder: Path, workers: int) -> Callable[[], Iterable]:
    usual = transforms.Compose([transforms.RandomResizedCrop(SIZE, AREA), transforms.PILToTensor()])
    images = ImageFolder(folder, usual)
    loader = DataLoader(images, BATCH, True, num_workers=workers, persistent_workers=True)
    return lambda: loader


def rate(batches: Callable[[], Iterable], epochs: int = 2) -> Callable[[], float]:
    """images/s of CPU time."""

    def some() -> float:
        began = cpu_seconds()
        seen = sum(len(batch[0]) for _ in range(epochs) for batch in batches())
        return seen / (cpu_seconds() - began)

    return some


def cpu_seconds() -> float:
    """Of this process and the workers that it has."""
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children())]
    return sum(each.user + each.system for each in times)


def main() -> None:
    options = measure.arguments(__doc__, rounds=5).parse_args()
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        marked = beton(options.data, folder / "marked", jpeg.encode)
        plain = beton(options.data, folder / "plain", unmarked)
        size, more = (Reader(str(path)).alloc_table["size"].sum() for path in (plain, marked))
        print(f"{size / IMAGES / 1000:.0f} KB an image, {more / size - 1:.1%} more with markers")
        found = measure.interleaved(
            {
                f"torchvision's ImageFolder and DataLoader, {threads} workers": rate(
                    torchvisions(tree(options.data, folder / "tree"), threads)
                ),
                "FFCV's RandomResizedCropRGBImageDecoder": rate(ffcvs(plain, threads)),
                "ours, no restart markers": rate(ours(plain, threads)),
                "ours": rate(ours(marked, threads)),
            },
            options.rounds,
        )
    baseline = next(iter(found.values()))
    rows = [
        {"loader": name, "images/s of a core": rate, "ratio": rate / baseline}
        for name, rate in found.items()
    ]
    measure.show(f"JPEG to {SIZE}; batch {BATCH}; {threads} threads", rows, options.json)


if __name__ == "__main__":
    main()
