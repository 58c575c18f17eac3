"""`dist-resnet describe`: what a configuration's network is made of, and what it costs."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from dist_resnet.config import CifarModel, Config, Model, config_file
from dist_resnet.data import manifest

if TYPE_CHECKING:
    from dist_resnet.models.description import Layer

# depth -> test error in He et al. 2015, table 6 (ResNet-110: mean of five trainings)
PAPER = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.61, 1202: 7.93}


def options(parser: argparse.ArgumentParser) -> None:
    parser.usage = "dist-resnet describe CONFIG [options] [--section.key value ...]"
    parser.description = (
        "The network of CONFIG: its layers with shapes, parameters, multiply-adds of a forward "
        "pass, and the memory that activations take until the backward pass, of one image."
    )
    parser.add_argument("config", type=Path, nargs="?", metavar="CONFIG")
    parser.add_argument("--layers", action="store_true", help="every layer, not every block")
    parser.add_argument(
        "--paper",
        action="store_true",
        help="the 6n+2 networks of He et al. 2015 beside each other; with CONFIG, with its other "
        "settings",
    )
    parser.add_argument(
        "--classes", type=int, help="(default: those of data.dir; without betons 10; ImageNet 1000)"
    )
    parser.add_argument(
        "--size",
        type=int,
        help="pixels a side (default: data.resolution, or those of data.dir, or 32)",
    )
    parser.add_argument("--figure", type=Path, help="also draw the table there, .png or .svg")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")


def describe(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    if options.config is None and (overrides or not options.paper):
        raise ValueError("describe: name a CONFIG, such as configs/resnet110.yaml, or --paper")
    _check_figure(options)
    for flag, value in (("--classes", options.classes), ("--size", options.size)):
        if value is not None and value < 1:
            raise ValueError(f"{flag} {value}: must be at least 1")
    config = config_file.load(options.config, overrides) if options.config else Config()
    classes, size = inputs(
        config,
        classes=options.classes,
        side=options.size,
        betons_too=options.config is not None,
    )
    if options.paper:
        rows, title = _paper(config.model, classes, size), "the 6n+2 networks"
    else:
        rows, title = _layers(config.model, classes, size, not options.layers), config.model.name
    head = f"{title}: {classes} classes, images of {size[0]}x{size[1]}"
    if options.figure:
        from dist_resnet.reports import cost_figure  # matplotlib takes half a second to import

        cost_figure.draw_costs(rows, head, options.figure)
    if options.json:
        print(json.dumps(rows))
    else:
        _show(rows, head, totals=not options.paper)
    return 0


def _check_figure(options: argparse.Namespace) -> None:
    path = options.figure
    if path and path.suffix not in (".png", ".svg"):
        raise ValueError(f"--figure {path}: its name must end in .png or .svg")
    if path and options.paper:
        raise ValueError("--figure is of one network: leave out --paper")


def inputs(
    config: Config, *, classes: int | None = None, side: int | None = None, betons_too: bool = True
) -> tuple[int, tuple[int, int]]:
    """Number of classes, and height and width: those given, or as far as the configuration and its
    betons tell."""
    data, betons = config.data, None
    if betons_too and (Path(data.dir) / manifest.FILE).exists():
        betons = manifest.load(Path(data.dir), data.dataset)
    usual = 1000 if config.model.family == "imagenet" else 10
    classes = classes or (len(betons.classes) if betons else usual)
    side = side or data.eval_resolution or data.resolution
    if side is None and betons and betons.shape:
        return classes, (betons.shape[0], betons.shape[1])
    return classes, (side or 32, side or 32)


def _layers(model: Model, classes: int, size: tuple[int, int], blocks: bool) -> list[dict]:
    from dist_resnet.models import description

    layers = description.folded(description.describe(model, classes, size, blocks))
    return [_row(layer) for layer in layers]


def _row(layer: "Layer") -> dict:
    return {
        "layer": layer.name,
        "kind": layer.kind,
        "times": layer.count,
        "output": "x".join(map(str, layer.output)),
        "parameters": layer.count * layer.parameters,
        "multiply-adds": layer.count * layer.multiply_adds,
        "activations, bytes": layer.count * layer.activations,
    }


def _paper(model: Model, classes: int, size: tuple[int, int]) -> list[dict]:
    from dist_resnet.models import description

    if not isinstance(model, CifarModel) or model.block != "basic":
        raise ValueError(
            "--paper: has networks of family cifar with basic blocks; leave CONFIG out"
        )
    rows = []
    for depth, error in PAPER.items():
        own = dataclasses.replace(model, name=f"resnet{depth}")
        layers = description.describe(own, classes, size, blocks=True)
        rows.append(
            {
                "n": (depth - 2) // 6,
                "layers": depth,
                "parameters": sum(layer.parameters for layer in layers),
                "multiply-adds": sum(layer.multiply_adds for layer in layers),
                "activations, bytes": sum(layer.activations for layer in layers),
                "paper's error, %": error,
            }
        )
    return rows


def _show(rows: list[dict], title: str, totals: bool) -> None:
    table = Table(title=title, title_justify="left", show_footer=totals)
    for name in rows[0]:
        values = [row[name] for row in rows]
        numbers = not isinstance(values[0], str)
        summed = totals and numbers and name != "times"
        footer = f"{sum(values):,}" if summed else ""
        table.add_column(name, footer, justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*(f"{v:,}" if isinstance(v, int) else str(v) for v in row.values()))
    Console(width=160).print(table)
