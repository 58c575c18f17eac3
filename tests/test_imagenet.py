"""The path to ImageNet: a tree of JPEGs of odd sizes, prepared and trained on by two workers."""

import io
import json

import numpy as np
import pytest
import torch
from conftest import assert_identical, curves, without_last_checkpoint
from numba.core.event import install_recorder
from PIL import Image

from dist_resnet import worker
from dist_resnet.data import jpeg, manifest, sampling
from dist_resnet.data.decoders import crop_box, shrink
from dist_resnet.data.ffcv import imdecode, resize_crop
from dist_resnet.data.sampling import Augment
from dist_resnet.data.streaming_loader import Resize, StreamingLoader
from dist_resnet.prepare import betons, sources
from dist_resnet.prepare.encoding import Encoding
from dist_resnet.tracking.tracker import read_metrics

CPU = torch.device("cpu")
SETTINGS = (
    "--model.family",
    "imagenet",
    "--model.name",
    "resnet18",
    "--model.zero_init_last_gamma",
    "true",
    "--data.dataset",
    "odd",
    "--data.resolution",
    40,
    "--data.min_resolution",
    32,
    "--data.eval_resolution",
    48,
    "--data.pad",
    0,
    "--data.order",
    "quasi_random",
    "--data.window_pages",
    2,
    "--batch.global",
    24,
    "--schedule.steps",
    8,
    "--schedule.milestones",
    "[6]",
    "--train.max_steps",
    8,
    "--train.log_every",
    "1 step",
    "--train.evaluate_every",
    "4 steps",
    "--train.checkpoint_every",
    "3 steps",
    "--train.eval_batch",
    16,
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """240 training and 70 test images of five classes, 24 to 130 pixels a side, RGB, grayscale and
    CMYK."""
    root = tmp_path_factory.mktemp("imagenet")
    rng = np.random.default_rng(0)
    for split, count in (("train", 240), ("test", 70)):
        for i in range(count):
            path = root / f"tree/{split}/n{i % 5:02d}/{i:04d}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            height, width = rng.integers(24, 131, 2)
            pixels = np.clip(rng.normal(40 * (i % 5) + 40, 30, (height, width, 3)), 0, 255).astype(
                np.uint8
            )
            Image.fromarray(pixels).convert(("RGB", "L", "CMYK")[rng.integers(3)]).save(
                path, "JPEG", quality=95
            )
    betons.prepare(sources.imagefolder("odd", root / "tree", Encoding("auto")), root / "odd", 0, 0)
    return root


def collect(loader, ids, epoch):
    images, labels = zip(*((i.clone(), l.clone()) for i, l in loader.batches(ids, epoch)))
    return torch.cat(images), torch.cat(labels)


def test_random_resized_crops_depend_on_seed_epoch_and_sample_alone(tree):
    """And on nothing else; another size of images is not compiled for."""
    path, sizes = tree / "odd/train.beton", {0: 40, 3: 40, 4: 40, 5: 56}
    flip = Augment(1, 0, "random", (0, 0, 0))
    one, two, large = (
        StreamingLoader(
            path, 32, CPU, augment=flip, resize=Resize(size, seed=1, area=(0.08, 1.0)), threads=n
        )
        for n, size in ((1, sizes.get), (2, sizes.get), (1, lambda epoch: 56))
    )
    ids = np.random.default_rng(0).permutation(240)
    images, labels = collect(one, ids, 3)
    assert images.shape == (240, 3, 40, 40) and torch.bincount(labels).tolist() == [48] * 5
    again, _ = collect(two, ids[::-1].copy(), 3)
    assert torch.equal(images, again.flip(0))
    assert not torch.equal(images, collect(one, ids, 4)[0])
    with install_recorder("numba:compile") as compiled:
        images, _ = collect(one, ids, 5)
    assert not compiled.buffer and torch.equal(images, collect(large, ids, 5)[0])


def test_crop_boxes_are_distributed_as_torchvisions():
    from torchvision.transforms import RandomResizedCrop  # seconds, for every process that collects

    box, image = crop_box, torch.empty(3, 375, 500)
    draws = sampling.mix(np.arange(10_000, dtype=np.uint64))
    ours = np.array([box(375, 500, draw, 0.08, 1.0) for draw in draws])
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(10_000)]
    )
    assert (
        (ours >= 0).all()
        and (ours[:, 0] + ours[:, 2] <= 375).all()
        and (ours[:, 1] + ours[:, 3] <= 500).all()
    )
    for figure in (
        lambda t, l, h, w: h * w / (375 * 500),
        lambda t, l, h, w: np.log(w / h),
        lambda t, l, h, w: t / 375,
        lambda t, l, h, w: l / 500,
    ):
        a, b = (
            np.quantile(figure(*boxes.T), np.linspace(0.05, 0.95, 10)) for boxes in (ours, theirs)
        )
        assert np.abs(a - b).max() < 0.03  # five standard deviations or so
    assert tuple(box(10, 1000, np.uint64(5), 1.0, 1.0)) == (
        0,
        493,
        10,
        13,
    )  # nothing fits: the largest central box


def smooth(rng, height, width):
    """A picture with something at every scale."""
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    picture = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(picture + rng.normal(0, 20, picture.shape), 0, 255).astype(np.uint8)


def decoded(content, height, width):
    pixels = np.empty((height, width, 3), np.uint8)
    imdecode(content, pixels)
    return pixels


