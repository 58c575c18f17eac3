"""The code that a run was begun with, copied beside it: every start of the run takes that, whatever
the checkout holds by then."""

import filecmp
import os
import shutil
import sys
import tempfile
from pathlib import Path

from dist_resnet.tracking.starts import COMMIT, SOURCE, commit

PACKAGES = ("dist_resnet", "launch")
FOLDER = "code"  # of a RUN_DIR, or a sweep's directory


def pin(directory: Path) -> Path:
    """Copy the packages to directory/code, read-only, unless they are there already; returns that.

    Of several processes that do so at once, one wins. Says where the copy is another code than the
    one that runs now."""
    code = directory.resolve() / FOLDER
    if not code.exists():
        directory.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".code-", dir=directory))
        _copy(aside)
        try:
            os.rename(aside, code)
        except OSError:
            shutil.rmtree(aside)  # another process was first
    if code != SOURCE and not _same(SOURCE, code):
        print(
            f"note: {code} is what runs (commit {_commit_of(code)}), not the code here, which has "
            "changed since: delete that folder to take this one, or give --code live",
            file=sys.stderr,
        )
    return code


def _copy(to: Path) -> None:
    unread = shutil.ignore_patterns("*.pyc", "*.tmp.*")  # but what numba has compiled goes along
    for name in PACKAGES:
        shutil.copytree(SOURCE / name, to / name, ignore=unread)
    (to / COMMIT).write_text((commit() or "") + "\n")
    to.chmod(0o755)  # mkdtemp's are for their owner alone
    for path in to.rglob("*"):
        if path.is_file():
            path.chmod(path.stat().st_mode & 0o555)


def _same(a: Path, b: Path) -> bool:
    files = {
        root: {
            path.relative_to(root)
            for name in PACKAGES
            for path in (root / name).rglob("*")
            if path.is_file() and path.parent.name != "__pycache__"
        }
        for root in (a, b)
    }
    return files[a] == files[b] and all(
        filecmp.cmp(a / path, b / path, shallow=False) for path in files[a]
    )


def _commit_of(code: Path) -> str:
    return (code / COMMIT).read_text().strip() or "unknown"
