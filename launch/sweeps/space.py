"""The parameters of a sweep file: checked, and how a point of their space is drawn. W&B's names and
meanings (docs.wandb.ai, "Sweep configuration options"); conditions are ours."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dist_resnet.config import config_file, require

Spec = dict[str, Any]  # W&B's specification of a parameter, such as {"values": [0.1, 0.2]}


class Draw(Protocol):
    """Where values come from: a random number generator, or a sampler that knows the results so
    far."""

    def uniform(self, low: float, high: float) -> float: ...
    def log_uniform(self, low: float, high: float) -> float: ...
    def randint(self, low: int, high: int) -> int: ...
    def gauss(self, mu: float, sigma: float) -> float: ...
    def choices(self, values: Sequence[Any], weights: Sequence[float] | None) -> Sequence[Any]: ...


class Random(random.Random):
    def log_uniform(self, low: float, high: float) -> float:
        return math.exp(self.uniform(math.log(low), math.log(high)))


@dataclass(frozen=True)
class Condition:
    """Parameters that hold, in place of others of the same key, where drawn ones have these
    values."""

    when: dict[str, Any]
    parameters: dict[str, Spec]

    def holds(self, drawn: dict[str, Any]) -> bool:
        return all(key in drawn and drawn[key] == value for key, value in self.when.items())

    def __str__(self) -> str:
        return ",".join(f"{key}={as_text(value)}" for key, value in self.when.items())


def point(
    parameters: dict[str, Spec],
    conditions: Sequence[Condition],
    draw_of: Callable[[str], Draw],
) -> dict[str, Any]:
    """One point: dotted key -> value. Keys without conditions are drawn first; of several
    conditions that hold the last one counts.

    draw_of: where the value of a parameter comes from, by its name: its key, with the condition
    where there is one, since the same key then has other ranges."""
    conditional = {key for condition in conditions for key in condition.parameters}
    drawn = {k: draw(s, draw_of(k)) for k, s in parameters.items() if k not in conditional}
    chosen = {key: (key, spec) for key, spec in parameters.items() if key in conditional}
    for condition in conditions:
        if condition.holds(drawn):
            chosen |= {k: (f"{k} [{condition}]", s) for k, s in condition.parameters.items()}
    return drawn | {key: draw(spec, draw_of(name)) for key, (name, spec) in chosen.items()}


DRAWS: dict[str, Callable[[Spec, Draw], Any]] = {
    "uniform": lambda s, d: d.uniform(s["min"], s["max"]),
    "int_uniform": lambda s, d: d.randint(s["min"], s["max"]),
    "q_uniform": lambda s, d: _quantised(d.uniform(s["min"], s["max"]), s),
    "log_uniform_values": lambda s, d: d.log_uniform(s["min"], s["max"]),
    "q_log_uniform_values": lambda s, d: _quantised(d.log_uniform(s["min"], s["max"]), s),
    "log_uniform": lambda s, d: d.log_uniform(math.exp(s["min"]), math.exp(s["max"])),
    "normal": lambda s, d: d.gauss(s.get("mu", 0), s.get("sigma", 1)),
    "log_normal": lambda s, d: math.exp(d.gauss(s.get("mu", 0), s.get("sigma", 1))),
}


def draw(spec: Spec, source: Draw) -> Any:
    if "value" in spec:
        return spec["value"]
    if "values" in spec:
        return source.choices(spec["values"], spec.get("probabilities"))[0]
    whole = isinstance(spec.get("min"), int) and isinstance(spec.get("max"), int)
    value = DRAWS[spec.get("distribution") or ("int_uniform" if whole else "uniform")](spec, source)
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _quantised(value: float, spec: Spec) -> float:
    q = spec.get("q", 1)
    return round(value / q) * q


def values_of(spec: Spec) -> list[Any]:
    return [spec["value"]] if "value" in spec else spec["values"]


def is_constant(spec: Spec) -> bool:
    return "value" in spec


def flat(parameters: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Spec]]:
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
            yield from flat(spec["parameters"], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", spec


def check(path: Path, key: str, spec: Spec, method: str) -> None:
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


def conditions(path: Path, given: Any, parameters: dict[str, Spec]) -> list[Condition]:
    """Of a file's `conditions`: [{when: {optim.name: adam}, parameters: {...}}, ...]."""
    found = []
    for entry in given or []:
        fits = isinstance(entry, dict) and set(entry) == {"when", "parameters"} and entry["when"]
        form = "write {when: {KEY: VALUE}, parameters: {...}}"
        require(bool(fits), f"sweep {path}: conditions", entry, form)
        for key, value in entry["when"].items():
            spec = parameters.get(key, {})
            known = ("value" in spec or "values" in spec) and value in values_of(spec)
            name = f"sweep {path}: conditions: when {key}"
            require(known, name, value, "must be one of the values of a parameter of the file")
        own = dict(flat(entry["parameters"]))
        for key, spec in own.items():
            check(path, key, spec, "random")
        found.append(Condition(entry["when"], own))
    decided = {key for condition in found for key in condition.when}
    both = decided & {key for condition in found for key in condition.parameters}
    require(not both, f"sweep {path}: conditions", sorted(both), "cannot depend on one another")
    return found


def as_text(value: Any) -> str:
    """As on a command line."""
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
