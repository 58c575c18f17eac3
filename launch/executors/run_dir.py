"""RUN_DIR: one directory, one training, however often it is started."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from dist_resnet.config import Config, config_file, differences
from dist_resnet.data import manifest
from dist_resnet.tracking import starts


def default(config_path: Path, config: Config) -> Path:
    """runs/<name of the file>-<digest>: what gives the same result finds the same directory."""
    return Path("runs") / f"{config_path.stem}-{digest(config)[:8]}"


def digest(config: Config, *more: str) -> str:
    """Sixteen hex digits of what a run gives: its configuration, and its betons wherever they
    lie."""
    text = json.dumps([config.digest(), _betons(config) or config.data.dir, *more])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def create(run_dir: Path, config: Config) -> bool:
    """Make the directory and write its config.yaml. One that is there takes the settings that any
    start may change (`Config.may_change`), and says so. Returns whether the directory is
    new. Raises ValueError where others differ, or the betons."""
    is_new = not run_dir.exists()
    path = run_dir / "config.yaml"
    if "%" in str(run_dir):
        raise ValueError(
            f"--run-dir {run_dir}: submitit and SLURM replace what follows a %, each in another "
            "way; take a name without it"
        )
    _require_weights(run_dir, config.train.init_from)
    if path.exists():
        different = differences(config_file.load(path), config)
        _require_same_result(run_dir, config, different)
        if not different or not _goes_on(run_dir, different):
            return is_new
        for key, (there, here) in different.items():
            print(f"note: {key} = {here!r} from this start on ({there!r} before)", file=sys.stderr)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".partial")
        config.save(aside)
        aside.replace(path)
    except OSError as error:
        raise ValueError(
            f"cannot make RUN_DIR {run_dir} ({error}): give another --run-dir"
        ) from None
    return is_new


def _require_same_result(
    run_dir: Path, config: Config, different: dict[str, tuple[Any, Any]]
) -> None:
    decisive = {key: both for key, both in different.items() if key not in config.may_change()}
    if decisive:
        listed = ", ".join(
            f"{key} {there!r} there, {here!r} here" for key, (there, here) in decisive.items()
        )
        raise ValueError(
            f"RUN_DIR {run_dir} holds another configuration ({listed}): give another --run-dir, "
            "or the configuration it was made with"
        )
    begun = [start["betons"] for start in starts.read(run_dir) if "betons" in start]
    here = _betons(config)
    if begun and here and begun[-1] != here:
        raise ValueError(
            f"RUN_DIR {run_dir} was trained on other betons (digest {begun[-1]}) than data.dir = "
            f"{config.data.dir!r} holds ({here}): give another --run-dir, or their directory"
        )


def _goes_on(run_dir: Path, different: dict[str, tuple[Any, Any]]) -> bool:
    """Whether the run has steps to go. One that is complete has again, where train.max_steps has
    grown."""
    done = run_dir / "summary.json"
    before, now = different.get("train.max_steps", (None, None))
    if before is not None and (now is None or now > before):
        done.unlink(missing_ok=True)
    return not done.exists()


def _betons(config: Config) -> str | None:
    """The digest of the betons in data.dir; None where this machine does not see them."""
    try:
        return manifest.load(Path(config.data.dir), config.data.dataset).digest()
    except ValueError:
        return None


def _require_weights(run_dir: Path, source: str | None) -> None:
    """Raises ValueError where a training would begin with train.init_from, and there is none."""
    if source is None or (run_dir / "checkpoints/LATEST").exists():
        return
    if not Path(source).is_file() and not (Path(source) / "checkpoints/LATEST").is_file():
        raise ValueError(
            f"train.init_from = {source!r}: no such file, and no run directory with a checkpoint "
            "(paths are relative to the directory of the command); name one, or leave it out"
        )
