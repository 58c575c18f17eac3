#!/usr/bin/env bash
# Everything a fresh Debian or Ubuntu machine needs: missing system packages, .venv, this project in it.
#   launch/setup.sh [EXTRAS]     EXTRAS of pyproject.toml, such as check,test: what tests need besides
# `make` calls it when .venv/.ready (.venv/.ready-tests with extras) is older than pyproject.toml.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '== %s\n' "$*" >&2; }
fail() { printf '\nsetup: %s\n' "$*" >&2; exit 1; }

extras=${1:+[$1]}
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
compiles=  # whether FFCV is built from source
if compgen -G "wheels/ffcv-*-abi3-*.whl" >/dev/null; then
  say "FFCV comes from wheels/"
elif ! .venv/bin/python -c 'import ffcv' 2>/dev/null; then
  compiles=1
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

as_root=()
if [ ${#missing[@]} -gt 0 ]; then
  [ "$(id -u)" = 0 ] || as_root=(sudo -n)
  command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; } ||
    fail "these are missing and cannot be installed here (no root, or no apt): ${missing[*]}
  With root:     apt-get install ${missing[*]}
  Without root:  - conda:  conda install -c conda-forge gxx pkg-config opencv libjpeg-turbo, then \`make\` again inside that environment
                 - or build FFCV's self-contained wheel where you have root (\`make ffcv-wheel\`), copy wheels/ here, \`make\` again"
fi

install_system() {
  local began=$SECONDS
  say "installing ${missing[*]} (some 150 MB to fetch)"
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  say "system packages: $((SECONDS - began)) s"
}
if [[ " ${missing[*]} " == *" python3-venv "* ]]; then
  install_system
  missing=()
fi

options=(--quiet --disable-pip-version-check --no-compile)  # what is imported is compiled then
[ -d wheels ] && options+=(--find-links wheels)
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
required() {  # by the project, but FFCV
  .venv/bin/python -c 'import tomllib; print(*(d for d in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"] if not d.startswith("ffcv")), sep="\n")'
}
build_ffcv() {  # beside the download of torch, which takes as long
  [ ${#missing[@]} = 0 ] || install_system
  [ -n "$compiles" ] || return 0
  local began=$SECONDS
  .venv/bin/pip wheel --quiet --disable-pip-version-check --no-deps --no-binary ffcv --wheel-dir .venv/built \
    "$(sed -n 's/^ *"\(ffcv==[^"]*\)".*/\1/p' pyproject.toml)"
  say "FFCV built: $((SECONDS - began)) s"
}

build_ffcv &
built=$!
trap 'kill "$built" 2>/dev/null || true' EXIT
began=$SECONDS
if ! .venv/bin/python -c 'import torch, torchvision' 2>/dev/null; then
  say "fetching torch and what else is needed: 3 GB where pip's cache has none of it, 6 GB on disk; a few minutes"
  mapfile -t packages < <(required)
  .venv/bin/pip install "${options[@]}" "${packages[@]}" || fail "pip could not install the packages; its message is above"
  say "Python packages: $((SECONDS - began)) s"
fi
wait "$built" || fail "FFCV could not be built; the message is above"
began=$SECONDS
[ ! -d .venv/built ] || options+=(--find-links .venv/built)
.venv/bin/pip install "${options[@]}" -e ".$extras" || fail "pip could not install the packages; its message is above"
.venv/bin/python -c 'import ffcv, torch, torchvision' || fail "FFCV or torch does not import; its message is above"
touch .venv/.ready ${1:+.venv/.ready-tests}
say "this project${1:+ and what its tests need}: $((SECONDS - began)) s; ready after $SECONDS s"
