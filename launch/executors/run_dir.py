"""RUN_DIR: one directory, one configuration, one training, however often it is started."""

from pathlib import Path

from dist_resnet.config import Config, config_file, differences


def default(config_path: Path, config: Config) -> Path:
    """runs/<name of the file>-<digest>: the same command finds the same directory, another
    configuration another one."""
    return Path("runs") / f"{config_path.stem}-{config.digest()[:8]}"


def create(run_dir: Path, config: Config) -> None:
    """Make the directory and write its config.yaml, once. Raises ValueError where it holds another
    configuration."""
    path = run_dir / "config.yaml"
    if "%" in str(run_dir):
        raise ValueError(
            f"--run-dir {run_dir}: submitit and SLURM replace what follows a %, each in another "
            "way; take a name without it"
        )
    _require_weights(run_dir, config.train.init_from)
    if path.exists():
        different = differences(config_file.load(path), config)
        if different:
            listed = ", ".join(
                f"{key} {there!r} there, {here!r} here" for key, (there, here) in different.items()
            )
            raise ValueError(
                f"RUN_DIR {run_dir} holds another configuration ({listed}): give another "
                "--run-dir, "
                "or the configuration it was made with"
            )
        return
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".partial")
        config.save(aside)
        aside.replace(path)
    except OSError as error:
        raise ValueError(
            f"cannot make RUN_DIR {run_dir} ({error}): give another --run-dir"
        ) from None


def _require_weights(run_dir: Path, source: str | None) -> None:
    """Raises ValueError where a training would begin with train.init_from, and there is none."""
    if source is None or (run_dir / "checkpoints/LATEST").exists():
        return
    if not Path(source).is_file() and not (Path(source) / "checkpoints/LATEST").is_file():
        raise ValueError(
            f"train.init_from = {source!r}: no such file, and no run directory with a checkpoint "
            "(paths are relative to the directory of the command); name one, or leave it out"
        )
