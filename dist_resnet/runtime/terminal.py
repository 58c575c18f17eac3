"""Who reads what a command prints: a terminal that may go away, which ends no
command; a program that wants JSON alone."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class _Outliving:
    """A stream that falls silent where its reader is gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._tried(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._tried(self._stream.flush)

    def _tried(self, function: Any, *arguments: str) -> None:
        try:
            function(*arguments)
        except RuntimeError:
            pass  # from a signal's handler, in the midst of another write: left out
        except (OSError, ValueError):  # EPIPE, EIO of a terminal that was closed, a full disk
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def outlived() -> Iterator[None]:
    """Nothing that is printed meanwhile can raise; what cannot be written is lost, and so is the
    rest."""
    before = sys.stdout, sys.stderr
    ours: Any = tuple(_Outliving(stream) for stream in before)
    sys.stdout, sys.stderr = ours
    try:
        yield
    finally:
        for stream in ours:
            stream.flush()
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def for_json(wanted: bool) -> Iterator[None]:
    """What is printed meanwhile goes to stderr, where stdout is to hold JSON alone."""
    with contextlib.redirect_stdout(sys.stderr) if wanted else contextlib.nullcontext():
        yield
