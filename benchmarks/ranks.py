"""How starts grow with the number of ranks: python -m benchmarks.ranks --ranks 2 8 32

A SLURM of two nodes on this machine, a tiny network, a hundred images a rank. Per number of ranks:
seconds from the job's start to its first step; from a preemption to the node given back; and
through the requeues after that and after a killed worker, to the end. Ranks share the machine's
cores, so that most of this is Python importing torch, as often as there are ranks; what grows
faster than their number is ours."""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "slurm"))

from local_cluster import LocalCluster  # noqa: E402
from local_job import Job, sbatch  # noqa: E402

from benchmarks import measure  # noqa: E402
from dist_resnet.prepare import betons, shapes  # noqa: E402
from dist_resnet.tracking import starts  # noqa: E402
from dist_resnet.tracking.tracker import read_metrics  # noqa: E402

PATIENCE = 1800.0  # seconds


def overrides(data: Path) -> list[str]:
    settings = {
        "model.name": "resnet8",
        "model.width": 1,
        "data.dir": data,
        "data.dataset": "shapes",
        "data.stage": "true",
        "batch.per_worker": 4,
        "schedule.reference_batch": 4,
        "scaling.lr": "none",
        "train.max_steps": 60,
        "train.log_every": "1 steps",
        "train.evaluate_every": "30 steps",
        "train.checkpoint_every": "10 steps",
        "train.device": "cpu",
        "tracking.wandb": "disabled",
        "tracking.top_losses": 0,
    }
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def seconds_until(condition: Callable[[], bool], job: Job) -> float:
    began = time.monotonic()
    job.until(condition, PATIENCE)
    return time.monotonic() - began


def reached(job: Job) -> int:
    return max((record["step"] for record in read_metrics(job.run_dir)), default=0)


def row(folder: Path, ranks: int) -> dict[str, object]:
    """A job of so many ranks, preempted, then with one of its workers killed."""
    betons.prepare(shapes.make(100 * ranks, 100), folder / "shapes", val=0, seed=0)
    options = [f"--ntasks-per-node={ranks // 2}", "--cpus-per-task=1", "--time=120"]
    # while so many ranks start, SLURM's daemons hardly get a turn
    with LocalCluster(folder / "slurm", cpus=max(2, ranks // 2), slurmd_timeout=300) as cluster:
        job = sbatch(cluster, folder / "run", overrides(folder / "shapes"), *options)
        first = seconds_until(lambda: reached(job) >= 1, job)
        memory = sum(worker.memory_full_info().pss for worker in job.workers()) / 2**30
        cluster.command("scancel", "--signal=USR2", job.id)
        left = seconds_until(lambda: job.field("JobState") == "PENDING", job)
        before = reached(job)
        began = time.monotonic()
        job.wait_for_step(before + 1, PATIENCE)
        again = time.monotonic() - began
        random.choice(job.workers()).kill()
        began = time.monotonic()
        state = job.wait_for_end(PATIENCE)
        return {
            "ranks": ranks,
            "first step after, s": first,
            "preempted: gone after, s": left,
            "requeued: a step after, s": again,
            "one killed: complete after, s": time.monotonic() - began,
            "memory, GiB": memory,
            "starts": ", ".join(s["outcome"].partition(":")[0] for s in starts.read(job.run_dir)),
            "job": state,
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 8, 32], help="even (2 8 32)")
    parser.add_argument("--json", type=Path, help="write the rows there")
    options = parser.parse_args()
    rows = []
    for ranks in options.ranks:
        with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
            rows.append(row(Path(folder), ranks))
        print(rows[-1], flush=True)
    cores = len(psutil.Process().cpu_affinity() or [])
    measure.show(f"ranks that share {cores} cores", rows, options.json)


if __name__ == "__main__":
    main()
