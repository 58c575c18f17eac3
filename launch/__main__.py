"""The command `dist-resnet`: prepare, train, evaluate, compare; stage, settle. Answers --help without importing torch."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dist_resnet import config_file, schedule
from dist_resnet.config import Config
from dist_resnet.data import manifest
from dist_resnet.signals import COMPLETED
from launch import cluster, run_dir


def main(arguments: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    options, rest = parser.parse_known_args(words)
    if rest and options.command not in ("train", "stage"):
        parser.error(f"unknown arguments: {' '.join(rest)}")
    try:
        code = COMMANDS[options.command](options, rest)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"dist-resnet {options.command}: error: {error}", file=sys.stderr)
        code = getattr(error, "exit_code", 1)
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("dist-resnet", description="Train ResNets on one machine or on a SLURM cluster.")
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="write the betons of a data set",
                                  description="Write train, val and test betons and their manifest.json.")
    prepare.add_argument("dataset", choices=("cifar10", "cifar100", "imagefolder", "shapes"))
    prepare.add_argument("--source", type=Path, help="where the images are: an ImageFolder tree, archives of one, or (CIFAR) the "
                         "official python batches, as folder or archive; CIFAR is looked for beside --out, then downloaded")
    prepare.add_argument("--out", type=Path, help="directory to write to (data/DATASET)")
    prepare.add_argument("--name", help="name of the data set (imagefolder: its folder's name)")
    prepare.add_argument("--val", type=int, help="training images to hold out as val, stratified; 0: none "
                         "(CIFAR: 5000, the paper's 45k/5k split; others: 0)")
    prepare.add_argument("--seed", type=int, default=0, help="of the val split, and of `shapes` (0)")
    prepare.add_argument("--write-mode", choices=("auto", "raw", "jpg"), default="auto",
                         help="imagefolder: raw pixels or JPEG (auto: raw for images of one size up to 64 pixels)")
    prepare.add_argument("--max-resolution", type=int, help="imagefolder: shrink to this many pixels on the longer side")
    prepare.add_argument("--jpeg-quality", type=int, default=90, help="imagefolder: 1 to 100 (90)")
    prepare.add_argument("--force", action="store_true", help="write again over betons that are there")
    _add_train_options(commands.add_parser(
        "train", help="train, or go on with a training", formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="dist-resnet train CONFIG [options] [--section.key value ...]", allow_abbrev=False,
        description="Train as CONFIG says. The same command goes on where it was stopped.",
        epilog="configuration keys  [default]\n" + config_file.describe()))
    stage = commands.add_parser("stage", usage="dist-resnet stage CONFIG [--run-dir DIR] [--section.key value ...]", allow_abbrev=False,
                                description="For batch scripts: make RUN_DIR, put the task where submitit's runner in this job finds it, "
                                            "print the folder to give to that runner.")
    stage.add_argument("config", type=Path, metavar="CONFIG")
    stage.add_argument("--run-dir", type=Path)
    for key in ("max_restarts", "max_faults"):
        field = cluster.Cluster.__dataclass_fields__[key]
        stage.add_argument(f"--{key.replace('_', '-')}", type=int, default=field.default,
                           help=f"{field.metadata['comment']} ({field.default})")
    settle = commands.add_parser("settle", description="For batch scripts, after their srun: say who failed and why. Ends with "
                                                        "75 where the job should be requeued.")
    settle.add_argument("folder", type=Path, help="what `stage` printed")
    evaluate = commands.add_parser("evaluate", help="evaluate a checkpoint of a run", description="Evaluate a checkpoint, exactly.")
    evaluate.add_argument("run_dir", type=Path)
    evaluate.add_argument("--checkpoint", choices=("latest", "best"), default="latest")
    compare = commands.add_parser("compare", help="a table and a figure of several runs", description="Compare runs.")
    compare.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN_DIR")
    compare.add_argument("--figure", type=Path, default=Path("compare.png"), help="where to draw the curves (compare.png)")
    return parser


def _add_train_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file, such as configs/resnet110.yaml")
    parser.add_argument("--cluster", default="local", help="local, debug (one worker, in this process), slurm, or a cluster FILE.yaml")
    parser.add_argument("--nodes", type=int, default=1, help="nodes of a SLURM job (1)")
    parser.add_argument("--workers-per-node", type=int, help="workers on each node (one per GPU; on the CPU two)")
    parser.add_argument("--run-dir", type=Path, help="where everything is kept (runs/CONFIG-DIGEST)")
    parser.add_argument("--wait", action="store_true", help="SLURM: follow the job, start its requeues at once, end with its exit code")
    parser.add_argument("--dry-run", action="store_true", help="SLURM: print the batch script, and do nothing")


def resolve_run(options: argparse.Namespace, overrides: Sequence[str]) -> tuple[Path, Config]:
    config = config_file.load(options.config, overrides)
    return options.run_dir or run_dir.default(options.config, config), config


def prepare(options: argparse.Namespace, rest: Sequence[str]) -> int:
    out = options.out or Path("data") / options.dataset
    if (out / manifest.FILE).exists() and not options.force:
        raise ValueError(f"--out {out} already holds betons: give another --out, or --force")
    if not 1 <= options.jpeg_quality <= 100:
        raise ValueError(f"--jpeg-quality {options.jpeg_quality}: must be 1 to 100")
    given = {"--name": options.name, "--max-resolution": options.max_resolution, "--write-mode": options.write_mode != "auto",
             "--jpeg-quality": options.jpeg_quality != 90}
    unread = [] if options.dataset == "imagefolder" else [flag for flag, value in given.items() if value]
    if options.dataset == "shapes" and options.source:
        unread.append("--source")
    if unread:
        raise ValueError(f"prepare {options.dataset} does not read {', '.join(unread)}: leave it out")
    from dist_resnet.data import betons, shapes, sources  # imports torch

    val = options.val if options.val is not None else 5000 if options.dataset.startswith("cifar") else 0
    if options.dataset == "shapes":
        dataset = shapes.make(seed=options.seed)
    elif options.dataset == "imagefolder":
        if options.source is None:
            raise ValueError("prepare imagefolder: --source is missing: name a tree with train/<class>/<image> and test/ or val/")
        dataset = sources.imagefolder(options.name or options.source.resolve().name, options.source, options.write_mode,
                                      options.max_resolution, options.jpeg_quality)
    else:
        dataset = sources.cifar(options.dataset, options.source, out.parent)
    written = betons.prepare(dataset, out, val, options.seed)
    for name, split in written.splits.items():
        print(f"{out / split.file}: {split.samples:,} samples, {split.bytes / 2**20:.0f} MiB")
    print(f"{len(written.classes)} classes; mean {_three(written.mean)}, std {_three(written.std)}")
    return 0


def train(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from launch import local  # submitit

    on_slurm = options.cluster not in ("local", "debug")
    where = cluster.load(None if options.cluster in ("local", "debug", "slurm") else Path(options.cluster))
    if options.nodes != 1 and not on_slurm:
        raise ValueError(f"--nodes {options.nodes}: --cluster {options.cluster} has one node; use --workers-per-node, or --cluster slurm")
    if (options.wait or options.dry_run) and not on_slurm:
        raise ValueError(f"--wait and --dry-run are for SLURM jobs: leave them out with --cluster {options.cluster}")
    directory, config = resolve_run(options, overrides)
    if on_slurm:
        workers = options.workers_per_node or where.gpus_per_node or 1
    else:
        workers = 1 if options.cluster == "debug" else options.workers_per_node or local.default_workers(config.train.device)
        local.check(workers, config.train.device)
    if options.dry_run:
        from launch import slurm

        print(slurm.script(directory, where, options.nodes, workers))
        return 0
    check(config, options.nodes * workers)
    run_dir.create(directory, config)
    if (directory / "summary.json").exists():
        print(f"{directory} is complete")
        return compare_runs([directory], directory / "curves.png")
    print(f"run directory: {directory}", flush=True)
    if on_slurm:
        return _queue(directory, where, options.nodes, workers, options.wait)
    outcome = _in_this_process(directory) if options.cluster == "debug" else local.train(directory, workers, config.train.device)
    if outcome != COMPLETED:
        print(f"{outcome}: the same command goes on from the last checkpoint")
        return 130
    return compare_runs([directory], directory / "curves.png")


def stage(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from launch import slurm  # submitit

    directory, config = resolve_run(options, overrides)
    run_dir.create(directory, config)
    if (directory / "summary.json").exists():
        print(f"{directory} is complete", file=sys.stderr)
        return 0
    print(slurm.stage(directory, cluster.Cluster(max_restarts=options.max_restarts, max_faults=options.max_faults)))
    return 0


def settle(options: argparse.Namespace, rest: Sequence[str]) -> int:
    from launch import slurm  # submitit

    return slurm.settle(options.folder)


def check(config: Config, world_size: int) -> None:
    """What can be known to fail before any worker starts."""
    if world_size < 1:
        raise ValueError(f"--nodes and --workers-per-node make {world_size} workers: there must be at least 1")
    directory = Path(config.data.dir)
    betons = manifest.load(directory, config.data.dataset)
    for split in ("train", config.data.evaluate_on):
        manifest.verify(directory, betons, split, contents=False)
    schedule.plan(config, world_size, betons.splits["train"].samples)


def _queue(directory: Path, where: cluster.Cluster, nodes: int, workers: int, wait: bool) -> int:
    from launch import follow, slurm

    job = slurm.submit(directory, where, nodes, workers)
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
    return compare_runs(options.run_dirs, options.figure)


def compare_runs(run_dirs: Sequence[Path], figure: Path) -> int:
    from rich.console import Console

    from dist_resnet import report

    table = report.table(run_dirs)
    if not (len(run_dirs) == 1 and figure.exists()):
        report.draw_curves(run_dirs, figure)
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    print(f"curves: {figure}")
    return 0


def _three(values: Sequence[float]) -> str:
    return " ".join(f"{v:.4f}" for v in values)


COMMANDS = {"prepare": prepare, "train": train, "stage": stage, "settle": settle, "evaluate": evaluate, "compare": compare}

if __name__ == "__main__":
    main()
