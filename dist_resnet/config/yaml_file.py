"""Reads YAML files that people write: every mistake is a ValueError of one line that names the
file."""

import re
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

TYPES = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "text"}


class _Loader(yaml.SafeLoader):
    """YAML's own reader takes the last of two equal keys without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise ValueError(f"the key {key!r} stands there twice (again in line {line})")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read(path: Path, what: str, remedy: str) -> Any:
    """The content of a YAML file. what: 'configuration', 'sweep' ...; remedy: for a missing file.

    Raises ValueError for a file that is missing, not UTF-8, not YAML, or has a key twice."""
    if not path.is_file():
        raise ValueError(f"{what} {str(path)!r}: no such file; {remedy}")
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{what} {str(path)!r} is not UTF-8 text (byte {error.start}): save it as UTF-8"
        ) from None
    except yaml.YAMLError as error:
        raise ValueError(f"{what} {str(path)!r} is not YAML: {one_line(error)}") from None
    except ValueError as error:
        raise ValueError(f"{what} {str(path)!r}: {error}; keep one of them") from None


def parsed(parser: jsonargparse.ArgumentParser, what: str, content: Any, words: list[str]) -> Any:
    """The values that a parser makes of a file's content and of overrides. Raises ValueError, which
    says of which of the two."""
    try:
        values = parser.parse_object(content)
        what = "command line"
        return parser.parse_args(words, values) if words else values
    except (jsonargparse.ArgumentError, TypeError) as error:
        text = re.sub(r"a <class '(\w+)'>", lambda m: TYPES.get(m[1], m[1]), one_line(error))
        raise ValueError(f"{what}: {text}") from None


def one_line(error: object) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()
