"""Soak test of the batch script: python -m benchmarks.chaos --rounds 20

Every round submits `sbatch slurm/resnet110.sh` with a small network to a SLURM of two nodes on this
machine, does one harm to it, drawn at random, at a random step, and waits for the job's end. A
round is survived when the job completes with weights and curves bit-identical to an undisturbed
run's."""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "slurm"))

from local_cluster import LocalCluster  # noqa: E402
from local_job import (  # noqa: E402
    Job,
    kill_node,
    preempt_with_short_grace,
    reach_the_time_limit,
    revive_node,
    sbatch,
    unreachable_at_first,
    unwritable,
    without_slurm,
)

from dist_resnet.prepare import betons, shapes  # noqa: E402
from dist_resnet.tracking.tracker import read_metrics  # noqa: E402
from dist_resnet.weights import checkpoint  # noqa: E402

STEPS = 60
FIGURES = ("train/loss", "train/top1", "train/top5", "lr", "test/loss", "test/top1", "test/top5")


def preempt(job: Job) -> None:
    job.cluster.command("scancel", "--signal=USR2", job.id)


def signal_the_shell(job: Job) -> None:
    """As `--signal=B:USR2@60`: the workers hear of it by the batch shell alone."""
    job.cluster.command("scancel", "--batch", "--signal=USR2", job.id)


def requeued_by_itself(job: Job) -> None:
    """What is wrong with the job is wrong from its beginning."""
    job.until(lambda: job.field("Restarts") == "1", 120)


def preempt_twice(job: Job) -> None:
    """Within a second."""
    preempt(job)
    time.sleep(0.5)
    preempt(job)


def controller_restarts(job: Job) -> None:
    """Meanwhile a worker is killed, and nobody can be asked to requeue the job."""
    job.lose_worker_and_controller()
    time.sleep(8)
    job.cluster.restart_controller()


def checkpoints_unwritable(job: Job) -> None:
    directory = job.run_dir / "checkpoints"
    job.until(directory.exists, 60)
    with unwritable(directory):
        time.sleep(4)


def kill_worker(job: Job) -> None:
    random.choice(job.workers()).kill()


def hang_worker(job: Job) -> None:
    random.choice(job.workers()).suspend()


def node_dies(job: Job) -> None:
    node = random.choice(job.cluster.nodes)
    kill_node(job.cluster, node, job)
    revive_node(job.cluster, node)


def half_the_nodes_gone_then_back(job: Job) -> None:
    """Half of the workers go on for some steps; once the node is back, all of them."""
    kill_node(job.cluster, "n2", job)
    reached = max(r["step"] for r in read_metrics(job.run_dir))
    job.wait_for_step(reached + 6, 180, "NumNodes=1", "NumTasks=2", "NumCPUs=16")
    revive_node(job.cluster, "n2")
    preempt(job)
    waiting = ("PENDING", "BeginTime")
    job.until(lambda: (job.field("JobState"), job.field("Reason")) == waiting, 60)
    job.start_now("NumNodes=2", "NumTasks=4", "NumCPUs=32")


def cancel_and_submit_again(job: Job) -> None:
    job.cluster.command("scancel", job.id)
    job.wait_for_end()


def requeue_by_the_operator(job: Job) -> None:
    job.cluster.command("scontrol", "requeue", job.id)


HARMS: dict[str, Callable[[Job], None]] = {
    "preempted (USR2)": preempt,
    "preempted twice in a second": preempt_twice,
    "USR2, TERM, USR2, TERM at once": preempt_with_short_grace,
    "preempted, workers without SLURM": preempt,
    "worker killed": kill_worker,
    "worker killed, controller restarts": controller_restarts,
    "checkpoints/ unwritable for 4 s": checkpoints_unwritable,
    "worker hangs": hang_worker,
    "node dies": node_dies,
    "half the nodes gone, then back": half_the_nodes_gone_then_back,
    "cancelled, submitted again": cancel_and_submit_again,
    "scontrol requeue": requeue_by_the_operator,
    "time limit": reach_the_time_limit,
    "SIGTERM near the time limit": reach_the_time_limit,
    "signal to the batch shell alone": signal_the_shell,
    "a rank that cannot be reached": requeued_by_itself,
}
OPTIONS = {
    "time limit": ("--time=9", "--signal=USR2@100"),
    "SIGTERM near the time limit": ("--time=9", "--signal=TERM@100"),
}
PYTHONS = {  # the workers'
    "preempted, workers without SLURM": without_slurm,
    "a rank that cannot be reached": unreachable_at_first,
}
AT_ONCE = ("time limit", "a rank that cannot be reached")  # before any step


