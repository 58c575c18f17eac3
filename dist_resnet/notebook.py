"""Train from Python, as in a notebook: by the command `dist-resnet`, in processes of its own."""

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dist_resnet.config import Config
from dist_resnet.tracking.tracker import read_metrics

if TYPE_CHECKING:
    from dist_resnet.weights.classifier import Classifier

COMMAND = [sys.executable, "-m", "dist_resnet"]


class Run:
    """A training, by its directory."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl in the order of the steps, such as pandas.DataFrame takes
        them; also while it trains."""
        return read_metrics(self.path)

    @property
    def summary(self) -> dict[str, Any] | None:
        """The result; None until the training is complete."""
        path = self.path / "summary.json"
        return json.loads(path.read_text()) if path.exists() else None

    def evaluate(self, split: str | None = None, checkpoint: str = "latest") -> dict[str, Any]:
        """Loss and accuracies of a checkpoint ('latest' or 'best') over a split, by default the one
        that the training evaluates on. Raises RuntimeError with what the command says."""
        words = ["evaluate", str(self.path), "--checkpoint", checkpoint, "--json"]
        done = subprocess.run(
            [*COMMAND, *words, *(["--split", split] if split else [])],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip())
        return json.loads(done.stdout)

    def load(self, checkpoint: str | None = None) -> "Classifier":
        """The trained network, as `dist_resnet.load` gives it."""
        from dist_resnet.weights import classifier  # torch

        return classifier.load(self.path, checkpoint)


def train(
    config: Config | Mapping[str, Any] | Path | str,
    run_dir: Path | str,
    *,
    workers: int | None = None,
) -> Run:
    """Train in run_dir, or resume there, until the end; prints what the command prints.

    config: a configuration, a dictionary with its sections, or a YAML file. workers: processes, by
    default one for each GPU, on a CPU two. An interrupt lets them save: the same call resumes.
    Raises RuntimeError with what the command says where it fails."""
    words = ["--run-dir", str(run_dir), *(["--workers-per-node", str(workers)] if workers else [])]
    with _as_file(config) as path:
        process = subprocess.Popen(
            [*COMMAND, "train", str(path), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # an interrupt comes from here, once
        )
        assert process.stdout is not None
        said, interrupted = "", False
        while True:
            try:
                for line in process.stdout:
                    print(line, end="", flush=True)
                    said = line if line.startswith("dist-resnet train: error") else said + line
                process.wait()
                break
            except KeyboardInterrupt:
                process.send_signal(signal.SIGINT)
                interrupted = True
    if interrupted:
        raise KeyboardInterrupt
    if process.returncode:
        raise RuntimeError(said[-2000:].strip())
    return Run(run_dir)


@contextmanager
def _as_file(config: Config | Mapping[str, Any] | Path | str) -> Iterator[Path]:
    if isinstance(config, Path | str):
        yield Path(config)
        return
    content = config.to_dict() if isinstance(config, Config) else dict(config)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        yield path
