#!/usr/bin/env bash
# Everything a fresh Debian or Ubuntu machine needs: missing system packages, .venv, this project in it.
# `make` calls it when .venv/.ready is older than pyproject.toml.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '== %s\n' "$*" >&2; }
fail() { printf '\nsetup: %s\n' "$*" >&2; exit 1; }

PYTHON=${PYTHON:-python3}
command -v "$PYTHON" >/dev/null || fail "no $PYTHON: install Python 3.11 or newer (apt-get install python3 python3-venv), or set PYTHON"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "$("$PYTHON" --version) is too old: Python 3.11 or newer is needed; set PYTHON=python3.11 (or newer)"

missing=()
has_headers() {
  "$PYTHON" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'
}
need() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'ok installed' || missing+=("$1"); }

"$PYTHON" -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
tag=$("$PYTHON" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
if compgen -G "wheels/ffcv-*-$tag-*.whl" >/dev/null; then
  say "FFCV comes from wheels/"  # beyond what it bundles, it and its OpenCV load these three
  for library in libX11.so.6:libx11-6 libGL.so.1:libgl1 libglib-2.0.so.0:libglib2.0-0; do
    ldconfig -p 2>/dev/null | grep -q "${library%%:*}" || missing+=("${library##*:}")
  done
elif ! .venv/bin/python -c 'import ffcv' 2>/dev/null; then
  # FFCV is built from source
  if pkg-config --exists opencv4 libturbojpeg 2>/dev/null && command -v g++ >/dev/null && has_headers; then
    :
  elif command -v dpkg-query >/dev/null; then
    command -v g++ >/dev/null || missing+=(g++)
    has_headers || missing+=(python3-dev)
    for package in pkg-config libopencv-dev libturbojpeg0-dev; do need "$package"; done
  else
    missing+=(g++ pkg-config "opencv (with headers)" "libjpeg-turbo (with headers)")
  fi
fi

if [ ${#missing[@]} -gt 0 ]; then
  as_root=()
  [ "$(id -u)" = 0 ] || as_root=(sudo -n)
  if command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }; then
    say "installing ${missing[*]}"
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  else
    fail "these are missing and cannot be installed here (no root, or no apt): ${missing[*]}
  With root:     apt-get install ${missing[*]}
  Without root:  - conda:  conda install -c conda-forge gxx pkg-config opencv libjpeg-turbo, then \`make\` again inside that environment
                 - or build FFCV's self-contained wheel where you have root (\`make ffcv-wheel\`), copy wheels/ here, \`make\` again"
  fi
fi

say "Python packages into .venv (several GB where torch is not in pip's cache)"
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
options=(--quiet --disable-pip-version-check)
[ -d wheels ] && options+=(--find-links wheels)
.venv/bin/pip install "${options[@]}" -e '.[check,test]' || fail "pip could not install the packages; its message is above"
.venv/bin/python -c 'import ffcv, torch, torchvision' || fail "FFCV or torch does not import; its message is above"
touch .venv/.ready
say "ready"
