"""What every section of a configuration is made of: typed fields with a comment, and checks that
name key, value, remedy."""

import dataclasses
import math
import re
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints


def setting(default: Any, comment: str, *, may_change: bool = False) -> Any:
    """A dataclass field whose comment is also its `--help` text."""
    return dataclasses.field(
        default=default, metadata={"comment": comment, "may_change": may_change}
    )


def run_setting(default: Any, comment: str) -> Any:
    """A setting of how a run is run, and not of what it gives: any start of it may change this."""
    return setting(default, comment, may_change=True)


def require(condition: bool, key: str, value: object, remedy: str) -> None:
    """Raises ValueError with the key, the value and what would be valid, unless the condition
    holds."""
    if not condition:
        raise ValueError(f"{key} = {value!r}: {remedy}")


def parse_length(key: str, text: str) -> tuple[float, Literal["steps", "epochs"]]:
    """'400 steps' -> (400.0, 'steps'). Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) (step|epoch)s?", text)
    if match is None or not float(match[1]) > 0:
        raise ValueError(f"{key} = {text!r}: write '400 steps' or '1.5 epochs', more than 0")
    in_steps = match[2] == "step"
    require(not in_steps or float(match[1]).is_integer(), key, text, "a number of steps is whole")
    return float(match[1]), "steps" if in_steps else "epochs"


def key_of(field: dataclasses.Field) -> str:
    """A field's name in YAML and on the command line."""
    return field.name.rstrip("_")  # `global` is a word of Python's own


@cache
def _choices(section: type) -> dict[str, tuple[tuple, tuple[type, ...]]]:
    """Field -> the words that its Literal allows, and the types that it allows besides. A command
    line is checked by its parser, a card or a checkpoint by nobody else."""
    found = {}
    for name, hint in get_type_hints(section).items():
        kinds = get_args(hint) if get_origin(hint) is Union else (hint,)
        literals = [kind for kind in kinds if get_origin(kind) is Literal]
        words = tuple(word for kind in literals for word in get_args(kind))
        others = tuple(kind for kind in kinds if isinstance(kind, type))
        found[name] = (words, others)
    return found


@dataclass(frozen=True)
class Section:
    """Frozen settings. Subclasses name themselves in `section`, and check their values in
    `check`."""

    section: ClassVar[str]

    def __post_init__(self) -> None:
        kind: Any = type(self)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for number in value if isinstance(value, tuple) else (value,):
                finite = not isinstance(number, float) or math.isfinite(number)
                require(finite, self.key(field.name), value, "must be a finite number")
            words, others = _choices(kind)[field.name]
            known = not words or value in words or isinstance(value, others)
            listed = ", ".join(map(str, words))
            require(known, self.key(field.name), value, f"must be one of {listed}")
        self.check()

    def check(self) -> None:
        """Raises ValueError for a value out of range."""

    def key(self, name: str) -> str:
        return f"{self.section}.{name.rstrip('_')}"

    def require(self, condition: bool, name: str, remedy: str) -> None:
        """Raises ValueError with this section's key of that name, its value and the remedy."""
        value = getattr(self, name)
        require(
            condition, self.key(name), list(value) if isinstance(value, tuple) else value, remedy
        )
