"""Images per second that one CPU core delivers, to reckon how many a GPU needs: python -m
benchmarks.cores

Counted in CPU time, of all threads, so that other work beside it hardly matters. Raw: a beton of
CIFAR-10, cropped and flipped. JPEG: the pictures of benchmarks.jpegs, random crops resized to 224
and flipped, as on ImageNet."""

import tempfile
import time
from pathlib import Path

from benchmarks import jpegs, measure
from dist_resnet.data import jpeg, manifest, sampling
from dist_resnet.data.sampling import Augment
from dist_resnet.data.streaming_loader import Resize, StreamingLoader


def images_per_core_second(loader: StreamingLoader) -> float:
    """Of one epoch, after one that warms up."""
    order = sampling.epoch_order(0, 0, loader.num_samples)
    for _ in loader.batches(order, 0):
        pass
    began = time.process_time()
    for _ in loader.batches(order, 1):
        pass
    return len(order) / (time.process_time() - began)


def main() -> None:
    options = measure.arguments(__doc__, rounds=1).parse_args()
    raw = manifest.load(options.data)
    red, green, blue = (round(255 * m) for m in raw.mean)
    pad, flip = (Augment(0, pixels, "random", (red, green, blue)) for pixels in (4, 0))
    resize = Resize(lambda epoch: jpegs.SIZE, area=jpegs.AREA)
    with tempfile.TemporaryDirectory() as folder:
        path = jpegs.beton(options.data, Path(folder), jpeg.encode)
        raws = StreamingLoader(options.data / "train.beton", 512, jpegs.CPU, augment=pad, threads=1)
        coded = StreamingLoader(
            path, jpegs.BATCH, jpegs.CPU, augment=flip, resize=resize, threads=1
        )
        loaders = {"raw 32 x 32": raws, f"JPEG 500 x 375, to {jpegs.SIZE}": coded}
        rows = [
            {"beton": name, "images/s of a core": images_per_core_second(loader)}
            for name, loader in loaders.items()
        ]
    measure.show("what a core delivers", rows, options.json)


if __name__ == "__main__":
    main()
