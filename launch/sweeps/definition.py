"""Sweeps: a file in W&B's own format (docs.wandb.ai, "Sweep configuration options"), expanded here
into runs.

The same file serves W&B's server (`dist-resnet sweep FILE --wandb`; trainings under a plain `wandb
agent` need `--tracking.wandb online` in it besides). Its `command` names the base: [...,
dist-resnet, train, CONFIG, fixed overrides, ${args}]."""

import itertools
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_resnet.config import Config, config_file, require, yaml_file
from launch.executors import run_dir
from launch.sweeps import space
from launch.sweeps.space import Condition, Spec

KEYS = {
    "program",
    "method",
    "metric",
    "parameters",
    "conditions",
    "command",
    "name",
    "description",
    "run_cap",
    "early_terminate",
    "project",
    "entity",
}
METHODS = ("grid", "random", "bayes")
FORM = "command: [${env}, dist-resnet, train, configs/resnet20.yaml, --some.key, value, ${args}]"


@dataclass(frozen=True)
class Sweep:
    """A sweep file. parameters: by dotted key."""

    name: str
    content: dict[str, Any]
    config: Path
    fixed: list[str]  # overrides that all runs share
    parameters: dict[str, Spec]
    conditions: list[Condition]

    @property
    def method(self) -> str:
        return self.content["method"]


def load(path: Path) -> Sweep:
    """Raises ValueError for a file that is missing, not of the format, or names what is no key of a
    configuration."""
    content = yaml_file.read(
        path, "sweep", "the ones that come with dist_resnet are in configs/sweeps/"
    )
    require(
        isinstance(content, dict),
        f"sweep {path}",
        content,
        "must hold method, parameters and command",
    )
    unknown = set(content) - KEYS
    require(
        not unknown,
        f"sweep {path}",
        sorted(unknown),
        f"no such keys; the keys are {', '.join(sorted(KEYS))}",
    )
    require(
        content.get("method") in METHODS,
        f"sweep {path}: method",
        content.get("method"),
        f"must be one of {', '.join(METHODS)}",
    )
    config, fixed = _command(path, content.get("command"))
    parameters = dict(space.flat(content.get("parameters") or {}))
    require(
        bool(parameters),
        f"sweep {path}: parameters",
        content.get("parameters"),
        "names no parameter",
    )
    for key, spec in parameters.items():
        space.check(path, key, spec, content["method"])
    conditions = space.conditions(path, content.get("conditions"), parameters)
    plain = not conditions or content["method"] != "grid"
    require(plain, f"sweep {path}: conditions", "...", "go with method random or bayes")
    cap = content.get("run_cap")
    is_count = cap is None or (isinstance(cap, int) and cap >= 1)
    require(is_count, f"sweep {path}: run_cap", cap, "must be a whole number, at least 1")
    return Sweep(content.get("name") or path.stem, content, config, fixed, parameters, conditions)


def points(sweep: Sweep, count: int | None, seed: int) -> list[dict[str, Any]]:
    """The runs' values, dotted key -> value: the whole grid in its order, or `count` random draws,
    the same for a seed.

    No more than the run_cap of the file. Raises ValueError for what needs to know the results so
    far: bayes, whose next draw follows from them, and early_terminate."""
    require(
        sweep.method != "bayes",
        "method",
        "bayes",
        "knows the results so far: add --search file, or --wandb; or use grid or random",
    )
    early = sweep.content.get("early_terminate")
    remedy = "needs a search: add --search file, or --wandb; or take it out of the file"
    require(early is None, "early_terminate", early, remedy)
    cap = sweep.content.get("run_cap")
    count = min((n for n in (count, cap) if n is not None), default=None)
    if sweep.method == "grid":
        choices = [
            [(key, value) for value in space.values_of(spec)]
            for key, spec in sweep.parameters.items()
        ]
        return [dict(point) for point in itertools.product(*choices)][:count]
    if count is None:
        raise ValueError("method = 'random': has no end: give --count N, or run_cap in the file")
    source = space.Random(seed)
    return [
        space.point(sweep.parameters, sweep.conditions, lambda name: source) for _ in range(count)
    ]


def runs(
    sweep: Sweep, directory: Path, count: int | None, seed: int, overrides: Sequence[str]
) -> list[tuple[Path, Config]]:
    """(RUN_DIR, configuration) of every run; runs that draw the same values are one. The name says
    what differs."""
    found: dict[Path, Config] = {}
    for point in points(sweep, count, seed):
        config = configuration(sweep, point, overrides)
        varied = ",".join(
            f"{key}={space.as_text(value)}"
            for key, value in point.items()
            if not space.is_constant(sweep.parameters.get(key, {}))
        )
        name = re.sub(r"[^\w.=,+-]+", "_", varied)[:120]
        found[directory / f"{name}-{run_dir.digest(config, varied)[:6]}"] = config
    return list(found.items())


def configuration(sweep: Sweep, point: dict[str, Any], overrides: Sequence[str]) -> Config:
    """Of the run at a point. Raises ValueError where the configuration refuses it, and for an
    override of a key that the sweep varies, which would make all its values the same."""
    for word in overrides:
        key = word.removeprefix("--").partition("=")[0]
        spec = sweep.parameters.get(key) if word.startswith("--") else None
        varied = spec is not None and not space.is_constant(spec)
        remedy = "is what the sweep varies: leave it out here, or set it in the file"
        require(not varied, word.partition("=")[0], spec, remedy)
    words = [f"--{key}={space.as_text(value)}" for key, value in point.items()]
    return config_file.load(
        sweep.config, [f"--tracking.group={sweep.name}", *sweep.fixed, *words, *overrides]
    )


def for_wandb(sweep: Sweep, directory: Path, words: Sequence[str]) -> dict[str, Any]:
    """The sweep as W&B's server is told: nested parameters made dotted, which its agents hand on as
    --key=value. Raises ValueError for what it does not know."""
    require(
        not sweep.conditions, "conditions", "...", "are for searches without a server: --search"
    )
    command = [
        "${env}",
        sys.executable,
        "-m",
        "launch",
        "train",
        str(sweep.config.resolve()),
        "--tracking.wandb=online",
        f"--tracking.group={sweep.name}",
        *sweep.fixed,
        "--sweep-dir",
        str(directory.resolve()),
        *words,
        "${args}",
    ]
    return {
        **sweep.content,
        "name": sweep.name,
        "program": "dist-resnet",
        "parameters": sweep.parameters,
        "command": command,
    }


def _command(path: Path, words: Any) -> tuple[Path, list[str]]:
    """(CONFIG, fixed overrides) of `command`."""
    require(
        isinstance(words, list) and "train" in words,
        f"sweep {path}: command",
        words,
        f"must name the base configuration: {FORM}",
    )
    rest = [
        str(word) for word in words[words.index("train") + 1 :] if not str(word).startswith("${")
    ]
    require(
        bool(rest), f"sweep {path}: command", words, f"must name the base configuration: {FORM}"
    )
    return Path(rest[0]), rest[1:]
