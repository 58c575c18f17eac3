"""Reads a configuration: a YAML file, then dotted overrides; every mistake is a ValueError of one line."""

import dataclasses
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from dist_resnet.config import Config, key_of, knobs, require


def load(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, then apply `--section.key value` overrides.

    Raises ValueError for a missing file, an unknown key, a wrong type or a value out of range."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"configuration {str(path)!r}: no such file; the ones that come with dist_resnet are in configs/")
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"configuration {str(path)!r} is not YAML: {_one_line(error)}") from None
    _refuse_unknown(_dotted_keys(content, path), f"in {path}")
    overrides = _joined(overrides)
    _refuse_unknown([o.removeprefix("--").split("=", 1)[0] for o in overrides], "on the command line")
    parser = _parser()
    try:
        values = parser.parse_args(overrides, parser.parse_object(content))
    except jsonargparse.ArgumentError as error:
        raise ValueError(f"configuration {path}: {_one_line(error)}") from None
    sections: dict[str, dict[str, Any]] = {}
    for section, field in knobs():
        sections.setdefault(section, {})[field.name] = values[f"{section}.{key_of(field)}"]
    return Config(**{s.name: s.type(**sections[s.name]) for s in dataclasses.fields(Config)})


def _parser() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    for section, field in knobs():
        default = getattr(getattr(Config, section), field.name)
        parser.add_argument(f"--{section}.{key_of(field)}", type=field.type, default=default)
    return parser


def describe() -> str:
    """Every key, its default and its comment: the epilog of `dist-resnet train --help`."""
    defaults = Config().to_dict()
    lines, last = [], None
    for section, field in knobs():
        if section != last:
            lines.append(f"\n{section}:")
            last = section
        lines.append(f"  --{section}.{key_of(field)}  [{defaults[section][key_of(field)]}]")
        lines.append(f"      {field.metadata['comment']}")
    return "\n".join(lines)


def _dotted_keys(content: Any, path: Path) -> list[str]:
    require(isinstance(content, dict), str(path), content, "the file must hold sections such as `model:` and `optim:`")
    names = {s.name for s in dataclasses.fields(Config)}
    keys = []
    for section, values in content.items():
        require(section in names, str(path), section, f"no such section; the sections are {', '.join(sorted(names))}")
        require(isinstance(values, dict), str(path), {section: values}, f"{section} is a section; write its keys below it")
        keys += [f"{section}.{key}" for key in values]
    return keys


def _joined(overrides: Sequence[str]) -> list[str]:
    """['--a.b', '1', '--c.d=2'] -> ['--a.b=1', '--c.d=2']: one string a key, so that values such as -1 are values."""
    joined: list[str] = []
    for word in overrides:
        if word.startswith("--"):
            joined.append(word)
        elif joined and "=" not in joined[-1]:
            joined[-1] += f"={word}"
        else:
            raise ValueError(f"override {word!r}: write --section.key value, such as --optim.lr 0.2")
    for word in joined:
        require("=" in word, "override", word, "has no value; write --section.key value, such as --optim.lr 0.2")
    return joined


def _refuse_unknown(keys: Sequence[str], where: str) -> None:
    valid = [f"{section}.{key_of(field)}" for section, field in knobs()]
    for key in keys:
        if key not in valid:
            section = key.split(".")[0]
            near = difflib.get_close_matches(key, valid, 3) or [v for v in valid if v.startswith(f"{section}.")] or valid
            raise ValueError(f"unknown key {key!r} {where}: did you mean {', '.join(near)}? "
                             "`dist-resnet train --help` lists every key")


def _one_line(error: object) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()
