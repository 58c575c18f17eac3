"""The command `dist-resnet`: prepare, train, evaluate, compare; stage, settle. Answers --help without importing torch."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dist_resnet import config_file
from dist_resnet.config import Config
from dist_resnet.data import manifest
from dist_resnet.signals import COMPLETED
from launch import arguments, cluster, run_dir
from launch import sweep as sweeps
from launch.place import Place, check


def main(given: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if given is None else given)
    parser = arguments.parser()
    options, rest = parser.parse_known_args(words)
    if rest and options.command not in ("train", "stage", "sweep", "speedrun", "plan"):
        parser.error(f"unknown arguments: {' '.join(rest)}")
    try:
        code = COMMANDS[options.command](options, rest)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"dist-resnet {options.command}: error: {error}", file=sys.stderr)
        code = getattr(error, "exit_code", 1)
    sys.exit(code)


def resolve_run(options: argparse.Namespace, overrides: Sequence[str]) -> tuple[Path, Config]:
    config = config_file.load(options.config, overrides)
    if options.sweep_dir and not options.run_dir:
        if "WANDB_RUN_ID" not in os.environ:
            raise ValueError("--sweep-dir is for the agents of a W&B sweep, which set WANDB_RUN_ID; give --run-dir instead")
        return options.sweep_dir / os.environ["WANDB_RUN_ID"], config
    return options.run_dir or run_dir.default(options.config, config), config


def prepare(options: argparse.Namespace, rest: Sequence[str]) -> int:
    out = options.out or Path("data") / options.dataset
    if (out / manifest.FILE).exists() and not options.force:
        raise ValueError(f"--out {out} already holds betons: give another --out, or --force")
    if not 1 <= options.jpeg_quality <= 100:
        raise ValueError(f"--jpeg-quality {options.jpeg_quality}: must be 1 to 100")
    given = {"--name": options.name, "--max-resolution": options.max_resolution, "--write-mode": options.write_mode != "auto",
             "--jpeg-quality": options.jpeg_quality != 90, "--on-broken": options.on_broken != "fail"}
    unread = [] if options.dataset == "imagefolder" else [flag for flag, value in given.items() if value]
    if options.dataset == "shapes" and options.source:
        unread.append("--source")
    if unread:
        raise ValueError(f"prepare {options.dataset} does not read {', '.join(unread)}: leave it out")
    from dist_resnet.data import betons, shapes, sources  # imports torch
    from dist_resnet.data.encoding import Encoding

    val = options.val if options.val is not None else 5000 if options.dataset.startswith("cifar") else 0
    if options.dataset == "shapes":
        dataset = shapes.make(seed=options.seed)
    elif options.dataset == "imagefolder":
        if options.source is None:
            raise ValueError("prepare imagefolder: --source is missing: name a tree with train/<class>/<image> and test/ or val/")
        how = Encoding(options.write_mode, options.max_resolution, options.jpeg_quality, skip_broken=options.on_broken == "skip")
        dataset = sources.imagefolder(options.name or options.source.resolve().name, options.source, how)
    else:
        dataset = sources.cifar(options.dataset, options.source, out.parent)
    written = betons.prepare(dataset, out, val, options.seed)
    for name, split in written.splits.items():
        print(f"{out / split.file}: {split.samples:,} samples, {split.bytes / 2**20:.0f} MiB")
    print(f"{len(written.classes)} classes; mean {_three(written.mean)}, std {_three(written.std)}")
    return 0


def train(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from launch import agents, local

    directory, config = resolve_run(options, overrides)
    place = Place.of(options, config.train.device)
    if (options.wait or options.dry_run) and not place.on_slurm:
        raise ValueError(f"--wait and --dry-run are for SLURM jobs: leave them out with --cluster {options.cluster}")
    if options.dry_run:
        from launch import slurm

        print(slurm.script(directory, place.cluster, place.nodes, place.workers))
        return 0
    check(config, place.nodes * place.workers)
    run_dir.create(directory, config)
    if (directory / "summary.json").exists():
        print(f"{directory} is complete")
        return show([directory], directory / "curves.png")
    print(f"run directory: {directory}", flush=True)
    if place.on_slurm:
        return _queue(directory, place, options.wait)
    with agents.claimed(directory):
        outcome = _in_this_process(directory) if options.cluster == "debug" else local.train(directory, place.workers, config.train.device)
    if outcome != COMPLETED:
        print(f"{outcome}: the same command goes on from the last checkpoint")
        return 130
    return show([directory], directory / "curves.png")


def sweep(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from launch import sweeping

    unread = {"--nodes": options.nodes != 1, "--seed": options.seed != 0} if options.wandb else {"--agents": options.agents != 1}
    given = [flag for flag, is_given in unread.items() if is_given]
    if given:
        raise ValueError(f"{', '.join(given)} is not read {'with' if options.wandb else 'without'} --wandb: leave it out")
    found = sweeps.load(options.file)
    directory = options.sweep_dir or Path("runs") / found.name
    ended = (sweeping.run_agents if options.wandb else sweeping.train_all)(found, directory, options, overrides)
    if ended in ("complete", "failed"):
        compare(arguments.parser().parse_args(["compare", str(directory), "--figure", str(directory / "compare.png"),
                                               "--html", str(directory / "compare.html")]), ())
    return {"complete": 0, "failed": 1, "interrupted": 130, "queued": 0}[ended]


def speedrun(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from launch import speedrun

    return speedrun.speedrun(options, overrides)


def plan(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from launch import planning

    if not options.step and not options.measured:
        raise ValueError("plan: nothing measured; give --step BATCH:MILLISECONDS or --measured RUN_DIR")
    return planning.plan(options, overrides)


def stage(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from launch import slurm  # submitit

    if options.sweep_run is None:
        directory, config = resolve_run(options, overrides)
    else:
        found = sweeps.load(options.config)
        runs = sweeps.runs(found, options.sweep_dir or Path("runs") / found.name, options.count, options.seed, overrides)
        if options.sweep_run >= len(runs):
            print(f"the sweep has {len(runs)} runs: nothing to do", file=sys.stderr)
            return 0
        directory, config = runs[options.sweep_run]
    run_dir.create(directory, config)
    if (directory / "summary.json").exists():
        print(f"{directory} is complete", file=sys.stderr)
        return 0
    print(slurm.stage(directory, cluster.Cluster(max_restarts=options.max_restarts, max_faults=options.max_faults)))
    return 0


def settle(options: argparse.Namespace, rest: Sequence[str]) -> int:
    from launch import slurm  # submitit

    return slurm.settle(options.folder)


def _queue(directory: Path, place: Place, wait: bool) -> int:
    from launch import follow, slurm
    from launch.task import WorkerTask

    task = WorkerTask(str(directory.resolve()), max_faults=place.cluster.max_faults)
    (job,) = slurm.submit(directory, [task], place.cluster, place.nodes, place.workers)
    log = directory / "logs" / f"{job}_0_log.out"
    print(f"job {job} queued\n  follow: tail -F {log}\n  cancel: scancel {job}\n  resume: the same command", flush=True)
    if not wait:
        return 0
    try:
        return follow.follow(job, log)
    except KeyboardInterrupt:
        print(f"\njob {job} goes on; cancel it with scancel {job}", file=sys.stderr)
        return 130


def _in_this_process(directory: Path) -> str:
    from submitit import DebugExecutor

    from launch.task import WorkerTask

    job = DebugExecutor(directory / "logs").submit(WorkerTask(str(directory)))
    os.environ["SUBMITIT_DEBUG_JOB_ID"] = job.job_id  # results() would set it, but ends in pdb, terminal or not
    return job.submission().result()


def evaluate(options: argparse.Namespace, rest: Sequence[str]) -> int:
    from launch.task import single_worker

    if not (options.run_dir / "config.yaml").exists():
        raise ValueError(f"{options.run_dir} is not a run directory: it has no config.yaml")
    single_worker()
    from dist_resnet import worker

    means = worker.evaluate(options.run_dir, options.checkpoint.upper())
    print(f"{options.checkpoint}: loss {means.loss:.4f}, top-1 {100 * means.top1:.2f} %, top-5 {100 * means.top5:.2f} % "
          f"of {means.samples:,} samples")
    return 0


def compare(options: argparse.Namespace, rest: Sequence[str]) -> int:
    from dist_resnet import figures, report

    comparison = report.compare(options.run_dirs)
    texts = {"csv": report.as_csv, "json": report.as_json, "markdown": report.as_markdown}
    if options.format != "table":
        sys.stdout.write(texts[options.format](comparison))
    else:
        _print_tables(report.tables(comparison))
    if options.html:
        title = ", ".join(path.name or str(path) for path in options.run_dirs[:3]) + ("..." if len(options.run_dirs) > 3 else "")
        options.html.write_text(report.as_html(comparison, title), encoding="utf-8")
    results = [run.results["top-1"] for run in comparison.runs]
    points = [{key: comparison.cells(run)[key] for key in comparison.changed if key not in report.KEPT_APART} for run in comparison.runs]
    figures.draw_comparison([run.path for run in comparison.runs], points, results, options.figure)
    for path in filter(None, (options.figure, options.html)):
        print(f"written: {path}", file=sys.stderr)
    return 0


def show(paths: Sequence[Path], figure: Path) -> int:
    """What a training or a sweep ends with: the table, and where the curves are."""
    from dist_resnet import report

    _print_tables(report.tables(report.compare(paths)))
    print(f"curves: {figure}")
    return 0


def _print_tables(tables: Sequence[object]) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 200)
    for table in tables:
        console.print(table)


def _three(values: Sequence[float]) -> str:
    return " ".join(f"{v:.4f}" for v in values)


COMMANDS = {"prepare": prepare, "train": train, "sweep": sweep, "speedrun": speedrun, "plan": plan, "stage": stage, "settle": settle, "evaluate": evaluate, "compare": compare}

if __name__ == "__main__":
    main()
