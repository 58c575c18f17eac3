"""Does it work on this GPU, and how fast is it? In two commands of some minutes, or in one:

python -m benchmarks.gpu.run a --out OUT --kit gpu-kit --seconds 150
python -m benchmarks.gpu.run b --out OUT --kit gpu-kit --seconds 540
python -m benchmarks.gpu.run all --out OUT --data BETONS

a: whether it works at all. b, at once after it on the same machine: how fast, and how good; it
leaves out what a has seen to fail. Both want what `make gpu-kit` has made, and neither a network
nor anything installed but torch and what commonly comes with it. all: both, for a machine of one's
own, with the device tests and more tables.

OUT gets at most eight files, of at most 15 MiB each, and is complete after every step: report in
Markdown, rows, log, curves, and the deepest network's run, with which another machine may go on."""

import argparse
import json
import os
import shutil
import time
import zipfile
from pathlib import Path

from benchmarks.gpu import report, steps
from benchmarks.gpu.task import STEP, process

ROOT = Path(__file__).parents[2]
MOST = 15 * 2**20  # bytes of a file that is brought back
RESERVE = 4.0  # seconds at the end, for the last report


def main() -> None:
    options = parse()
    began, command = time.time(), options.command
    options.out.mkdir(parents=True, exist_ok=True)
    options.keep.mkdir(parents=True, exist_ok=True)
    if options.kit:
        take_over(options.kit, options.keep)
    rows, log = options.out / f"{command}.jsonl", options.out / f"{command}.log"
    before = [p for p in (options.keep / "a.jsonl",) if command == "b" and p.exists()]
    request = {
        **{key: str(getattr(options, key)) for key in ("out", "keep")},
        "data": str(options.data or options.keep / "cifar10"),
        "shapes": str(options.keep / "shapes"),
        "small": options.small,
        "seconds": options.seconds,
        "rows": [str(rows), *map(str, before)],
    }
    failed = 0
    with process(log, environment(options.keep, options.small)) as taking:
        for step in steps.of(command, options.seconds, bool(options.data)):
            if options.only and step.name not in options.only:
                continue
            left = began + options.seconds - time.time() - RESERVE - step.leaves
            limit = min(step.limit, left)
            start, alone = time.time(), step.alone and not options.small
            if limit < steps.LEAST:
                why = "no time was left"
            else:
                asked = {"step": step.name, "work": step.work, "until": start + limit - 2}
                if alone:
                    taking.close()
                why = taking.take({**request, **asked}, limit)
                if alone:
                    taking.close()
            failed += bool(why)
            end = {"seconds": round(time.time() - start, 1), "failed": why}
            with open(rows, "a") as file:
                file.write(json.dumps({"step": STEP, "name": step.name, **end}) + "\n")
            print(f"{step.name}: {why or 'done'}, {end['seconds']} s", flush=True)
            report.write(options.out / f"{command}.md", [*before, rows])
            if why and step.vital:
                break
    shutil.copy(rows, options.keep)
    bring_back(log, options.keep, options.out)
    report.write(options.out / f"{command}.md", [*before, rows])
    print(f"{options.out / command}.md: {failed} steps failed; {time.time() - began:.0f} s")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("a", "b", "all"))
    parser.add_argument("--out", type=lambda p: Path(p).resolve(), required=True)
    parser.add_argument("--seconds", type=float, default=1e5, help="that all of it may take")
    parser.add_argument("--kit", type=Path, help="the folder that `make gpu-kit` has filled")
    parser.add_argument("--data", type=lambda p: Path(p).resolve(), help="betons of CIFAR-10")
    parser.add_argument("--keep", type=lambda p: Path(p).resolve(), help="what b finds of a")
    parser.add_argument("--small", action="store_true", help="a rehearsal, also without a GPU")
    parser.add_argument("--only", nargs="+", metavar="STEP")
    options = parser.parse_args()
    work = options.out / "work" if options.command == "all" else Path.home() / "dist_resnet_gpu"
    options.keep = options.keep or work
    if options.command == "all" and not options.data:
        parser.error("all needs --data BETONS (dist-resnet prepare cifar10 --val 0)")
    return options


def take_over(kit: Path, keep: Path) -> None:
    """What of the kit has travelled with this command."""
    if not (keep / "site").exists():
        with zipfile.ZipFile(kit / "site.zip") as archive:
            archive.extractall(keep / "site")
    for half in ("a", "b"):
        if (kit / half).exists():
            shutil.copytree(kit / half, keep / half, dirs_exist_ok=True)


def environment(keep: Path, small: bool) -> dict[str, str]:
    # a rehearsal is one of several things that a few cores do
    few = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"} if small else {}
    site = [str(keep / "site")] if (keep / "site").exists() else []
    paths = [*site, str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    python = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **python, **few}


def bring_back(log: Path, keep: Path, out: Path) -> None:
    """Curves, figures and the deepest run, for `MOST` bytes each; the middle of a long log goes."""
    runs = keep / "runs"
    content = log.read_bytes() if log.exists() else b""
    if len(content) > MOST:
        log.write_bytes(content[: MOST // 2] + b"\n[...]\n" + content[-MOST // 2 + 10 :])
    if out == keep.parent or not runs.exists():
        return  # all is there already
    for picture in runs.glob("*/curves.png"):
        shutil.copy(picture, out / f"{picture.parent.name}.png")
    figures = [p for p in runs.rglob("*") if p.suffix in (".json", ".jsonl", ".yaml")]
    _zip(out / "runs.zip", runs, [p for p in figures if p.stat().st_size < 2**20])
    if (deep := runs / "deep").exists():
        latest = deep / "checkpoints/LATEST"
        last = [latest, latest.parent / latest.read_text().strip()] if latest.exists() else []
        _zip(out / "deep.zip", runs, [*last, *(p for p in figures if deep in p.parents)])


def _zip(path: Path, base: Path, files: list[Path]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, file.relative_to(base))
    if path.stat().st_size > MOST:
        print(f"{path.name} is too large to be brought back: {path.stat().st_size:,} bytes")
        path.unlink()


if __name__ == "__main__":
    main()
