"""FFCV as one wheel for every Python from 3.11 on, which needs no compiler, no system OpenCV and no
X11: python container/ffcv_wheel.py FOLDER

OpenCV's two libraries are linked statically; TBB and libjpeg-turbo lie beside the extension. It is
used through ctypes, and of Python's C API asks for PyModule_Create2 alone, which is in the stable
ABI. Needs g++, Python.h, Debian's or Ubuntu's libopencv-dev and libturbojpeg0-dev, and pip.
Standard library only."""

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

VERSION = "1.0.2"
TAG = "cp311-abi3"
LIBRARIES = Path("/usr/lib") / sysconfig.get_config_var("MULTIARCH")
BESIDE = ("libturbojpeg.so.0", "libtbb.so.12")
REQUIRES = (  # what FFCV imports; its own list has packages that only its examples need
    *("torch", "numpy", "numba", "psutil", "tqdm"),
    "opencv-python-headless",  # FFCV's list asks for the one with windows, which needs X11
    "setuptools; python_version >= '3.12'",
)
STATIC = ("libopencv_imgproc.a", "libopencv_core.a", "libz.a", "libstdc++.a")
# OpenCV's core asks for it where it finds OpenGL, which nothing here uses
STUB = """extern "C" __attribute__((visibility("hidden")))
void* glXGetProcAddressARB(const unsigned char*) { return 0; }"""


def main() -> None:
    (folder,) = map(Path, sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        source, content = fetch(Path(name)), Path(name) / "content"
        shutil.copytree(source / "ffcv", content / "ffcv")
        extension = content / "ffcv/_libffcv.abi3.so"
        build(source / "libffcv/libffcv.cpp", extension)
        for library in BESIDE:
            shutil.copy(LIBRARIES / library, content / "ffcv" / library)
        platform = f"manylinux_{glibc(content / 'ffcv')}_{sysconfig.get_platform().split('-')[-1]}"
        about = content / f"ffcv-{VERSION}.dist-info"
        (about / "licenses").mkdir(parents=True)
        describe(about, source, f"{TAG}-{platform}")
        print(pack(content, about, folder / f"ffcv-{VERSION}-{TAG}-{platform}.whl"))


def fetch(folder: Path) -> Path:
    """FFCV's source distribution, unpacked."""
    options = ["-q", "--no-deps", "--no-binary", "ffcv", "--use-pep517", "-d", str(folder)]
    run(sys.executable, "-m", "pip", "download", *options, f"ffcv=={VERSION}")
    run("tar", "xzf", folder / f"ffcv-{VERSION}.tar.gz", "-C", folder)
    return folder / f"ffcv-{VERSION}"


def build(source: Path, extension: Path) -> None:
    stub = source.with_name("stub.cpp")
    stub.write_text(STUB)
    run(
        *("g++", "-O2", "-std=c++11", "-shared", "-fPIC", "-s", "-DPy_LIMITED_API=0x030B0000"),
        *("-I", sysconfig.get_path("include"), "-I/usr/include/opencv4"),
        *(source, stub, "-o", extension),
        *("-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections,--exclude-libs,ALL"),
        *("-Wl,-Bstatic", "-lopencv_imgproc", "-lopencv_core", "-lz", "-Wl,-Bdynamic"),
        *(f"-l:{library}" for library in BESIDE),
        *("-static-libstdc++", "-static-libgcc", "-lpthread", "-ldl", "-Wl,-rpath,$ORIGIN"),
    )


def glibc(folder: Path) -> str:
    """The newest version of glibc that its libraries ask for, as '2_35'."""
    symbols = [run("objdump", "-T", library) for library in folder.glob("*.so*")]
    versions = re.findall(r"GLIBC_(\d+)\.(\d+)", "".join(symbols))
    return "{}_{}".format(*max((int(a), int(b)) for a, b in versions))


def describe(about: Path, source: Path, tag: str) -> None:
    lines = ["Metadata-Version: 2.1", "Name: ffcv", f"Version: {VERSION}", "License: Apache-2.0"]
    lines += ["Summary: FFCV, with OpenCV linked statically", "Requires-Python: >=3.11"]
    lines += [f"Requires-Dist: {name}" for name in REQUIRES]
    (about / "METADATA").write_text("\n".join(lines) + "\n")
    generator = "Generator: dist_resnet container/ffcv_wheel.py"
    (about / "WHEEL").write_text(
        f"Wheel-Version: 1.0\n{generator}\nRoot-Is-Purelib: false\nTag: {tag}\n"
    )
    shutil.copy(source / "LICENSE", about / "licenses/ffcv.txt")
    told = [f"FFCV {VERSION}: unchanged, but for how its extension is linked. In it:"]
    for library in (*STATIC, *BESIDE):
        path = Path(run("g++", f"-print-file-name={library}").strip()).absolute()
        package = run("dpkg", "-S", os.path.normpath(path)).split(":")[0]
        origin = run("dpkg-query", "-Wf", "${source:Package} ${source:Version}", package)
        how = "linked statically" if library in STATIC else "beside the extension"
        told.append(f"- {library}, {how}: of {package}, whose source is {origin}")
        copyright = Path("/usr/share/doc") / package / "copyright"
        shutil.copy(copyright.resolve(), about / f"licenses/{package}.txt")
    told.append("Those are Debian's or Ubuntu's: `apt-get source PACKAGE=VERSION` fetches them.")
    (about / "licenses/NOTICE.txt").write_text("\n".join(told) + "\n")


def pack(content: Path, about: Path, wheel: Path) -> Path:
    rows = []
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(p for p in content.rglob("*") if p.is_file()):
            name, data = str(path.relative_to(content)), path.read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.append(f"{name},sha256={digest},{len(data)}")
            archive.write(path, name)
        record = f"{about.name}/RECORD"
        archive.writestr(record, "\n".join([*rows, f"{record},,"]) + "\n")
    return wheel


def run(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    main()
