"""Reads a configuration: a YAML file, then dotted overrides; every mistake is a ValueError of one
line."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse

from dist_resnet.config import yaml_file
from dist_resnet.config.known_as import suggestion
from dist_resnet.config.model import FAMILIES
from dist_resnet.config.root import Config
from dist_resnet.config.section import Section, key_of, require

SECTIONS = {name: type(section) for name, section in Config().sections() if name != "model"}
DEFAULTS = dict(
    Config().sections()
)  # a section's own defaults but for batch, where one must be set


def load(path: Path | str | None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, or take the defaults, then apply `--section.key value` overrides.

    Raises ValueError for a missing file, an unknown key, a wrong type or a value out of range."""
    remedy = "the ones that come with dist_resnet are in configs/"
    if path is not None and (Path(path) / "config.yaml").is_file():
        raise ValueError(
            f"configuration '{path}' is a run directory; to resume it give {path}/config.yaml "
            f"--run-dir {path}"
        )
    read = yaml_file.read(Path(path), "configuration", remedy) if path is not None else {}
    path, content = Path(path or "no file"), read or {}
    in_file, words = _dotted_keys(content, path), _joined(overrides)
    given = dict(word.removeprefix("--").split("=", 1) for word in words)
    family = given.get("model.family", content.get("model", {}).get("family", "cifar"))
    require(family in FAMILIES, "model.family", family, f"must be one of {', '.join(FAMILIES)}")
    _refuse_unknown(in_file, f"in {path}", family)
    _refuse_unknown(list(given), "on the command line", family)
    values = yaml_file.parsed(_parser(family), f"configuration {path}", content, words)
    made = {
        name: kind(**{f.name: values[f"{name}.{key_of(f)}"] for f in dataclasses.fields(kind)})
        for name, kind in _sections(family).items()
    }
    return Config(**made)  # type: ignore[arg-type]


def keys(family: str | None = None) -> list[str]:
    """Every dotted key: of the family's networks, or of all families', and of all other
    sections."""
    models = [FAMILIES[family]] if family else list(FAMILIES.values())
    of_models = [f"model.{key_of(f)}" for kind in models for f in dataclasses.fields(kind)]
    others = [
        f"{name}.{key_of(f)}" for name, kind in SECTIONS.items() for f in dataclasses.fields(kind)
    ]
    return [*dict.fromkeys(of_models), *others]


def describe() -> str:
    """Every key, its default and its comment: the epilog of `dist-resnet train --help`."""
    lines: list[str] = []
    shown: set[str] = set()
    for family, kind in FAMILIES.items():
        lines.append(f"\nmodel, family {family}:")
        lines += _described("model", kind(), shown)
        shown |= {"family", "bn_momentum", "bn_scale"}  # the same in all families
    for name, section in DEFAULTS.items():
        if name != "model":
            lines.append(f"\n{name}:")
            lines += _described(name, section, set())
    return "\n".join(lines)


def _described(name: str, section: Section, shown: set[str]) -> list[str]:
    lines = []
    for field in dataclasses.fields(section):
        if field.name not in shown:
            value = getattr(section, field.name)
            default = list(value) if isinstance(value, tuple) else value
            default = "null" if default is None else default
            lines.append(f"  --{name}.{key_of(field)}  (default: {default})")
            lines.append(f"      {field.metadata['comment']}")
    return lines


def _sections(family: str) -> dict[str, type[Section]]:
    return {"model": FAMILIES[family], **SECTIONS}


@functools.cache  # a sweep reads many configurations
def _parser(family: str) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    for name, kind in _sections(family).items():
        defaults = DEFAULTS[name] if isinstance(DEFAULTS[name], kind) else kind()
        for field in dataclasses.fields(kind):
            default = getattr(defaults, field.name)
            parser.add_argument(f"--{name}.{key_of(field)}", type=field.type, default=default)
    return parser


def _dotted_keys(content: Any, path: Path) -> list[str]:
    shape = "the file must hold sections such as `model:` and `optim:`"
    require(isinstance(content, dict), str(path), content, shape)
    found = []
    for section, values in content.items():
        names = ", ".join(sorted(DEFAULTS))
        require(
            section in DEFAULTS, str(path), section, f"no such section; the sections are {names}"
        )
        remedy = f"{section} is a section; write its keys below it"
        require(isinstance(values, dict), str(path), {section: values}, remedy)
        found += [f"{section}.{key}" for key in values]
    return found


def _joined(overrides: Sequence[str]) -> list[str]:
    """['--a.b', '1', '--c.d=2'] -> ['--a.b=1', '--c.d=2']: one string a key, so that values such as
    -1 are values."""
    joined: list[str] = []
    for word in overrides:
        if word.startswith("--"):
            joined.append(word)
        elif joined and "=" not in joined[-1]:
            joined[-1] += f"={word}"
        else:
            raise ValueError(
                f"override {word!r}: write --section.key value, such as --optim.lr 0.2"
            )
    for word in joined:
        require(
            "=" in word,
            "override",
            word,
            "has no value; write --section.key value, such as --optim.lr 0.2",
        )
    return joined


def _refuse_unknown(given: Sequence[str], where: str, family: str) -> None:
    valid = keys(family)
    for key in given:
        if key in valid:
            continue
        others = [name for name in FAMILIES if key in keys(name)]
        if others:
            raise ValueError(
                f"unknown key {key!r} {where}: family {' and '.join(others)} has it, and "
                f"model.family = {family!r}; leave it out, or set --model.family {others[0]}"
            )
        raise ValueError(
            f"unknown key {key!r} {where}: {suggestion(key, valid)}; "
            "`dist-resnet train --help` lists every key"
        )
