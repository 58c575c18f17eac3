"""Imports, spared by the garbage collector."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def for_good() -> Iterator[None]:
    """What the block imports stays until the process ends: it is not searched for garbage, neither
    meanwhile nor ever after; nor is what was there before.

    torch, FFCV and numba make some 400,000 objects, which every full collection visits, those at
    the exit too."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
