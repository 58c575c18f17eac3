"""`dist-resnet estimate`: what a training would take on a cluster, from steps measured on one
worker, or from a data sheet."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dist_resnet.config import Config, config_file
from dist_resnet.data import manifest
from dist_resnet.reports import estimate as model
from dist_resnet.reports.estimate import Link, Step
from dist_resnet.reports.roofline import DEVICES, EAGER_US, GRAPHED_US, Device, Roofline
from launch.inspection.describe import inputs


def options(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "dist-resnet estimate CONFIG (--step BATCH:MS | --measured RUN_DIR | --device NAME) "
        "[options] [--section.key value ...]"
    )
    parser.description = (
        "Estimate step, epoch and total time for 1, 2, 4 ... workers, under both "
        "milestone policies. Two measured batches tell the fixed part of a step from the rest."
    )
    parser.add_argument("config", type=Path, metavar="CONFIG")
    parser.add_argument(
        "--step",
        action="append",
        default=[],
        metavar="BATCH:MS",
        help="a measured step of one worker, such as 128:24.5",
    )
    parser.add_argument(
        "--measured",
        action="append",
        default=[],
        type=Path,
        metavar="RUN_DIR",
        help="a complete run of one worker",
    )
    parser.add_argument(
        "--device",
        choices=[*DEVICES, "cpu"],
        help="nothing measured: a bound from below, from the operations, bytes and launches of a "
        "step in bf16 and the device's data sheet; cpu: from what this machine's reaches",
    )
    parser.add_argument("--nodes", type=int, default=1, help="at most so many")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="workers of a node")
    parser.add_argument("--batch", type=int, default=128, help="per worker")
    parser.add_argument(
        "--link",
        default="25GBps",
        help="what each worker can send: 25GBps is 200Gbps; or the link.json that `dist-resnet "
        "doctor` has measured, latency included",
    )
    parser.add_argument("--latency", default="20us", help="until the first byte arrives")
    parser.add_argument("--samples", type=int, help="training images (default: those of data.dir)")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the tables")


def estimate(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    config = config_file.load(options.config, overrides)
    if bool(options.step or options.measured) == bool(options.device):
        raise ValueError(
            "estimate: give what was measured, --step BATCH:MILLISECONDS or --measured RUN_DIR, "
            "or, where nothing was measured, --device NAME"
        )
    measured = options.link.endswith(".json")
    link = Link.read(Path(options.link)) if measured else Link.parse(options.link, options.latency)
    samples = options.samples or manifest.load(Path(config.data.dir)).splits["train"].samples
    most = options.nodes * options.gpus_per_node
    counts = sorted({1, *(2**k for k in range(1, 13) if 2**k < most), most})
    size = 4 * _parameters(config)
    found = []
    for how, step in _steps(options, config).items():
        rows = [
            model.estimate(config, step, link, size, samples, workers, options.batch)
            for workers in counts
        ]
        best = model.best_batch(config, step, link, size, samples, most)
        found.append({"how": how.removeprefix(": ") or "measured", "rows": rows, "best": best})
        if not options.json:
            _show(
                rows + ([best] if best else []),
                f"{config.model.name}, {samples:,} images{how}; the last row: the best batch per "
                f"worker for {most} workers",
            )
    if options.json:
        print(json.dumps(found))
    return 0


def _steps(options: argparse.Namespace, config: Config) -> dict[str, Step | Roofline]:
    """What is known of a step, by what the table's title says of it."""
    if options.device is None:
        return {"": Step.fit([*map(_parse, options.step), *map(_read, options.measured)])}
    if options.device == "cpu":
        import torch

        from dist_resnet.diagnosis import cpu_speed
        from dist_resnet.runtime import precision

        asked = config.train.precision
        name = asked if asked != "auto" else precision.best(torch.device("cpu"))
        device = Device(*cpu_speed.measure(precision.DTYPES[name]))
        return {f": at least, on this CPU, in {name}": _roofline(config, device, 0.0, name)}
    device, head = DEVICES[options.device], f": not measured; at least, on {options.device}"
    return {
        f"{head}, step by step, if a launch takes {EAGER_US:g} us": _roofline(
            config, device, EAGER_US
        ),
        f"{head}, as a CUDA graph, if one takes {GRAPHED_US:g} us": _roofline(
            config, device, GRAPHED_US
        ),
    }


def _roofline(config: Config, device: Device, launch_us: float, name: str = "bf16") -> Roofline:
    from dist_resnet.models.step_cost import step_cost
    from dist_resnet.runtime.precision import DTYPES

    classes, size = inputs(config, side=config.data.resolution)
    one, two = (step_cost(config.model, classes, size, n, DTYPES[name]) for n in (64, 128))
    return Roofline(one, two, 64, device, launch_us * 1e-6)


def _parse(text: str) -> tuple[int, float]:
    batch, _, milliseconds = text.partition(":")
    try:
        return int(batch), float(milliseconds) / 1e3
    except ValueError:
        raise ValueError(f"--step {text!r}: write BATCH:MILLISECONDS, such as 128:24.5") from None


def _read(run_dir: Path) -> tuple[int, float]:
    """(batch, seconds of a step) of a complete run of one worker."""
    path = run_dir / "summary.json"
    if not path.exists():
        raise ValueError(f"--measured {run_dir}: no summary.json; name a complete run")
    summary = json.loads(path.read_text())
    if summary["world_size"] != 1:
        raise ValueError(
            f"--measured {run_dir}: was trained by {summary['world_size']} workers; measure with "
            "--workers-per-node 1"
        )
    return summary["samples"] // summary["steps"], summary["seconds"]["training"] / summary["steps"]


def _parameters(config: Config) -> int:
    import torch

    from dist_resnet import models

    with torch.device("meta"):
        return sum(p.numel() for p in models.build(config.model, 10).parameters())


def _show(rows: list[dict[str, float | None]], title: str) -> None:
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(
            *(
                "-"
                if v is None
                else f"{v:,.4g}"
                if isinstance(v, float) and v < 1000
                else f"{v:,.0f}"
                for v in row.values()
            )
        )
    Console(width=160).print(table)
