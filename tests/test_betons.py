"""Betons: what is written is what was given; what is damaged is refused; a crash leaves nothing
behind."""

import dataclasses
import io
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from dist_resnet.data import manifest
from dist_resnet.data.streaming_loader import StreamingLoader
from dist_resnet.prepare import betons, shapes, sources
from dist_resnet.prepare.encoding import Encoding, Samples


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    return images, np.repeat(np.arange(10), 6)


def as_dataset(images, labels, **options):
    samples = Samples(labels, images.__getitem__)
    return betons.Dataset(
        "noise",
        list("abcdefghij"),
        samples,
        Samples(labels[:10], images[:10].__getitem__),
        "rng",
        **options,
    )


def read_all(path):
    loader = StreamingLoader(path, 16, torch.device("cpu"), threads=1)
    batches = [
        (i.permute(0, 2, 3, 1).numpy().copy(), labels.numpy().copy())
        for i, labels in loader.batches(np.arange(loader.num_samples))
    ]
    return np.concatenate([i for i, _ in batches]), np.concatenate(
        [labels for _, labels in batches]
    )


def test_pixels_labels_and_statistics(tmp_path, arrays):
    images, labels = arrays
    written = betons.prepare(as_dataset(images, labels), tmp_path, val=0, seed=0)
    read, read_labels = read_all(tmp_path / "train.beton")
    assert np.array_equal(read, images) and np.array_equal(read_labels, labels)
    assert np.allclose(written.mean, (images / 255).mean((0, 1, 2))) and np.allclose(
        written.std, (images / 255).std((0, 1, 2))
    )
    assert written == manifest.load(tmp_path, "noise") and written.shape == [32, 32, 3]
    assert {name: s.samples for name, s in written.splits.items()} == {"train": 60, "test": 10}
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "manifest.json",
        "test.beton",
        "train.beton",
    ]


def test_the_same_images_make_the_same_file(tmp_path, arrays):
    a, b = (betons.prepare(as_dataset(*arrays), tmp_path / name, val=10, seed=1) for name in "ab")
    assert a.splits == b.splits
    assert (
        a.splits["val"].sha256
        != betons.prepare(as_dataset(*arrays), tmp_path / "c", val=10, seed=2).splits["val"].sha256
    )


def test_val_is_held_out_evenly():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 5000))
    train, val = betons.hold_out(labels, 5000, seed=0)
    assert (len(train), len(val)) == (45_000, 5_000) and not np.intersect1d(train, val).size
    assert (np.bincount(labels[val]) == 500).all()
    assert np.array_equal(val, betons.hold_out(labels, 5000, seed=0)[1])
    assert not np.array_equal(val, betons.hold_out(labels, 5000, seed=1)[1])
    assert len(betons.hold_out(labels, 5003, seed=0)[1]) == 5003
    with pytest.raises(ValueError, match="--val 50000"):
        betons.hold_out(labels, 50_000, seed=0)


