"""Folders and files as people have them: what is in them is read right, left out by name, or
refused."""

import hashlib
import http.server
import io
import os
import pickle
import tarfile
import threading

import numpy as np
import pytest
from PIL import Image

from dist_resnet.data.streaming_loader import StreamingLoader
from dist_resnet.prepare import betons, download, encoding, sources
from dist_resnet.prepare.encoding import Encoding
from dist_resnet.weights import images, pixels
from dist_resnet.weights.card import Card

SIDE = 8


def grown(folder, values=(10, 20, 30, 40), suffix=".png"):
    """A tree of two classes: images of one grey each, by class and split two of the values."""
    for split in ("train", "test"):
        for i, value in enumerate(values):
            path = folder / split / f"class{i % 2}" / f"{i}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (SIDE, SIDE), (value, value + 1, value + 2)).save(path)
    return folder


def prepared(folder, out, mode="raw"):
    return betons.prepare(sources.imagefolder("grey", folder, Encoding(mode)), out, 0, 0)


def reds(path):
    """The first pixel's red of every image, sorted."""
    import torch

    loader = StreamingLoader(path, 1, torch.device("cpu"), threads=1)
    return sorted(int(x[0, 0, 0, 0]) for x, _ in loader.batches(np.arange(loader.num_samples)))


def test_images_replaced_after_an_interrupted_preparation_are_read_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "CHUNK", 1)
    tree, broken = grown(tmp_path / "tree"), tmp_path / "tree/test/class1/3.png"
    broken.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot read .*test/class1/3\.png"):
        prepared(tree, tmp_path / "out")
    assert list((tmp_path / "out").glob("*.parts/*.npz"))  # kept for the next call
    grown(tree, (110, 120, 130, 140))
    prepared(tree, tmp_path / "out")
    for split in ("train", "test"):
        assert reds(tmp_path / f"out/{split}.beton") == [110, 120, 130, 140]


def test_a_folder_that_nobody_has_split(tmp_path, command):
    """A share of each class, the same for a seed; and what is refused."""
    flat = tmp_path / "flat"
    for i in range(40):
        path = flat / f"class{i // 30}" / f"{i}.png"  # thirty and ten
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIDE, SIDE), (i, 0, 0)).save(path)
    given = ("prepare", "imagefolder", "--source", flat)
    splits = []
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        code, said = command(*given, "--split", 0.2, "--out", out, "--seed", seed)
        assert code == 0 and "train.beton: 32 samples" in said and "2 classes" in said, said
        splits.append(reds(tmp_path / out / "test.beton"))
        assert sum(red < 30 for red in splits[-1]) == 6 and len(splits[-1]) == 8
        assert sorted(splits[-1] + reds(tmp_path / out / "train.beton")) == list(range(40))
    assert splits[0] == splits[1] != splits[2]
    (tmp_path / "tree/train").mkdir(parents=True)
    (tmp_path / "tree/val").mkdir()
    for words, part in {
        given: "--split 0.1 takes a tenth",
        (*given, "--split", 1.5): "--split 1.5: must be above 0",
        (*given, "--split", 0.99): "class class0 has 30 images, of which 30 would be test",
        (*given[:-1], "nowhere", "--split", 0.1): "--source nowhere: no such folder",
        (*given[:-1], "tree", "--split", 0.1): "tree has val/ already; leave --split out",
        ("prepare", "shapes", "--split", 0.1): "does not read --split",
    }.items():
        code, said = command(*words, "--out", "d")
        assert code == 1 and part in said, said


def test_what_is_no_image_is_left_out_and_counted(tmp_path, capsys):
    tree = grown(tmp_path / "tree", suffix=".tif")
    for name in (".ipynb_checkpoints/0-checkpoint.png", "class0/._0.png", "class1/Thumbs.db"):
        path = tree / "train" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"whatever")
    for name in ("notes.txt", "more.txt", "film.mp4"):
        (tree / "test/class0" / name).write_bytes(b"whatever")
    written = prepared(tree, tmp_path / "out")
    assert written.classes == ["class0", "class1"]
    assert [written.splits[name].samples for name in ("train", "test")] == [4, 4]
    printed = capsys.readouterr().out
    assert f"{tree / 'train'}: left out 3 hidden\n" in printed
    assert f"{tree / 'test'}: left out 2 .txt, 1 .mp4\n" in printed


def test_classes_without_images_or_unknown_ones_are_refused_by_name(tmp_path):
    tree = grown(tmp_path / "tree")
    (tree / "train/class2").mkdir()
    (tree / "train/class2/a.heif").write_bytes(b"whatever")
    with pytest.raises(ValueError, match=r"train: no image of class class2; there are 1 \.heif"):
        prepared(tree, tmp_path / "out")
    (tree / "train/class2").rename(tree / "test/class2")
    (tree / "test/class2/a.heif").rename(tree / "test/class2/a.png")
    with pytest.raises(ValueError, match="test: classes class2 are not in train/"):
        prepared(tree, tmp_path / "out")


