"""The command: quick help, no torch on the login node, and one line for every mistake."""

import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT

from dist_resnet.config import config_file
from launch.__main__ import COMMANDS
from launch.executors import run_dir


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)])
def test_help_imports_neither_torch_nor_submitit(cli, words):
    code = (
        f"import sys; sys.argv = ['dist-resnet', *{words!r}, '--help']\nfrom launch.__main__ "
        "import main\n"
        "try: main()\nexcept SystemExit as e: print('EXIT', e.code)\n"
        "heavy = {'torch', 'numpy', 'ffcv', 'submitit', 'wandb', 'matplotlib'} & "
        "set(sys.modules)\nprint('HEAVY', heavy)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=cli.directory,
        env=cli.environment,
    )
    assert (
        "usage: dist-resnet" in done.stdout
        and "EXIT 0" in done.stdout
        and "HEAVY set()" in done.stdout
    ), done.stdout + done.stderr


def test_submitting_imports_no_torch(cli):
    code = (
        "import sys; import launch.executors.local, launch.executors.slurm, launch.jobs.task, "
        "launch.__main__; print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=cli.environment
    )
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.slow
def test_a_worker_that_crashes_is_told_with_the_signals_name_and_what_may_cause_it(cli, small_path):
    """DDP on gloo crashes so in torch 2.14.1."""
    words = ("train", small_path, "--workers-per-node", 2, "--train.all_reduce", "buckets")
    code, output = cli(*words, TORCH_DISTRIBUTED_DEBUG="DETAIL")
    assert code == 1, output
    assert re.search(
        r"the worker of rank [01] ended without a word: Segmentation fault \(its stacks are in its "
        r"log\); TORCH_DISTRIBUTED_DEBUG is set, .* unset it\. The same command goes on",
        output,
    ), output


@pytest.mark.slow
def test_another_package_named_launch_is_not_in_the_way(cli, small_path):
    """ROS 2 has one; the workers, too, find ours."""
    (cli.directory / "ros/launch").mkdir(parents=True)
    (cli.directory / "ros/launch/__init__.py").write_text("")
    words = ("train", small_path, "--train.max_steps", 2, "--workers-per-node", 1)
    done = subprocess.run(
        [sys.executable, "-c", "from dist_resnet.__main__ import main; main()", *map(str, words)],
        cwd=cli.directory,
        env={**cli.environment, "PYTHONPATH": f"{cli.directory}/ros:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "step 2/2" in done.stdout, done.stdout + done.stderr


def mistakes(shapes_dir):
    train = ("train", "tiny.yaml", "--workers-per-node", 2, "--run-dir", "run")
    return {
        "unknown key": (
            (*train, "--optim.learning_rate", "0.1"),
            ["optim.learning_rate", "here it is optim.lr"],
        ),
        "a placeholder in a name": (
            (*train[:-1], "runs/%j"),
            ["--run-dir runs/%j", "take a name without it"],
        ),
        "wrong type": ((*train, "--optim.lr", "fast"), ["command line: ", "optim.lr", "fast"]),
        "no workers": (
            ("train", "tiny.yaml", "--workers-per-node", 0),
            ["--workers-per-node 0: must be at least 1"],
        ),
        "milestone past the end": (
            (*train, "--schedule.milestones", "[40]"),
            ["[40]", "schedule.steps = 30"],
        ),
        "batch does not divide": (
            ("train", "tiny.yaml", "--workers-per-node", 5, "--run-dir", "run"),
            ["batch.global = 48", "5 workers", "50"],
        ),
        "no beton": ((*train, "--data.dir", "nowhere"), ["nowhere", "dist-resnet prepare shapes"]),
        "another data set": (
            (*train, "--data.dataset", "cifar100"),
            ["holds shapes (10 classes)", "cifar100"],
        ),
        "more workers than GPUs": (
            (*train, "--train.device", "cuda"),
            ["2", "GPUs", "--train.device cpu"],
        ),
        "no such configuration": (("train", "none.yaml"), ["none.yaml", "configs/"]),
        "no such cluster file": (
            (*train, "--cluster", "moon.yaml"),
            ["moon.yaml", "local, debug, slurm"],
        ),
        "nodes without a cluster": ((*train, "--nodes", 2), ["--nodes 2", "--cluster slurm"]),
        "no weights to start from": (
            (*train, "--train.init_from", "nowhere"),
            ["train.init_from = 'nowhere'", "no run directory with a checkpoint"],
        ),
        "export nothing": (("export", "nowhere"), ["nowhere", "run directory"]),
        "evaluate nothing": (("evaluate", "nowhere"), ["nowhere", "config.yaml"]),
        "compare nothing": (("compare", "nowhere"), ["nowhere", "config.yaml"]),
        "betons are there": (
            ("prepare", "shapes", "--out", shapes_dir),
            ["already holds", "--force"],
        ),
        "imagefolder without a source": (("prepare", "imagefolder"), ["--source"]),
    }


@pytest.mark.parametrize("name", mistakes(None))
def test_a_mistake_is_told_in_one_line(command, config_path, shapes_dir, name):
    words, parts = mistakes(shapes_dir)[name]
    code, output = command(*words)
    assert code == 1, output
    assert len(output.splitlines()) == 1 and ": error: " in output and "Traceback" not in output, (
        output
    )
    for part in parts:
        assert part in output


@pytest.mark.parametrize(
    "damage, part",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-24]), "truncated"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-24] + bytes(24)),
            "corrupted or foreign",
        ),
    ],
)
def test_a_damaged_beton_ends_the_training_before_it_starts(
    cli, config_path, shapes_dir, damage, part
):
    copy = shutil.copytree(shapes_dir, cli.directory / "copy")
    damage(copy / "train.beton")
    code, output = cli(
        "train", "tiny.yaml", "--cluster", "debug", "--run-dir", "run", "--data.dir", copy
    )
    assert (
        code == 1
        and part in output
        and "dist-resnet prepare shapes" in output
        and "Traceback" not in output
    ), output


