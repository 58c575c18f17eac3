"""`dist-resnet export`: trained weights as a file for others."""

import argparse
from pathlib import Path


def options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write a run's weights as one file, with what must be known to use them: the network's "
        "settings, classes, mean and std, size of the images. ONNX: uint8 images (batch, 3, H, W) "
        "to logits, the normalisation inside, compared with torch before it is written."
    )
    parser.add_argument("source", type=Path, metavar="RUN|FILE", help="a run, or a file of weights")
    parser.add_argument(
        "--checkpoint", choices=("latest", "best"), help="of a run (default: latest)"
    )
    parser.add_argument("--format", choices=("safetensors", "torch", "onnx"), default="safetensors")
    parser.add_argument(
        "--out",
        type=Path,
        help="file to write (default: RUN/model.FORMAT, or beside FILE); replaced",
    )


def export(options: argparse.Namespace) -> int:
    from dist_resnet.weights import classifier, files

    kind = options.format
    weights = files.read(options.source, options.checkpoint)
    card, suffix = weights.known(), files.SUFFIXES[kind]
    out = options.out or _beside(options.source).with_suffix(suffix)
    if out.suffix != suffix:
        raise ValueError(f"--out {out}: a {kind} file's name ends in {suffix}")
    if out.exists() and out.samefile(weights.path):
        raise ValueError(f"--out {out} is what is to be exported: give another name")
    trained, note = classifier.Classifier(weights).eval(), ""
    if kind == "onnx":
        from dist_resnet.weights import onnx_file

        note = f"; logits differ from torch's by {onnx_file.export(trained, out):.1g} at most"
    else:
        files.write(weights, out, kind)
    height, width = card.size
    print(
        f"{out}: {card.settings().name} of {card.dataset}, {len(card.classes)} classes, images of "
        f"{height}x{width}, from {weights.path} ({out.stat().st_size / 2**20:.1f} MiB){note}"
    )
    return 0


def _beside(source: Path) -> Path:
    """RUN/model for a run and its checkpoints, which are pruned in their own folder."""
    if source.is_dir():
        return source / "model"
    return source.parent.parent / "model" if source.parent.name == "checkpoints" else source