def overrides(data: Path) -> list[str]:
    settings = {
        "model.name": "resnet8",
        "model.width": 3,
        "data.dir": data,
        "data.dataset": "shapes",
        "train.device": "cpu",  # a local cluster's GPUs are pretended
        "batch.per_worker": 12,
        "batch.virtual_workers": 4,
        "train.max_steps": STEPS,
        "train.log_every": "2 steps",
        "train.evaluate_every": "10 steps",
        "train.checkpoint_every": "4 steps",
        "train.timeout_s": 60,
    }
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def play(
    cluster: LocalCluster, folder: Path, data: Path, undisturbed: Path, harm: str, step: int
) -> dict[str, object]:
    """One round; returns its row of the table."""
    began, run_dir = time.monotonic(), folder / "run"
    python = {"DIST_RESNET_WORKER_PYTHON": PYTHONS[harm](folder)} if harm in PYTHONS else {}
    job = sbatch(cluster, run_dir, overrides(data), *OPTIONS.get(harm, ()), **python)
    result = {"harm": harm, "step": 0 if harm in AT_ONCE else step, "survived": False}
    try:
        if harm == "time limit":
            job.until(lambda: len(job.workers()) == 4, 60)
        elif harm not in AT_ONCE:
            job.wait_for_step(step)
        HARMS[harm](job)
        if harm.startswith("cancelled"):
            job = sbatch(cluster, run_dir, overrides(data))
        result["state"] = job.wait_for_end()
        result["survived"] = result["state"] == "COMPLETED" and identical(undisturbed, run_dir)
        result["restarts"] = int(job.field("Restarts"))
    except (TimeoutError, subprocess.SubprocessError, IndexError, OSError) as error:
        result["state"] = f"{type(error).__name__}: {error}"
    return {**result, "seconds": round(time.monotonic() - began, 1)}


def identical(a: Path, b: Path) -> bool:
    states = [checkpoint.load(checkpoint.named(d / "checkpoints", "LATEST")) for d in (a, b)]
    models, momenta = [s["model"] for s in states], [s["optimizer"]["state"] for s in states]
    curves = [[(r["step"], [r.get(f) for f in FIGURES]) for r in read_metrics(d)] for d in (a, b)]
    return (
        all(torch.equal(models[0][k], models[1][k]) for k in models[0])
        and curves[0] == curves[1]
        and all(
            torch.equal(momenta[0][k]["momentum_buffer"], momenta[1][k]["momentum_buffer"])
            for k in momenta[0]
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the harms and their steps")
    parser.add_argument("--json", type=Path, help="write the rows there")
    options = parser.parse_args()
    random.seed(options.seed)
    kinds = list(HARMS)
    harms = [
        kinds[i % len(kinds)] for i in range(options.rounds)
    ]  # each as often as the others, in a random order
    random.shuffle(harms)
    rows: list[dict[str, object]] = []
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        play_all(harms, rows)
    except KeyboardInterrupt:
        print("interrupted")
    show(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    sys.exit(any(not row["survived"] for row in rows))


def play_all(harms: list[str], rows: list[dict[str, object]]) -> None:
    """Adds a row for each."""
    with (
        tempfile.TemporaryDirectory(prefix="chaos-") as folder,
        LocalCluster(Path(folder) / "slurm") as cluster,
    ):
        data = Path(folder) / "shapes"
        betons.prepare(shapes.make(600, 230), data, val=0, seed=0)
        (Path(folder) / "undisturbed").mkdir()
        undisturbed = sbatch(cluster, Path(folder) / "undisturbed/run", overrides(data))
        if undisturbed.wait_for_end() != "COMPLETED":
            sys.exit(f"the undisturbed run failed:\n{undisturbed.log()}")
        for number, harm in enumerate(harms, 1):
            place, step = Path(folder) / str(number), 2 * random.randint(1, STEPS // 4)
            place.mkdir()
            rows.append(play(cluster, place, data, undisturbed.run_dir, harm, step))
            Console().print(f"round {number}: {rows[-1]}", highlight=False)


def show(rows: list[dict[str, object]]) -> None:
    columns = ("harm", "rounds", "survived", "lost", "mean seconds")
    table = Table(*columns, title=f"{STEPS} steps by 4 workers on 2 nodes")
    for harm in HARMS:
        those = [row for row in rows if row["harm"] == harm]
        survived = sum(bool(row["survived"]) for row in those)
        if those:
            mean = sum(float(str(row["seconds"])) for row in those) / len(those)
            counts = (len(those), survived, len(those) - survived)
            table.add_row(harm, *map(str, counts), f"{mean:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