def test_a_constant_colour_is_told_and_can_be_normalised(tmp_path, capsys):
    for split in ("train", "test"):
        for i in range(4):
            path = tmp_path / "tree" / split / f"class{i % 2}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (SIDE, SIDE), (60 * i, 77, 10 * i)).save(path)
    written = prepared(tmp_path / "tree", tmp_path / "out")
    assert written.std[1] == pytest.approx(1 / 255) and min(written.std) > 0.003
    assert "note: green is (nearly) the same in all" in capsys.readouterr().out


def ramp(mode):
    """An image of a mode, and the red, green and blue of its first row as a viewer shows them."""
    steps = np.linspace(0, 1, SIDE)
    grey = np.tile(np.rint(255 * steps).astype(np.uint8), (SIDE, 1))
    rows = {"L": grey[0], "1": np.where(grey[0] > 127, 255, 0).astype(np.uint8)}
    half = np.full_like(grey, 128)
    if mode == "I;16":
        deep = np.rint(65535 * steps).astype(np.uint16)
        return Image.fromarray(np.tile(deep, (SIDE, 1))), grey[0]
    if mode in rows:
        return Image.fromarray(np.tile(rows[mode], (SIDE, 1))).convert(mode), rows[mode]
    over_white = np.rint(grey[0] * (128 / 255) + 255 * (127 / 255))
    if mode == "LA":
        return Image.merge("LA", [Image.fromarray(c) for c in (grey, half)]), over_white
    if mode == "RGBA":
        layers = [Image.fromarray(c) for c in (grey, grey, grey, half)]
        return Image.merge("RGBA", layers), over_white
    assert mode == "P"
    image = Image.fromarray(grey).quantize(SIDE)
    image.info["transparency"] = image.getpixel((0, 0))
    return image, np.array([255, *grey[0, 1:]])


@pytest.mark.parametrize("mode", ["L", "1", "I;16", "LA", "RGBA", "P"])
def test_every_mode_is_what_a_viewer_shows_in_preparation_and_prediction(tmp_path, mode):
    image, expected = ramp(mode)
    image.save(tmp_path / "image.png")
    found = pixels.read(tmp_path / "image.png")
    assert found.shape == (SIDE, SIDE, 3)
    assert np.abs(found.astype(int) - np.asarray(expected, int)[None, :, None]).max() <= 1
    card = Card({}, "grey", ["a"], [0.5] * 3, [0.2] * 3, [SIDE, SIDE], 1.0, "none")
    assert np.array_equal(images.prepare(tmp_path / "image.png", card), found.transpose(2, 0, 1))


def test_an_image_is_turned_as_its_camera_says_and_one_without_colours_is_refused(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # by a quarter
    image = Image.new("RGB", (16, 8), "red")
    image.save(tmp_path / "turned.jpg", exif=turned)
    assert pixels.read(tmp_path / "turned.jpg").shape == (16, 8, 3)
    tree = grown(tmp_path / "tree")
    floats = Image.fromarray(np.linspace(0, 1, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE))
    floats.save(tree / "train/class0/floats.tif")
    with pytest.raises(ValueError, match=r"cannot read .*floats\.tif: its pixels are of mode F"):
        prepared(tree, tmp_path / "out")


def test_a_strangers_archive_runs_no_code(tmp_path):
    class Planted:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    path = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
            content = pickle.dumps(Planted())
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(ValueError, match=r"not CIFAR's own batches \(it asks for posix\.system"):
        sources.cifar("cifar10", path, tmp_path / "data")
    assert not (tmp_path / "ran").exists()


def test_a_download_that_stalls_ends_and_is_continued(tmp_path, monkeypatch):
    """Also by a server that knows no ranges; a file of another content is refused."""
    content = os.urandom(300_000)
    md5, asked = hashlib.md5(content).hexdigest(), []
    silent = threading.Event()

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers.get("Range"))
            begin = 0
            if asked[-1] and "ranges" in self.path:
                begin = int(asked[-1].removeprefix("bytes=").removesuffix("-"))
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(content) - begin))
            self.end_headers()
            first = len(asked) == 1
            self.wfile.write(content[begin : 100_000 if first else None])
            self.wfile.flush()
            if first:
                silent.wait(30)

        def log_message(self, *words):
            pass

    monkeypatch.setattr(download, "STALL_SECONDS", 0.5)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url, to = f"http://127.0.0.1:{server.server_port}/ranges/x.tar.gz", tmp_path / "x.tar.gz"
        with pytest.raises(
            OSError, match=r"nothing came for 0 s .* 0.1 MiB that are there are kept"
        ):
            download.fetch(url, to, md5)
        silent.set()
        download.fetch(url, to, md5)
        assert to.read_bytes() == content and asked == [None, "bytes=100000-"]
        (tmp_path / "y.partial").write_bytes(b"begun")
        download.fetch(url.replace("ranges", "whole"), tmp_path / "y", md5)
        assert (tmp_path / "y").read_bytes() == content
        with pytest.raises(OSError, match="not the file that was expected"):
            download.fetch(url, tmp_path / "z", "0" * 32)
        server.shutdown()
    assert not list(tmp_path.glob("*.partial"))