@pytest.mark.parametrize(
    "bad, part",
    [
        (lambda i: 1 / 0, "cannot read sample 7: division by zero"),
        (lambda i: np.zeros((32, 32), np.uint8), r"sample 7 is uint8 \(32, 32\)"),
        (lambda i: np.zeros((32, 32, 3), np.float32), "sample 7 is float32"),
    ],
)
def test_a_bad_sample_is_named_and_leaves_nothing(tmp_path, arrays, bad, part):
    images, labels = arrays
    dataset = as_dataset(images, labels)
    broken = dataclasses.replace(dataset.train, read=lambda i: bad(i) if i == 7 else images[i])
    with pytest.raises(ValueError, match=part):
        betons.prepare(dataclasses.replace(dataset, train=broken), tmp_path, val=0, seed=0)
    assert not list(tmp_path.glob("*.beton*")) and not (tmp_path / "manifest.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["encoding", "writing"])
def test_a_killed_preparation_leaves_no_beton_and_no_process_and_goes_on(tmp_path, phase):
    """SIGKILL: nothing stays but files aside, and shared memory is cleaned up. What was encoded is
    not read again."""
    code = f"""
import pathlib, sys, time
import numpy as np
from dist_resnet.prepare import betons
from dist_resnet.prepare.encoding import Samples
def read(i):
    if i == 4000: print("half way", flush=True)
    if i > 4000 and {phase == "encoding"}: time.sleep(0.01)
    return np.full((32, 32, 3), i % 251, np.uint8)
def unread(i):
    assert i >= 3584, "was encoded before"
    return read(i)
def samples(read): return Samples(np.zeros(9000, np.int64), read)
first = samples(unread if "again" in sys.argv else read)
dataset = betons.Dataset("d", ["a"], first, samples(read), "test")
betons.prepare(dataset, pathlib.Path({str(tmp_path)!r}), 0, 0)
"""
    before = set(Path("/dev/shm").glob("psm_*"))
    writer = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    for line in writer.stdout:
        if "half way" in line:
            break
    while phase == "writing" and not (tmp_path / "train.beton.partial").exists():
        time.sleep(0.001)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    deadline = time.monotonic() + 20
    while (
        strays := [p for p in psutil.process_iter() if _session(p) == writer.pid]
    ) and time.monotonic() < deadline:
        time.sleep(0.1)  # multiprocessing's resource tracker cleans up, then leaves
    assert not strays
    assert not (tmp_path / "train.beton").exists() and not (tmp_path / "manifest.json").exists()
    assert set(Path("/dev/shm").glob("psm_*")) <= before
    subprocess.run(
        [sys.executable, "-c", code.replace("0.01", "0"), "again"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    assert manifest.load(tmp_path).splits["train"].samples == 9000 and not list(
        tmp_path.glob("*.par*")
    )
    images = read_all(tmp_path / "train.beton")[0]
    assert np.array_equal(images[:, 5, 5, 1], np.arange(9000) % 251)


def _session(process):
    try:
        import os

        return os.getsid(process.pid) if process.status() != psutil.STATUS_ZOMBIE else None
    except (ProcessLookupError, psutil.Error):
        return None


@pytest.fixture
def copy(tmp_path, shapes_dir):
    return Path(shutil.copytree(shapes_dir, tmp_path / "copy"))


def change(path, offset, content):
    with open(path, "rb+") as file:
        file.seek(offset)
        file.write(content)


@pytest.mark.parametrize(
    "damage, part",
    [
        (lambda d: (d / "train.beton").unlink(), "is missing"),
        (
            lambda d: (d / "train.beton").write_bytes((d / "train.beton").read_bytes()[:-24]),
            "truncated",
        ),
        (lambda d: (d / "train.beton").write_bytes(b""), "truncated"),
        (lambda d: change(d / "train.beton", 2**23 + 5000, b"\xff"), "corrupted"),
        (
            lambda d: change(d / "train.beton", 2_300, b"\x00\x01\x02"),
            "corrupted",
        ),  # the pointers: FFCV would read wild memory
        (
            lambda d: shutil.copy(d / "test.beton", d / "train.beton"),
            "truncated or foreign|corrupted or foreign",
        ),
        (lambda d: (d / "manifest.json").unlink(), "manifest.json is missing.*dist-resnet prepare"),
        (lambda d: (d / "manifest.json").write_text("{}"), "not a manifest"),
        (lambda d: (d / "manifest.json").write_text("no JSON"), "not a manifest"),
    ],
)
def test_damage_is_refused_with_the_remedy(copy, damage, part):
    damage(copy)
    with pytest.raises(ValueError, match=part) as error:
        manifest.verify(copy, manifest.load(copy), "train")
    assert "dist-resnet prepare" in str(error.value) and "\n" not in str(error.value)


def test_another_data_set_and_a_missing_split_are_refused(copy):
    with pytest.raises(ValueError, match=r"holds shapes \(10 classes\).*'cifar100'"):
        manifest.load(copy, "cifar100")
    with pytest.raises(ValueError, match="no split 'val', only train, test"):
        manifest.verify(copy, manifest.load(copy), "val")


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def cifar_forms(tmp_path_factory, arrays):
    """The same 60 + 60 images in the five forms in which people have CIFAR-10."""
    images, labels = arrays
    root = tmp_path_factory.mktemp("cifar")
    for split in ("train", "test"):
        for i, (image, label) in enumerate(zip(images, labels)):
            path = root / "tree" / split / f"class{label}" / f"{i:05}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(image))
    (root / "archives").mkdir()
    for name, compression in (("train", "xz"), ("test", "gz")):
        with tarfile.open(
            root / "archives" / f"{name}.tar.{compression}", f"w:{compression}"
        ) as archive:
            archive.add(root / "tree" / name, name)
    batches = root / "batches" / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    rows = images.transpose(0, 3, 1, 2).reshape(60, -1)
    for i in range(5):
        (batches / f"data_batch_{i + 1}").write_bytes(
            pickle.dumps(
                {
                    "data": rows[12 * i : 12 * i + 12],
                    "labels": labels[12 * i : 12 * i + 12].tolist(),
                }
            )
        )
    (batches / "test_batch").write_bytes(pickle.dumps({"data": rows, "labels": labels.tolist()}))
    (batches / "batches.meta").write_bytes(
        pickle.dumps({"label_names": [f"class{i}" for i in range(10)]})
    )
    with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(batches, batches.name)
    return root


@pytest.mark.parametrize(
    "form",
    ["tree", "archives", "batches", "batches/cifar-10-batches-py", "cifar-10-python.tar.gz", "."],
)
def test_every_form_of_cifar_gives_the_same_images(cifar_forms, arrays, tmp_path, form):
    images, labels = arrays
    source = None if form == "." else cifar_forms / form  # ".": found in the data folder
    dataset = sources.cifar("cifar10", source, cifar_forms)
    assert dataset.classes == [f"class{i}" for i in range(10)]
    for samples in (dataset.train, dataset.test):
        assert np.array_equal(samples.labels, labels)
        assert all(np.array_equal(samples.read(i), images[i]) for i in range(60))


def test_cifar100_in_its_official_form_is_read_by_its_fine_labels(arrays, tmp_path):
    """`train` and `test` hold coarse_labels too, and `meta` the coarse names."""
    images, labels = arrays
    folder, fine, rows = (
        tmp_path / "cifar-100-python",
        labels * 10 + 3,
        images.transpose(0, 3, 1, 2),
    )
    folder.mkdir()
    for name in ("train", "test"):
        content = {"data": rows, "fine_labels": fine.tolist()}
        content |= {"coarse_labels": (fine // 5).tolist(), "filenames": ["x.png"] * 60}
        (folder / name).write_bytes(pickle.dumps(content))
    names = {"fine_label_names": [f"fine{i}" for i in range(100)]}
    names |= {"coarse_label_names": [f"coarse{i}" for i in range(20)]}
    (folder / "meta").write_bytes(pickle.dumps(names))
    (folder / "file.txt~").write_bytes(b"")  # the archive has one
    with tarfile.open(tmp_path / "cifar-100-python.tar.gz", "w:gz") as archive:
        archive.add(folder, folder.name)
    dataset = sources.cifar("cifar100", tmp_path / "cifar-100-python.tar.gz", tmp_path)
    written = betons.prepare(dataset, tmp_path / "out", val=0, seed=0)
    assert (written.dataset, len(written.classes)) == ("cifar100", 100)
    assert written.classes[13] == "fine13"
    for split in ("train", "test"):
        read, read_labels = read_all(tmp_path / f"out/{split}.beton")
        assert np.array_equal(read, images) and np.array_equal(read_labels, fine)


def test_bad_sources_are_named(tmp_path, cifar_forms):
    whole = (cifar_forms / "cifar-10-python.tar.gz").read_bytes()
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty").mkdir()
    for source, part in (
        (tmp_path / "none", "no such file"),
        (tmp_path / "empty", "found 0 training"),
        (tmp_path / "cifar-10-python.tar.gz", "not a whole tar archive"),
    ):
        with pytest.raises(ValueError, match=part):
            sources.cifar("cifar10", source, tmp_path / "data")


def test_imagefolder_of_odd_images(tmp_path, capsys):
    """Sizes, grayscale and CMYK mixed: JPEG in the beton, at most 40 pixels a side; a broken file
    is named, and left out if so wished."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for i, mode in enumerate(("RGB", "L", "CMYK", "RGB")):
            path = tmp_path / "tree" / split / f"class{i % 2}" / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (50 + i, 60, 3), dtype=np.uint8)).convert(
                mode
            ).save(path)
    dataset = sources.imagefolder("odd", tmp_path / "tree", Encoding("auto", max_resolution=40))
    written = betons.prepare(dataset, tmp_path / "out", 0, 0)
    assert (written.mode, written.classes, written.splits["test"].samples) == (
        "jpg",
        ["class0", "class1"],
        4,
    )
    assert betons.Reader(str(tmp_path / "out/train.beton")).metadata["f0"]["width"].max() == 40
    assert written.shape is None  # 40 x 33 to 40 x 35
    (tmp_path / "tree/train/class1/1.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot read .*train/class1/1.jpg"):
        betons.prepare(
            sources.imagefolder("odd", tmp_path / "tree", Encoding("jpg")), tmp_path / "again", 0, 0
        )
    skipped = betons.prepare(
        sources.imagefolder("odd", tmp_path / "tree", Encoding("jpg", skip_broken=True)),
        tmp_path / "again",
        0,
        0,
    )
    assert skipped.splits["train"].samples == 3 and "train/class1/1.jpg" in capsys.readouterr().out


def test_shapes_are_balanced_and_reproducible():
    a, b = shapes.make(200, 100), shapes.make(200, 100)
    assert all(np.array_equal(a.train.read(i), b.train.read(i)) for i in range(200))
    assert (np.bincount(a.train.labels) == 20).all() and (np.bincount(a.test.labels) == 10).all()
    assert not np.array_equal(a.train.read(0), a.test.read(0))
