"""The command line of `dist-resnet`."""

import argparse
from pathlib import Path

from dist_resnet.config import config_file
from launch.executors.cluster import Cluster


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(
        "dist-resnet", description="Train ResNets on one machine or on a SLURM cluster."
    )
    commands = root.add_subparsers(dest="command", required=True)
    _add_prepare(commands)
    _add_train_options(
        commands.add_parser(
            "train",
            help="train, or go on with a training",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            usage="dist-resnet train CONFIG [options] [--section.key value ...]",
            allow_abbrev=False,
            description="Train as CONFIG says. The same command goes on where it was stopped.",
            epilog="configuration keys  [default]\n" + config_file.describe(),
        )
    )
    _add_sweep(commands)
    _add_repeat(commands)
    _add_estimate(commands)
    _add_for_scripts(commands)
    evaluate = commands.add_parser(
        "evaluate",
        help="evaluate a checkpoint of a run",
        description="Evaluate a checkpoint, exactly.",
    )
    evaluate.add_argument("run_dir", type=Path)
    evaluate.add_argument("--split", choices=("train", "val", "test"), help="(data.evaluate_on)")
    evaluate.add_argument("--checkpoint", choices=("latest", "best"), default="latest")
    _add_compare(commands)
    return root


def _add_prepare(commands: argparse._SubParsersAction) -> None:
    prepare = commands.add_parser(
        "prepare",
        help="write the betons of a data set",
        description="Write train, val and test betons and their manifest.json.",
    )
    prepare.add_argument("dataset", choices=("cifar10", "cifar100", "imagefolder", "shapes"))
    prepare.add_argument(
        "--source",
        type=Path,
        help="where the images are: an ImageFolder tree, archives of one, or (CIFAR) the "
        "official python batches, as folder or archive; CIFAR is looked for beside --out, then "
        "downloaded",
    )
    prepare.add_argument("--out", type=Path, help="directory to write to (data/DATASET)")
    prepare.add_argument("--name", help="name of the data set (imagefolder: its folder's name)")
    prepare.add_argument(
        "--val",
        type=int,
        help="training images to hold out as val, stratified; 0: none "
        "(CIFAR: 5000, the paper's 45k/5k split; others: 0)",
    )
    prepare.add_argument(
        "--seed", type=int, default=0, help="of the val split, and of `shapes` (0)"
    )
    prepare.add_argument(
        "--write-mode",
        choices=("auto", "raw", "jpg"),
        default="auto",
        help="imagefolder: raw pixels or JPEG (auto: raw for images of one size up to 64 pixels)",
    )
    prepare.add_argument(
        "--max-resolution",
        type=int,
        help="imagefolder: shrink to this many pixels on the longer side",
    )
    prepare.add_argument("--jpeg-quality", type=int, default=90, help="imagefolder: 1 to 100 (90)")
    prepare.add_argument(
        "--on-broken",
        choices=("fail", "skip"),
        default="fail",
        help="imagefolder: an image that cannot be read ends the preparation, or is named and "
        "left out (fail)",
    )
    prepare.add_argument(
        "--force", action="store_true", help="write again over betons that are there"
    )


def _add_sweep(commands: argparse._SubParsersAction) -> None:
    sweep = commands.add_parser(
        "sweep",
        usage="dist-resnet sweep FILE [options] [--section.key value ...]",
        allow_abbrev=False,
        help="train the runs of a sweep, or those that have not finished",
        description="FILE is in W&B's sweep format. Without --wandb its grid or random draws are "
        "expanded here.",
    )
    sweep.add_argument("file", type=Path, metavar="FILE", help="such as configs/sweeps/batch.yaml")
    _add_resources(sweep)
    sweep.add_argument(
        "--sweep-dir", type=Path, help="where its runs are kept, a run directory each (runs/FILE)"
    )
    sweep.add_argument(
        "--count", type=int, help="so many runs at most; with --wandb, of each agent"
    )
    sweep.add_argument("--seed", type=int, default=0, help="of random draws made here (0)")
    sweep.add_argument(
        "--wandb",
        action="store_true",
        help="make the sweep on W&B's server, which chooses the runs, and start agents",
    )
    sweep.add_argument(
        "--agents",
        type=int,
        default=1,
        help="with --wandb: agents, which run side by side on a cluster (1)",
    )


def _add_repeat(commands: argparse._SubParsersAction) -> None:
    repeat = commands.add_parser(
        "repeat",
        usage="dist-resnet repeat CONFIG [options] [--section.key value ...]",
        allow_abbrev=False,
        help="train with several seeds; mean and spread of accuracy and time",
        description="Two clocks: the steps alone, once everything is loaded, and compiled where "
        "that is asked for; and everything from the command on.",
    )
    repeat.add_argument("config", type=Path, metavar="CONFIG", help="such as configs/speedrun.yaml")
    repeat.add_argument(
        "--runs", type=int, default=10, help="with seeds train.seed, train.seed + 1 ... (10)"
    )
    repeat.add_argument(
        "--workers-per-node", type=int, help="workers of each run (one per GPU; on the CPU two)"
    )
    repeat.add_argument(
        "--run-dir", type=Path, help="where the runs are kept (runs/repeat-CONFIG-DIGEST)"
    )
    repeat.set_defaults(cluster="local", nodes=1)


