"""Fetches a file over HTTP: with rate and time left, what is there is kept and continued, and a
server that falls silent is not waited for."""

import hashlib
import http.client
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

STALL_SECONDS = 60.0  # without a byte
CHUNK = 2**16
TELL_SECONDS = 10.0


def fetch(url: str, to: Path, md5: str) -> None:
    """Continues `to`.partial where there is one. Raises OSError where it cannot be had, or is
    another file than that of the md5, such as the page of a network that asks for a login."""
    partial = to.with_name(f"{to.name}.partial")
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        _continue(url, partial)
    except (TimeoutError, http.client.HTTPException) as error:
        have = partial.stat().st_size if partial.exists() else 0
        raise OSError(
            f"{url}: nothing came for {STALL_SECONDS:.0f} s ({error}); the {have / 2**20:.1f} MiB "
            "that are there are kept, and the same command goes on from them"
        ) from None
    with open(partial, "rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != md5:
        partial.unlink()
        raise OSError(f"{url}: not the file that was expected (md5 {found} instead of {md5})")
    partial.replace(to)


def _continue(url: str, partial: Path) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=STALL_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # no byte is missing
            return
        raise
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise error.reason from None
        raise
    with answer, open(partial, "ab") as file:
        if answer.status != 206:  # the server knows no ranges
            file.truncate(0)
            have = 0
        size = have + int(answer.headers.get("Content-Length", 0))
        shown = began = time.monotonic()
        begun = have
        while chunk := answer.read1(CHUNK):
            file.write(chunk)
            have += len(chunk)
            if time.monotonic() - shown > TELL_SECONDS:
                shown = time.monotonic()
                _tell(url, have, size, (have - begun) / (shown - began))
    if size and have < size:
        raise http.client.IncompleteRead(b"", size - have)


def _tell(url: str, have: int, size: int, rate: float) -> None:
    left = f", {(size - have) / rate / 60:.0f} min left" if size else ""
    name = url.rpartition("/")[2]
    print(
        f"{name}: {have / 2**20:.0f} of {size / 2**20:.0f} MiB, {rate / 2**20:.2f} MiB/s{left}",
        file=sys.stderr,
        flush=True,
    )
