"""Reads what submitit has pickled without running any of it: a pickle can call any function, and
whoever only looks at a run directory may be looking at a stranger's."""

import pickle
from pathlib import Path
from typing import Any


class Inert:
    """In place of an object of any class: its attributes, and nothing else."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return Inert


def load(path: Path) -> Any:
    """What the file holds, with Inert objects; None where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return _Unpickler(file).load()
    except (OSError, EOFError, pickle.UnpicklingError, AttributeError, IndexError, TypeError):
        return None