def _add_estimate(commands: argparse._SubParsersAction) -> None:
    estimate = commands.add_parser(
        "estimate",
        usage="dist-resnet estimate CONFIG --step BATCH:MS [options] [--section.key value ...]",
        allow_abbrev=False,
        help="estimate times on a cluster from steps measured on one worker",
        description="Estimate step, epoch and total time for 1, 2, 4 ... workers, under both "
        "milestone policies. "
        "Two measured batches tell the fixed part of a step from the rest.",
    )
    estimate.add_argument("config", type=Path, metavar="CONFIG")
    estimate.add_argument(
        "--step",
        action="append",
        default=[],
        metavar="BATCH:MS",
        help="a measured step of one worker, such as 128:24.5",
    )
    estimate.add_argument(
        "--measured",
        action="append",
        default=[],
        type=Path,
        metavar="RUN_DIR",
        help="a complete run of one worker",
    )
    estimate.add_argument("--nodes", type=int, default=1)
    estimate.add_argument("--gpus-per-node", type=int, default=8, help="workers of a node (8)")
    estimate.add_argument("--batch", type=int, default=128, help="per worker (128)")
    estimate.add_argument(
        "--link", default="25GBps", help="what each worker can send: 25GBps is 200Gbps (25GBps)"
    )
    estimate.add_argument("--latency", default="20us", help="until the first byte arrives (20us)")
    estimate.add_argument("--samples", type=int, help="training images (those of data.dir)")


def _add_for_scripts(commands: argparse._SubParsersAction) -> None:
    stage = commands.add_parser(
        "stage",
        usage="dist-resnet stage CONFIG [--run-dir DIR] [--section.key value ...]",
        allow_abbrev=False,
        description="For batch scripts: make RUN_DIR, put the task where submitit's runner in "
        "this job finds it, "
        "print the folder to give to that runner.",
    )
    stage.add_argument(
        "config",
        type=Path,
        metavar="CONFIG",
        help="a configuration, or with --sweep-run a sweep's file",
    )
    stage.add_argument("--run-dir", type=Path)
    stage.add_argument(
        "--sweep-run",
        type=int,
        metavar="K",
        help="run K of a sweep, from 0; beyond its last one nothing is printed",
    )
    stage.add_argument("--sweep-dir", type=Path)
    stage.add_argument("--count", type=int)
    stage.add_argument("--seed", type=int, default=0)
    for key in ("max_restarts", "max_faults"):
        field = Cluster.__dataclass_fields__[key]
        stage.add_argument(
            f"--{key.replace('_', '-')}",
            type=int,
            default=field.default,
            help=f"{field.metadata['comment']} ({field.default})",
        )
    settle = commands.add_parser(
        "settle",
        description="For batch scripts, after their srun: say who failed and why. Ends with "
        "75 where the job should be requeued.",
    )
    settle.add_argument("folder", type=Path, help="what `stage` printed")


def _add_compare(commands: argparse._SubParsersAction) -> None:
    compare = commands.add_parser(
        "compare",
        help="tables and figures of several runs, or of a sweep",
        description="What differs between runs, beside what came of it. Also for runs in progress.",
    )
    compare.add_argument(
        "run_dirs",
        type=Path,
        nargs="+",
        metavar="RUN_DIR",
        help="or a directory of such, as a sweep's",
    )
    compare.add_argument(
        "--figure",
        type=Path,
        default=Path("compare.png"),
        help="where to draw curves and results (compare.png)",
    )
    compare.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="write one page for a browser, which needs no network",
    )
    form = compare.add_mutually_exclusive_group()
    for name in ("csv", "json", "markdown"):
        form.add_argument(
            f"--{name}",
            action="store_const",
            const=name,
            dest="format",
            help=f"print {name} in place of the table",
        )
    compare.set_defaults(format="table")


def _add_train_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", type=Path, metavar="CONFIG", help="a YAML file, such as configs/resnet110.yaml"
    )
    _add_resources(parser)
    parser.add_argument(
        "--run-dir", type=Path, help="where everything is kept (runs/CONFIG-DIGEST)"
    )
    parser.add_argument(
        "--sweep-dir",
        type=Path,
        help="for the agents of a W&B sweep: RUN_DIR is the run's id in there",
    )
    parser.add_argument(
        "--wait",
        action="store_true",
        help="SLURM: follow the job, start its requeues at once, end with its exit code",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="SLURM: print the batch script, and do nothing"
    )


def _add_resources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cluster",
        default="local",
        help="local, debug (one worker, in this process), slurm, or a cluster FILE.yaml",
    )
    parser.add_argument("--nodes", type=int, default=1, help="nodes of a SLURM job (1)")
    parser.add_argument(
        "--workers-per-node", type=int, help="workers on each node (one per GPU; on the CPU two)"
    )
