"""Images per second that one CPU core delivers, to reckon how many a GPU needs: python -m
benchmarks.cores

Counted in CPU time, of all threads, so that other work beside it hardly matters. Raw: a beton of
CIFAR-10, cropped and flipped. JPEG: 500 x 375 at quality 90, of random crops resized to 224 as on
ImageNet; the pictures are CIFAR's, enlarged, with noise for what such pictures lack in detail."""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks import measure
from dist_resnet.data import manifest, sampling
from dist_resnet.data.resident_loader import read_raw
from dist_resnet.data.sampling import Augment
from dist_resnet.data.streaming_loader import Resize, StreamingLoader
from dist_resnet.prepare import betons
from dist_resnet.prepare.betons import Dataset
from dist_resnet.prepare.encoding import Encoding, Samples

CPU, JPEGS = torch.device("cpu"), 512
NOISE = 12  # of 255: makes files of about 100 KB, as ImageNet's are


def images_per_core_second(loader: StreamingLoader) -> float:
    """Of one epoch, after one that warms up."""
    order = sampling.epoch_order(0, 0, loader.num_samples)
    for _ in loader.batches(order, 0):
        pass
    began = time.process_time()
    for _ in loader.batches(order, 1):
        pass
    return len(order) / (time.process_time() - began)


def jpegs(data: Path, out: Path) -> float:
    """Write a beton of JPEGs; returns their mean size in KB."""
    small = read_raw(data / "train.beton")[0].numpy()
    rng = np.random.default_rng(0)

    def read(i: int) -> np.ndarray:
        picture = Image.fromarray(small[i]).resize((500, 375), Image.Resampling.BICUBIC)
        noise = rng.normal(0, NOISE, (375, 500, 3))
        return np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)

    samples = Samples(np.zeros(JPEGS, np.int64), read)
    few = samples.subset(np.arange(8))
    betons.prepare(Dataset("jpegs", ["one"], samples, few, "", Encoding("jpg")), out, 0, 0)
    return (out / "train.beton").stat().st_size / JPEGS / 1000


def main() -> None:
    options = measure.arguments(__doc__, rounds=1).parse_args()
    raw = manifest.load(options.data)
    red, green, blue = (round(255 * m) for m in raw.mean)
    with tempfile.TemporaryDirectory() as folder:
        size = jpegs(options.data, Path(folder))
        loaders = {
            "raw 32 x 32": StreamingLoader(
                options.data / "train.beton",
                512,
                CPU,
                augment=Augment(0, 4, "random", (red, green, blue)),
                threads=1,
            ),
            f"JPEG 500 x 375 of {size:.0f} KB, to 224": StreamingLoader(
                Path(folder) / "train.beton",
                64,
                CPU,
                augment=Augment(0, 0, "random", (red, green, blue)),
                resize=Resize(lambda epoch: 224, area=(0.35, 1.0)),
                threads=1,
            ),
        }
        rows = [
            {"beton": name, "images/s of a core": images_per_core_second(loader)}
            for name, loader in loaders.items()
        ]
    measure.show("what a core delivers", rows, options.json)


if __name__ == "__main__":
    main()