def test_version_and_help(command):
    code, output = command("--version")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert code == 0 and output == f"dist-resnet {project['version']}\n"
    output = command("--help")[1]
    assert all((f"\n  {name} " in output) != c.for_scripts for name, c in COMMANDS.items()), output
    assert "+ 1 ... (default: 10)" in " ".join(command("repeat", "--help")[1].split())
    assert "--optim.lr  (default: 0.1)" in command("train", "--help")[1]


def test_a_run_directory_given_to_train(command, config_path):
    run_dir.create(config_path.parent / "run", config_file.load(config_path))
    code, output = command("train", "run")
    assert code == 1 and "to resume it give run/config.yaml --run-dir run" in output, output


def test_a_submission_that_fails_leaves_no_run(command, config_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    words = ("train", "tiny.yaml", "--cluster", "slurm", "--run-dir")
    there = config_path.parent / "there"
    there.mkdir()
    for name in ("run", "there"):
        code, output = command(*words, name)
        assert code == 1 and "sbatch is not on the PATH" in output, output
    assert not (config_path.parent / "run").exists() and there.exists()


def test_a_run_dir_of_another_configuration(command, config_path):
    run_dir.create(config_path.parent / "run", config_file.load(config_path))
    code, output = command("train", "tiny.yaml", "--run-dir", "run", "--optim.lr", "0.3")
    assert (
        code == 1 and len(output.splitlines()) == 1 and "optim.lr 0.05 there, 0.3 here" in output
    ), output


def test_an_exception_in_a_worker_reaches_the_user_with_rank_and_log(cli, config_path):
    """Rank 1 alone fails: it finds no room for its checkpoint directory's sibling, here a sabotaged
    module. All on one CPU, of which a warning tells."""
    (cli.directory / "sitecustomize.py").write_text(
        "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import dist_resnet.config.schedule as s\nreal = s.plan\n"
        "def plan(*given):\n"
        "    if os.environ.get('SUBMITIT_LOCAL_GLOBALID') == '1': raise OSError('sabotage')\n"
        "    return real(*given)\n"
        "s.plan = plan\n"
    )
    code, output = cli(
        "train",
        "tiny.yaml",
        "--workers-per-node",
        2,
        "--run-dir",
        "run",
        PYTHONPATH=f"{cli.directory}:{ROOT}",
    )
    assert (
        code == 1
        and "worker of rank 1 failed" in output
        and "OSError: sabotage" in output
        and "its log: " in output
        and "warning: 2 workers share 1 CPUs" in output
    ), output


def test_compare_sorts_runs_and_shows_what_differs(command, workers, config_path):
    """Of a run that has ended, and of one that has only begun."""
    steps = ("--train.max_steps", "4")
    workers.train(config_path, config_path.parent / "lr0.05", *steps)
    begun = config_file.load(config_path, [*steps, "--optim.lr", "0.0001"])
    run_dir.create(config_path.parent / "lr0.0001", begun)
    code, output = command("compare", "lr0.0001", "lr0.05")
    assert code == 0 and "optim.lr" in output and "optim.momentum" not in output, output
    assert output.index("lr0.05") < output.index("lr0.0001")
    assert (config_path.parent / "compare.png").stat().st_size > 10_000
