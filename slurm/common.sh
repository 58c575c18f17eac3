# What all batch scripts share. Each calls one of: train CONFIG [--section.key value ...], prepare DATASET [options].
# Python is that of $DIST_RESNET_PYTHON; else of .venv in the submit directory; else `python` on the PATH, which sbatch takes over
# from the shell that calls it (conda activate, module load). Other variables for a site:
#   DIST_RESNET_CONTAINER       an Apptainer image, in which everything but SLURM's commands runs, by its `python`
#   DIST_RESNET_WORKER_PYTHON   the workers' Python, where srun itself puts them into a container (Pyxis)
#   DIST_RESNET_SRUN_ARGS       what a site wants of srun besides, such as --mpi=none
#
# The workers answer SIGUSR2 or SIGUSR1 (preemption, or the time limit is near): the training saves and leaves, the end of this script
# (launch/jobs/workers.sh) has SLURM requeue the job, which runs again from its top and goes on.

find_python() {
  trap ':' USR1 USR2 TERM  # SLURM may send them to this shell too
  cd "$SLURM_SUBMIT_DIR" || exit 1
  hold=()
  if [ -n "$DIST_RESNET_CONTAINER" ]; then
    local enter=apptainer
    command -v apptainer >/dev/null || enter=singularity
    python=("$enter" exec --nv "$DIST_RESNET_CONTAINER" "${DIST_RESNET_PYTHON:-python}")
    worker=("${python[@]}")
    # a signal that comes while Python is still starting waits until its handler is there
    env --block-signal=USR1,USR2 true 2>/dev/null && hold=(env --block-signal=USR1,USR2)  # coreutils 8.31
  else
    local own=${DIST_RESNET_PYTHON:-$SLURM_SUBMIT_DIR/.venv/bin/python}
    [ -x "$own" ] || [ -n "$DIST_RESNET_PYTHON" ] || own=$(command -v python)
    python=("$own") worker=("${DIST_RESNET_WORKER_PYTHON:-$own}")
  fi
  "${python[@]}" -c 'import submitit; from importlib.metadata import version; version("dist-resnet")' 2>/dev/null || {
    echo "${python[*]} has no dist_resnet: run \`make setup\` in $SLURM_SUBMIT_DIR (or \`pip install -e .\` in an environment of your own)," \
      "or set DIST_RESNET_PYTHON or DIST_RESNET_CONTAINER" >&2; exit 1; }
}

# Sets folder, where the job's task and logs are, and code, what its workers run. Both are chosen at the job's first start,
# and kept in a file for the others, which must not depend on what has become of the checkout.
stage() {
  if [ "${SLURM_RESTART_COUNT:-0}" = 0 ] || [ ! -e "$kept" ]; then
    local said
    said=$("${python[@]}" -m dist_resnet stage "$@") || exit 1
    [ -n "$said" ] || exit 0  # this run is complete
    mkdir -p runs/.jobs && echo "$said" >"$kept.partial" && mv "$kept.partial" "$kept" || exit 1
  fi
  { read -r folder; read -r code; } <"$kept"
  export PYTHONSAFEPATH=1 PYTHONPATH=$code${PYTHONPATH:+:$PYTHONPATH}
}

train() {
  find_python
  local folder code job=$SLURM_JOB_ID
  [ -z "$SLURM_ARRAY_JOB_ID" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
  export kept=runs/.jobs/$SLURM_CLUSTER_NAME-$job
  stage "$@"
  [ -n "$DIST_RESNET_CONTAINER" ] || hold=("${worker[0]}" -IS "$code/launch/jobs/hold_signals.py")
  echo "job $job, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST; logs in $folder"
  # shellcheck disable=SC2086
  exec bash "$code/launch/jobs/workers.sh" "$folder" "${python[@]}" -- $DIST_RESNET_SRUN_ARGS -- \
    "${hold[@]}" "${worker[@]}" -u -m submitit.core._submit "$folder"
}

prepare() {
  find_python
  exec srun --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "${python[@]}" -m dist_resnet prepare "$@"
}
