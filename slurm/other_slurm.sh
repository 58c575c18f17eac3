#!/bin/bash
# The tests that need SLURM, with the SLURM of another Debian: slurm/other_slurm.sh trixie [pytest's arguments]
# As root, on Debian or Ubuntu. trixie has SLURM 24.11. Its root is made in build/SUITE at the first call (2 GB to fetch, 9 GB on disk, ten
# minutes), with this checkout as it is now and an environment of its own. Mounts and processes end with the call.
set -euo pipefail
cd "$(dirname "$0")/.."
suite=${1:?usage: slurm/other_slurm.sh SUITE [pytest arguments]} root=$PWD/build/$1
shift
tests=("$@")
[ $# -gt 0 ] || tests=(tests/test_slurm.py tests/test_slurm_harms.py tests/test_slurm_sites.py tests/test_sweep_agents.py
  tests/test_search.py::test_agents_killed_and_preempted_leave_the_same_search_behind
  tests/test_doctor.py::test_two_nodes_and_what_status_shows_of_runs_there)
[ "$(id -u)" = 0 ] || { echo "other_slurm: must be run as root: it makes a root directory and mounts in it" >&2; exit 1; }

if [ ! -e "$root/etc/debian_version" ]; then
  command -v mmdebstrap >/dev/null || apt-get install -y -qq --no-install-recommends mmdebstrap >/dev/null
  mkdir -p build
  mmdebstrap --quiet --variant=minbase --include=slurm-wlm,munge,python3,python3-venv,make,git,ca-certificates,procps "$suite" "$root"
fi
mkdir -p "$root/project"
cp /etc/hosts /etc/resolv.conf "$root/etc/"
cp --dereference /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"  # a site's proxy may have one of its own
git ls-files --cached --others --exclude-standard -z | tar --null --files-from=- --create | tar --extract --directory "$root/project"

inside='mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && mount --rbind /sys "$0/sys" && chroot "$0" bash -c "
  cd /project && slurmctld -V && make --silent setup && exec .venv/bin/python -m pytest -q \"\$@\"" pytest "$@"; exit $?  # this shell reaps orphans meanwhile'
exec unshare --mount --pid --fork --kill-child bash -c "$inside" "$root" "${tests[@]}"
