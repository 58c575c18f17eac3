"""What a machine without a network needs besides this tree: python -m benchmarks.gpu.kit BETONS
FOLDER WHEELS

site.zip: FFCV (the wheel of `make ffcv-wheel`) and the other packages that it may lack. a/, b/:
BETONS in two halves, one for each command."""

import shutil
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

from benchmarks.gpu import mosaics

PACKAGES = (
    "jsonargparse",
    "submitit",
    "cloudpickle",
    "rich",
    "markdown-it-py",
    "mdurl",
    "pygments",
)
HALVES = ("a", "b")
DISTUTILS = "from warnings import warn\n"  # all that FFCV takes of it; Python 3.12 has none


def make(betons: Path, folder: Path, wheels: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    site(folder / "site.zip", wheels)
    for half in HALVES:
        shutil.rmtree(folder / half, ignore_errors=True)
    mosaics.pack(betons, [folder / half for half in HALVES])


def site(path: Path, wheels: Path) -> None:
    """Pure Python but for FFCV, so that it serves any version from 3.11 on."""
    (ffcv,) = wheels.glob("ffcv-*-abi3-*.whl")
    versions = [f"{name}=={metadata.version(name)}" for name in PACKAGES]
    with tempfile.TemporaryDirectory() as name:
        options = ["--quiet", "--no-deps", "--no-compile", "--target", name]
        pip = [sys.executable, "-m", "pip", "install", *options]
        subprocess.run([*pip, str(ffcv), *versions], check=True)
        shim = Path(name) / "distutils"
        shim.mkdir()
        (shim / "__init__.py").touch()
        (shim / "log.py").write_text(DISTUTILS)
        shutil.make_archive(str(path.with_suffix("")), "zip", name)


def main() -> None:
    betons, folder, wheels = map(Path, sys.argv[1:])
    began = time.monotonic()
    make(betons, folder, wheels)
    for part in ("site.zip", *HALVES):
        sizes = [p.stat().st_size for p in [folder / part, *(folder / part).rglob("*")]]
        print(f"{folder / part}: {sum(sizes) / 2**20:.1f} MiB")
    print(f"made in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
