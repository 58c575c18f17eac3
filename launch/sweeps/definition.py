"""Sweeps: a file in W&B's own format (docs.wandb.ai, "Sweep configuration options"), expanded here
into runs.

The same file serves W&B's server (`dist-resnet sweep FILE --wandb`; trainings under a plain `wandb
agent` need `--tracking.wandb online` in it besides). Its `command` names the base: [...,
dist-resnet, train, CONFIG, fixed overrides, ${args}]."""

import itertools
import math
import random
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_resnet.config import Config, config_file, require, yaml_file

KEYS = {
    "program",
    "method",
    "metric",
    "parameters",
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
    """A sweep file. parameters: dotted key -> W&B's specification, such as {"values": [0.1,
    0.2]}."""

    name: str
    content: dict[str, Any]
    config: Path
    fixed: list[str]  # overrides that all runs share
    parameters: dict[str, dict[str, Any]]

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
    parameters = dict(_flat(content.get("parameters") or {}))
    require(
        bool(parameters),
        f"sweep {path}: parameters",
        content.get("parameters"),
        "names no parameter",
    )
    for key, spec in parameters.items():
        _check(path, key, spec, content["method"])
    cap = content.get("run_cap")
    is_count = cap is None or (isinstance(cap, int) and cap >= 1)
    require(is_count, f"sweep {path}: run_cap", cap, "must be a whole number, at least 1")
    return Sweep(content.get("name") or path.stem, content, config, fixed, parameters)


def points(sweep: Sweep, count: int | None, seed: int) -> list[dict[str, Any]]:
    """The runs' values, dotted key -> value: the whole grid in its order, or `count` random draws,
    the same for a seed.

    No more than the run_cap of the file. Raises ValueError for what needs a server, which knows the
    results so far: bayes, whose next draw follows from them, and early_terminate."""
    require(
        sweep.method != "bayes",
        "method",
        "bayes",
        "needs W&B's server: add --wandb, or use grid or random",
    )
    early = sweep.content.get("early_terminate")
    remedy = "needs W&B's server: add --wandb, or take it out of the file"
    require(early is None, "early_terminate", early, remedy)
    cap = sweep.content.get("run_cap")
    count = min((n for n in (count, cap) if n is not None), default=None)
    if sweep.method == "grid":
        choices = [
            [(key, value) for value in _values(spec)] for key, spec in sweep.parameters.items()
        ]
        return [dict(point) for point in itertools.product(*choices)][:count]
    if count is None:
        raise ValueError("method = 'random': has no end: give --count N, or run_cap in the file")
    draw = random.Random(seed)
    return [
        {key: _draw(spec, draw) for key, spec in sweep.parameters.items()} for _ in range(count)
    ]


def runs(
    sweep: Sweep, directory: Path, count: int | None, seed: int, overrides: Sequence[str]
) -> list[tuple[Path, Config]]:
    """(RUN_DIR, configuration) of every run; runs that draw the same values are one. The name says
    what differs."""
    found: dict[Path, Config] = {}
    for point in points(sweep, count, seed):
        words = [f"--{key}={_text(value)}" for key, value in point.items()]
        config = config_file.load(
            sweep.config, [f"--tracking.group={sweep.name}", *sweep.fixed, *words, *overrides]
        )
        varied = ",".join(
            f"{key}={_text(value)}"
            for key, value in point.items()
            if not _is_constant(sweep.parameters[key])
        )
        name = re.sub(r"[^\w.=,+-]+", "_", varied)[:120]
        found[directory / f"{name}-{config.digest()[:6]}"] = config
    return list(found.items())


def for_wandb(sweep: Sweep, directory: Path, words: Sequence[str]) -> dict[str, Any]:
    """The sweep as W&B's server is told: nested parameters made dotted, which its agents hand on as
    --key=value."""
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


def _flat(parameters: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """{"optim": {"parameters": {"lr": SPEC}}} -> ("optim.lr", SPEC); names that are dotted already
    stay."""
    for name, spec in parameters.items():
        require(
            isinstance(spec, dict),
            f"sweep: parameter {prefix}{name}",
            spec,
            "write {values: [...]}, {value: ...} or {min: ..., max: ...}",
        )
        if "parameters" in spec:
            yield from _flat(spec["parameters"], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", spec


def _check(path: Path, key: str, spec: dict[str, Any], method: str) -> None:
    require(
        key in set(config_file.keys()),
        f"sweep {path}: parameter",
        key,
        "is no key of a configuration; `dist-resnet train --help` lists them",
    )
    finite = "value" in spec or isinstance(spec.get("values"), list)
    require(
        finite or {"min", "max"} <= spec.keys() or {"mu", "sigma"} <= spec.keys(),
        f"sweep {path}: parameter {key}",
        spec,
        "needs value, values, min and max, or mu and sigma",
    )
    require(
        finite or method != "grid", f"sweep {path}: parameter {key}", spec, "a grid needs `values`"
    )
    distribution = spec.get("distribution")
    require(
        distribution is None or distribution in DRAWS or finite,
        f"sweep {path}: parameter {key}",
        distribution,
        f"must be one of {', '.join(DRAWS)}",
    )


def _values(spec: dict[str, Any]) -> list[Any]:
    return [spec["value"]] if "value" in spec else spec["values"]


def _is_constant(spec: dict[str, Any]) -> bool:
    return "value" in spec


DRAWS = {
    "uniform": lambda s, d: d.uniform(s["min"], s["max"]),
    "int_uniform": lambda s, d: d.randint(s["min"], s["max"]),
    "q_uniform": lambda s, d: _quantised(d.uniform(s["min"], s["max"]), s),
    "log_uniform_values": lambda s, d: math.exp(d.uniform(math.log(s["min"]), math.log(s["max"]))),
    "q_log_uniform_values": lambda s, d: _quantised(
        math.exp(d.uniform(math.log(s["min"]), math.log(s["max"]))), s
    ),
    "log_uniform": lambda s, d: math.exp(d.uniform(s["min"], s["max"])),
    "normal": lambda s, d: d.gauss(s.get("mu", 0), s.get("sigma", 1)),
    "log_normal": lambda s, d: math.exp(d.gauss(s.get("mu", 0), s.get("sigma", 1))),
}  # W&B's names and meanings


def _draw(spec: dict[str, Any], draw: random.Random) -> Any:
    if "value" in spec or "values" in spec:
        values = _values(spec)
        return draw.choices(values, spec.get("probabilities"))[0]
    whole = isinstance(spec.get("min"), int) and isinstance(spec.get("max"), int)
    value = DRAWS[spec.get("distribution") or ("int_uniform" if whole else "uniform")](spec, draw)
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _quantised(value: float, spec: dict[str, Any]) -> float:
    q = spec.get("q", 1)
    return round(value / q) * q


def _text(value: Any) -> str:
    """As on a command line."""
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
