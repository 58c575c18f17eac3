#!/bin/bash
# build.sh SOURCE TARGET: a virtual environment in TARGET with dist_resnet and FFCV, whose wheel brings its own libraries.
# For the images of this folder; compilers are needed here, and not afterwards.
set -euo pipefail
source=$1 target=$2 wheels=$(mktemp -d)
python3 -m venv "$target"
"$target/bin/python" "$source/container/ffcv_wheel.py" "$wheels"
"$target/bin/pip" install --quiet --no-cache-dir --find-links "$wheels" "$source"
rm -rf "$wheels"
