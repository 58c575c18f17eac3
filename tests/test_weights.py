"""Weights in and out: exports, predictions, a training that starts from another one's."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import CONFIG, TEST, TRAIN, assert_identical, curves, without_last_checkpoint
from PIL import Image

import dist_resnet
from dist_resnet import models, worker
from dist_resnet.config import CifarModel, ImagenetModel
from dist_resnet.data.streaming_loader import Resize, StreamingLoader
from dist_resnet.prepare import betons, shapes, sources
from dist_resnet.prepare.encoding import Encoding
from dist_resnet.reports.confusion import Confusion
from dist_resnet.tracking.tracker import read_metrics
from dist_resnet.weights import files, images, onnx_file, transfer

FP32 = ("--model.width", 1, "--train.precision", "fp32")


@pytest.fixture(scope="module")
def config(tmp_path_factory, shapes_dir):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(CONFIG.replace("DATA", str(shapes_dir)))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, config, workers):
    """A run of 30 steps in float32, evaluated with mirror images."""
    out = tmp_path_factory.mktemp("trained")
    return workers.train(config, out / "run", *FP32, "--train.eval_tta", "mirror")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The images that it was evaluated on, as a tree <class>/<image>.png."""
    root, test = tmp_path_factory.mktemp("images"), shapes.make(TRAIN, TEST).test
    for i, label in enumerate(test.labels):
        path = root / shapes.CLASSES[label] / f"{i:04}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(test.read(i)).save(path)
    return root


def some(count):
    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=draw)


def last_evaluation(run_dir):
    return [record for record in read_metrics(run_dir) if "test/loss" in record][-1]


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_an_export_gives_the_same_logits_bit_for_bit(trained, command, tmp_path, kind):
    out = tmp_path / f"model{files.SUFFIXES[kind]}"
    code, said = command("export", trained, "--format", kind, "--out", out)
    assert code == 0 and "10 classes, images of 32x32" in said, said
    run, export, inputs = dist_resnet.load(trained), dist_resnet.load(out), some(20)
    assert torch.equal(run(inputs), export(inputs)) and run.card == export.card
    assert export.classes == shapes.CLASSES and not export.training
    bare = models.build(CifarModel(name="resnet8"), 10).eval()
    transfer.fill(bare, files.read(out).tensors, out)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (export.mean, export.std))
    x = (inputs / 255 - mean) / std
    assert torch.allclose(run(inputs), (bare(x) + bare(x.flip(3))) / 2, atol=1e-4)


def test_onnx_takes_uint8_in_any_number_and_agrees_with_torch(trained, tree, command, tmp_path):
    out = tmp_path / "model.onnx"
    code, said = command("export", trained, "--format", "onnx", "--out", out)
    assert code == 0 and "differ from torch's by" in said, said
    card, run = onnx_file.open_session(out)
    network = dist_resnet.load(trained)
    assert card == network.card
    for count in (1, 7):
        difference = run(some(count).numpy()) - network(some(count)).detach().numpy()
        assert np.abs(difference).max() < 1e-3
    folder = tree / "ring"
    (_, by_onnx), (_, by_torch) = (
        command("predict", source, folder, "--json") for source in (out, trained)
    )
    ours, theirs = (json.loads(text)["predictions"] for text in (by_torch, by_onnx))
    assert [row["class"] for row in ours] == [row["class"] for row in theirs]
    assert [r["probability"] for r in ours] == pytest.approx([r["probability"] for r in theirs])
    with pytest.raises(ValueError, match=r"a graph, not weights.*safetensors"):
        dist_resnet.load(out)


def test_predict_counts_what_the_evaluation_counts(trained, tree, workers, command):
    _, said = command("predict", trained, tree, "--json")
    found = json.loads(said)
    split, means, confusion = workers.call(worker.evaluate, str(trained), "LATEST", None, True)[0]
    assert found["images"] == TEST == means.samples and split == "test"
    assert found["confusion"] == confusion.counts.tolist()
    assert found["accuracy"] == pytest.approx(means.top1) == last_evaluation(trained)["test/top1"]
    assert sum(row["images"] for row in found["per_class"]) == TEST
    image = next((tree / "disc").iterdir())
    _, said = command("predict", trained, image, tree)
    assert said.startswith(f"{image}: ") and said.endswith("of 230 labelled images are right\n")


def test_a_card_of_another_version_is_refused_and_makes_no_other_network(trained):
    card = files.read(trained).known()
    content = card.to_dict()
    model = {**content["model"], "block_order": "sideways"}
    with pytest.raises(
        ValueError, match=r"another version \(model\.block_order = 'sideways': must"
    ):
        type(card).from_dict({**content, "model": model}).settings()
    with pytest.raises(ValueError, match="of version 9, and this dist_resnet reads up to 1"):
        type(card).from_dict({**content, "version": 9})
    before = {key: value for key, value in content.items() if key != "version"}
    assert type(card).from_dict(before) == card


def test_per_class_accuracy_of_known_answers():
    labels, answers = np.array([0, 0, 0, 1, 1, 1, 1]), np.array([0, 1, 1, 1, 1, 1, 0])
    confusion = Confusion.of(["cat", "dog", "emu"], labels, answers)
    assert confusion.counts.tolist() == [[1, 2, 0], [1, 3, 0], [0, 0, 0]]
    cat, dog = confusion.per_class()
    assert cat == {
        "class": "cat",
        "images": 3,
        "accuracy": 1 / 3,
        "taken_for": "dog",
        "times": 2,
    }
    assert dog["accuracy"] == 3 / 4 and confusion.accuracy == 4 / 7


