"""Seconds from `dist-resnet train` to the end of its first step, cold and warm: python -m
benchmarks.start [options of dist-resnet train]

Cold: numba's cached code is removed first. The file system's cache is warm in both."""

import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks import measure
from dist_resnet.tracking.tracker import read_metrics

PACKAGE = Path(__file__).parent.parent / "dist_resnet"


def start(options, words: list[str], residency: str, *, cold: bool) -> float:
    if cold:
        for path in PACKAGE.rglob("*.nb[ic]"):
            path.unlink()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [
            sys.executable,
            "-m",
            "launch",
            "train",
            "configs/resnet20.yaml",
            "--data.dir",
            str(options.data),
            "--data.residency",
            residency,
            "--tracking.wandb",
            "disabled",
            "--train.log_every",
            "1 step",
            "--train.max_steps",
            "200",
            "--run-dir",
            str(run_dir),
            *words,
        ]
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not read_metrics(run_dir):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        process.terminate()
        process.wait()
    return seconds


def main() -> None:
    parser = measure.arguments(__doc__, rounds=3)
    parser.add_argument("--warm", action="store_true", help="leave numba's cached code alone")
    kinds = ["device", "stream"]
    parser.add_argument("--residencies", nargs="+", choices=kinds, default=kinds)
    parser.usage = "python -m benchmarks.start [options] [options of dist-resnet train]"
    options, words = parser.parse_known_args()
    found = measure.interleaved(
        {
            f"{residency}, {'cold' if cold else 'warm'}": partial(
                start, options, words, residency, cold=cold
            )
            for residency in options.residencies
            for cold in ((False,) if options.warm else (True, False))
        },
        options.rounds,
    )
    measure.show(
        " ".join(["ResNet-20", *(words or ["default workers"])]),
        [{"start": name, "seconds to the first step": s} for name, s in found.items()],
        options.json,
    )


if __name__ == "__main__":
    main()
