# What all batch scripts share. Each calls one of: train CONFIG [--section.key value ...], prepare DATASET [options].
# Python is that of $DIST_RESNET_PYTHON; else of .venv in the submit directory; else `python` on the PATH, which sbatch takes over
# from the shell that calls it (conda activate, module load).
#
# submitit's runner in the tasks answers SIGUSR2 (preemption, or the time limit is near): the training saves, the job is
# requeued, this script runs again from its top and goes on.

find_python() {
  trap ':' USR1 USR2  # sent to this shell too by `scancel --full`; it must outlive them
  cd "$SLURM_SUBMIT_DIR" || exit 1
  python=${DIST_RESNET_PYTHON:-$SLURM_SUBMIT_DIR/.venv/bin/python}
  [ -x "$python" ] || [ -n "$DIST_RESNET_PYTHON" ] || python=$(command -v python)
  "$python" -c 'import submitit; from importlib.metadata import version; version("dist-resnet")' 2>/dev/null || {
    echo "${python:-python} has no dist_resnet: run \`make setup\` in $SLURM_SUBMIT_DIR (or \`pip install -e .\` in an environment of your own)," \
      "or set DIST_RESNET_PYTHON" >&2; exit 1; }
}

train() {
  find_python
  export SUBMITIT_EXECUTOR=slurm SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
  local folder job=$SLURM_JOB_ID
  [ -z "$SLURM_ARRAY_JOB_ID" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
  folder=$("$python" -m launch stage "$@") || exit 1
  [ -n "$folder" ] || exit 0  # this run is complete
  if [ -n "$SLURM_NTASKS_PER_NODE" ]; then  # SLURM_NTASKS speaks of the first start, which may have had more nodes
    export SLURM_NTASKS=$((SLURM_JOB_NUM_NODES * ${SLURM_NTASKS_PER_NODE%%[!0-9]*})) && export SLURM_NPROCS=$SLURM_NTASKS
  fi
  echo "job $job, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST; logs in $folder"
  # a signal that comes while Python is still starting waits until its handler is there
  # DIST_RESNET_SRUN_ARGS: what a site wants of srun besides, such as --mpi=none
  # shellcheck disable=SC2086
  srun $DIST_RESNET_SRUN_ARGS --unbuffered --kill-on-bad-exit=1 --output="$folder/${job}_%t_log.out" --error="$folder/${job}_%t_log.out" \
    --open-mode=append "$python" -IS launch/executors/hold_sigusr2.py "$python" -u -m submitit.core._submit "$folder"
  "$python" -m launch settle "$folder"  # says who failed and why
  local code=$?
  if [ $code = 75 ]; then  # a worker was killed, by the node's fault perhaps: once more
    scontrol requeue "$job" && sleep 60
  fi
  exit $code
}

prepare() {
  find_python
  exec srun --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "$python" -m launch prepare "$@"
}