def test_images_are_cut_out_and_resized_as_in_an_evaluation(trained, tmp_path):
    """Bit for bit what the loader makes of a beton's; images of the network's own size stay as they
    are."""
    rng, paths = np.random.default_rng(0), []
    for split in ("train", "test"):
        for i in range(6):
            path = tmp_path / "tree" / split / f"class{i % 2}/{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (*rng.integers(20, 140, 2), 3), np.uint8)).save(
                path
            )
            paths += [path] if split == "test" else []
    betons.prepare(
        sources.imagefolder("odd", tmp_path / "tree", Encoding("raw")), tmp_path / "odd", 0, 0
    )
    loader = StreamingLoader(
        tmp_path / "odd/test.beton",
        6,
        torch.device("cpu"),
        resize=Resize(lambda epoch: 48, share=0.875),
    )
    ((expected, _),) = [(i.clone(), labels) for i, labels in loader.batches(np.arange(6))]
    card = files.read(trained).known()
    odd = type(card)(**{**card.to_dict(), "size": [48, 48], "share": 0.875})
    prepared = [torch.from_numpy(images.prepare(path, odd)) for path in sorted(paths)]
    unmatched = list(expected)  # the writer mixes the order
    for image in prepared:
        place = next(i for i, other in enumerate(unmatched) if torch.equal(image, other))
        unmatched.pop(place)
    own = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
    assert np.array_equal(images.prepare(own, card), np.asarray(own).transpose(2, 0, 1))


def test_a_folder_with_an_unknown_class_and_what_is_no_image_are_named(
    trained, tree, command, tmp_path
):
    shutil.copytree(tree / "ring", tmp_path / "some/ring")
    shutil.copytree(tree / "disc", tmp_path / "some/disk")
    for words, part in (
        ((trained, tmp_path / "some"), "disk are not"),
        ((trained, trained / "config.yaml"), "not an image"),
        ((trained, tmp_path / "none.png"), "no such image"),
        ((trained / "config.yaml", tree), "holds no weights"),
        ((trained / "checkpoints/BEST", tree, "--checkpoint", "best"), "is a file"),
    ):
        code, said = command("predict", *words)
        assert code == 1 and part in said and len(said.splitlines()) == 1, said


@pytest.mark.slow
def test_a_training_starts_from_a_run_or_its_export_at_any_world_size_and_resumes_without_it(
    trained, config, workers, command, tmp_path
):
    export = tmp_path / "model.safetensors"
    assert command("export", trained, "--out", export)[0] == 0
    settings = (*FP32, "--batch.virtual_workers", 2, "--optim.lookahead", 5)
    settings += ("--train.max_steps", 10, "--train.checkpoint_every", "4 steps")
    one = workers.train(config, tmp_path / "one", *settings, "--train.init_from", trained)
    assert f"starts from {trained}" in workers.output and "all there are" in workers.output
    two = workers.train(config, tmp_path / "two", *settings, "--train.init_from", export, size=2)
    assert_identical(one, two)
    assert curves(one) == curves(two)
    export.unlink()
    without_last_checkpoint(two, tmp_path / "again")
    workers.train(config, tmp_path / "again", *settings, "--train.init_from", export, size=2)
    assert "resuming at step 8" in workers.output
    assert_identical(one, tmp_path / "again")


def test_what_is_started_from_is_what_was_trained(trained, config, workers, tmp_path):
    """A step that changes nothing leaves its last evaluation as it was, also with lookahead."""
    nothing = ("--optim.lr", 1e-12, "--model.bn_momentum", 1e-12, "--train.max_steps", 1)
    nothing += ("--optim.lookahead", 1, "--train.eval_tta", "mirror")
    run = workers.train(config, tmp_path / "run", *FP32, *nothing, "--train.init_from", trained)
    before, after = last_evaluation(trained), last_evaluation(run)
    assert after["test/loss"] == pytest.approx(before["test/loss"], rel=1e-6)
    assert after["test/top1"] == before["test/top1"]


def test_the_last_layer_is_new_where_the_classes_are_others(trained):
    weights = files.read(trained)
    network = models.build(weights.known().settings(), 10)
    last = network.fc.weight.detach().clone()
    said = transfer.start_from(network, weights, [*shapes.CLASSES[:-1], "moon"])
    assert "fc.weight and fc.bias new" in said and torch.equal(network.fc.weight, last)
    assert torch.equal(network.conv.weight, weights.tensors["conv.weight"])
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    wide = models.build(CifarModel(name="resnet8", width=2), 10)
    deep = models.build(CifarModel(name="resnet14"), 10)
    for other, part in ((wide, "of another shape"), (deep, "missing")):
        with pytest.raises(ValueError, match=f"another network.*{part}.*the model's keys"):
            transfer.start_from(other, weights, shapes.CLASSES)
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


def test_torchvisions_own_weights_start_family_imagenet(tmp_path):
    import torchvision  # seconds, for every process that collects

    theirs = torchvision.models.resnet18().eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    weights = files.read(tmp_path / "resnet18.pth")
    ours = models.build(ImagenetModel(name="resnet18"), 1000).eval()
    assert "all there are" in transfer.start_from(ours, weights, [str(i) for i in range(1000)])
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(x), theirs(x))
    few = models.build(ImagenetModel(name="resnet18"), 5)
    said = transfer.start_from(few, weights, list("abcde"))
    assert "fc.weight and fc.bias new" in said
    with pytest.raises(ValueError, match=r"a state dict alone.*init_from"):
        weights.known()
