"""`dist-resnet prepare`: the betons of a data set."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dist_resnet.data import manifest


def options(parser: argparse.ArgumentParser) -> None:
    parser.description = "Write train, val and test betons and their manifest.json."
    parser.add_argument("dataset", choices=("cifar10", "cifar100", "imagefolder", "shapes"))
    parser.add_argument(
        "--source",
        help="where the images are: an ImageFolder tree, archives of one, or (CIFAR) the "
        "official python batches, as folder, archive, or the archive's URL; CIFAR is looked for "
        "beside --out, then downloaded from its authors",
    )
    parser.add_argument("--out", type=Path, help="directory to write to (default: data/DATASET)")
    parser.add_argument("--name", help="imagefolder: name of the data set (default: its folder's)")
    parser.add_argument(
        "--val",
        type=int,
        help="training images to hold out as val, stratified; 0: none "
        "(default: of CIFAR 5000, the paper's 45k/5k split; of others 0)",
    )
    parser.add_argument(
        "--split",
        type=float,
        metavar="SHARE",
        help="imagefolder: of a folder <class>/<image> that nobody has split, take this share of "
        "each class as test, such as 0.1",
    )
    parser.add_argument("--seed", type=int, default=0, help="of --val, --split and `shapes`")
    parser.add_argument(
        "--write-mode",
        choices=("auto", "raw", "jpg"),
        default="auto",
        help="imagefolder: raw pixels or JPEG; auto: raw for images of one size up to 64 pixels",
    )
    parser.add_argument(
        "--max-resolution",
        type=int,
        help="imagefolder: shrink to this many pixels on the longer side",
    )
    parser.add_argument("--jpeg-quality", type=int, default=90, help="imagefolder: 1 to 100")
    parser.add_argument(
        "--on-broken",
        choices=("fail", "skip"),
        default="fail",
        help="imagefolder: an image that cannot be read ends the preparation, or is named and "
        "left out",
    )
    parser.add_argument(
        "--force", action="store_true", help="write again over betons that are there"
    )


def prepare(options: argparse.Namespace) -> int:
    out = options.out or Path("data") / options.dataset
    if (out / manifest.FILE).exists() and not options.force:
        raise ValueError(f"--out {out} already holds betons: give another --out, or --force")
    if not 1 <= options.jpeg_quality <= 100:
        raise ValueError(f"--jpeg-quality {options.jpeg_quality}: must be 1 to 100")
    if options.split is not None and not 0 < options.split < 1:
        raise ValueError(f"--split {options.split}: must be above 0 and below 1, such as 0.1")
    _refuse_unread(options)
    from dist_resnet.prepare import betons, shapes, sources  # imports torch
    from dist_resnet.prepare.encoding import Encoding

    is_cifar = options.dataset.startswith("cifar")
    val = options.val if options.val is not None else 5000 if is_cifar else 0
    if options.dataset == "shapes":
        dataset = shapes.make(seed=options.seed)
    elif options.dataset == "imagefolder":
        if options.source is None:
            raise ValueError(
                "prepare imagefolder: --source is missing: name a tree with train/<class>/<image> "
                "and test/ or val/, or with --split a folder <class>/<image>"
            )
        skip = options.on_broken == "skip"
        how = Encoding(
            options.write_mode, options.max_resolution, options.jpeg_quality, skip_broken=skip
        )
        source = Path(options.source)
        name = options.name or source.resolve().name
        dataset = sources.imagefolder(name, source, how, options.split, options.seed)
    else:
        dataset = sources.cifar(options.dataset, options.source, out.parent)
    written = betons.prepare(dataset, out, val, options.seed)
    for split in written.splits.values():
        print(f"{out / split.file}: {split.samples:,} samples, {split.bytes / 2**20:.0f} MiB")
    print(
        f"{len(written.classes)} classes; mean {_joined(written.mean)}, std {_joined(written.std)}"
    )
    return 0


def _refuse_unread(options: argparse.Namespace) -> None:
    """Options that the data set has no use for would be ignored in silence."""
    given = {
        "--name": options.name,
        "--split": options.split is not None,
        "--max-resolution": options.max_resolution,
        "--write-mode": options.write_mode != "auto",
        "--jpeg-quality": options.jpeg_quality != 90,
        "--on-broken": options.on_broken != "fail",
    }
    unread = [flag for flag, value in given.items() if value and options.dataset != "imagefolder"]
    if options.dataset == "shapes" and options.source:
        unread.append("--source")
    if unread:
        raise ValueError(
            f"prepare {options.dataset} does not read {', '.join(unread)}: leave it out"
        )


def _joined(values: Sequence[float]) -> str:
    return " ".join(f"{v:.4f}" for v in values)