def test_a_crops_own_jpeg_decodes_to_the_pixels_of_the_whole():
    rng, cut = np.random.default_rng(0), 0
    for i in range(60):
        height, width = rng.integers(1, 200, 2)
        image = smooth(rng, height, width)
        if i % 5 == 0:
            image[:] = image.mean(2, keepdims=True)  # a grey picture as RGB
        content = jpeg.encode(image, int(rng.integers(50, 96)))
        whole = decoded(content, height, width)
        for _ in range(20):
            h, w = rng.integers(1, height + 1), rng.integers(1, width + 1)
            top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
            part, y, x, rows, columns = jpeg.cut(content, height, width, top, left, h, w)
            found = decoded(part, rows, columns)[top - y : top - y + h, left - x : left - x + w]
            assert np.array_equal(found, whole[top : top + h, left : left + w])
            assert rows <= h + 48 and columns <= w + 48
            cut += len(part) < len(content)
    assert cut > 600


def test_jpegs_that_cannot_be_cut_are_left_whole():
    image = smooth(np.random.default_rng(0), 100, 150)
    marked = jpeg.encode(image, 90)
    kinds = [marked[:-2], marked[: len(marked) // 2], marked[:40]]  # not whole
    for options in ({}, {"restart_marker_rows": 1}, {"progressive": True}):
        for picture in (Image.fromarray(image), Image.fromarray(image).convert("L")):
            file = io.BytesIO()
            picture.save(file, "JPEG", **options)
            kinds.append(np.frombuffer(file.getbuffer(), np.uint8))
    for content in kinds:
        part, *place = jpeg.cut(content, 100, 150, 70, 120, 30, 30)
        assert part is content or np.array_equal(part, content)
        assert place == [0, 0, 100, 150]
    assert len(jpeg.cut(marked, 100, 150, 70, 120, 30, 30)[0]) < len(marked) / 2


def test_shrinking_is_opencvs():
    rng = np.random.default_rng(0)
    image = smooth(rng, 375, 500)
    for _ in range(200):
        size = rng.integers(1, 225, 2)
        h, w = rng.integers(size[0], 376), rng.integers(size[1], 501)
        top, left = rng.integers(0, 376 - h), rng.integers(0, 501 - w)
        ours, opencvs = np.empty((2, *size, 3), np.uint8)
        shrink(image, top, left, h, w, ours)
        resize_crop(image, top, top + h, left, left + w, opencvs)
        assert np.abs(ours.astype(int) - opencvs).max() <= 1


def test_quasi_random_order_reads_page_after_page():
    pages = np.repeat(np.arange(20), 50)
    order = sampling.quasi_random_order(1, 0, pages, window=4)
    assert np.array_equal(np.sort(order), np.arange(1000))
    for k in range(5):  # every window of 200 samples holds four whole pages, mixed
        assert (
            len(set(pages[order[200 * k : 200 * (k + 1)]])) == 4
            and len(set(pages[order[200 * k : 200 * k + 30]])) == 4
        )
    assert not np.array_equal(order, sampling.quasi_random_order(1, 1, pages, 4))
    assert np.array_equal(
        sampling.quasi_random_order(1, 0, pages, 20), sampling.epoch_order(1, 0, 1000)
    )


def test_pages_are_read_ahead_without_the_systems_cache(tree):
    path = tree / "odd/train.beton"
    cached, paged = (
        StreamingLoader(
            path,
            32,
            CPU,
            resize=Resize(lambda epoch: 40, seed=1, area=(0.08, 1.0)),
            threads=1,
            os_cache=c,
        )
        for c in (True, False)
    )
    order = sampling.quasi_random_order(1, 0, paged.pages, 1)
    assert torch.equal(collect(cached, order, 0)[0], collect(paged, order, 0)[0])


@pytest.mark.slow
def test_resnet18_trains_evaluates_exactly_and_resumes_exactly(
    tree, workers, config_path, tmp_path
):
    config_path.write_text(config_path.read_text().replace(", width: 2", ""))
    settings = (*SETTINGS, "--data.dir", tree / "odd")
    run_dir = workers.train(config_path, tmp_path / "run", *settings, size=2)
    summary = json.loads((run_dir / "summary.json").read_text())
    parameters = 11_689_512 - 1000 * 513 + 5 * 513
    found = (summary["steps"], summary["model"], summary["parameters"])
    assert found == (8, "resnet18", parameters)
    expected = [r for r in read_metrics(run_dir) if "test/top1" in r][-1]
    _, means, _ = workers.call(worker.evaluate, str(run_dir), "LATEST", size=3)[0]
    assert means.samples == 70
    assert means.top1 * 70 == pytest.approx(round(expected["test/top1"] * 70), abs=1e-9)
    without_last_checkpoint(run_dir, tmp_path / "again")
    workers.train(config_path, tmp_path / "again", *settings, size=2)
    assert "resuming at step 6" in workers.output
    assert_identical(run_dir, tmp_path / "again")
    assert curves(run_dir) == curves(tmp_path / "again")


def test_images_of_different_sizes_need_a_resolution(tree, cli, config_path):
    code, output = cli(
        "train",
        "tiny.yaml",
        "--data.dir",
        tree / "odd",
        "--data.dataset",
        "odd",
        "--workers-per-node",
        1,
    )
    assert (
        code == 1
        and "set --data.resolution" in output
        and manifest.load(tree / "odd").shape is None
    )
