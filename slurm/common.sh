# The body that all batch scripts share: `train CONFIG [--section.key value ...]` on the nodes of this job.
# The environment is .venv of the submit directory; another one: DIST_RESNET_PYTHON=/path/to/python sbatch ...
#
# submitit's runner in the tasks answers SIGUSR2 (preemption, or the time limit is near): the training saves, the job is
# requeued, this script runs again from its top and goes on.

train() {
  trap ':' USR1 USR2  # sent to this shell too by `scancel --full`; it must outlive them
  cd "$SLURM_SUBMIT_DIR"
  local python=${DIST_RESNET_PYTHON:-$SLURM_SUBMIT_DIR/.venv/bin/python}
  [ -x "$python" ] || { echo "no $python: run \`make setup\` in $SLURM_SUBMIT_DIR, or set DIST_RESNET_PYTHON" >&2; exit 1; }
  export SUBMITIT_EXECUTOR=slurm SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
  local folder
  folder=$("$python" -m launch stage "$@") || exit 1
  echo "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST; logs in $folder"
  # a signal that comes while Python is still starting waits until its handler is there
  srun --unbuffered --kill-on-bad-exit=1 --output="$folder/%j_%t_log.out" --error="$folder/%j_%t_log.out" \
    --open-mode=append env --block-signal=USR2 "$python" -u -m submitit.core._submit "$folder"
  "$python" -m launch settle "$folder"  # says who failed and why
  local code=$?
  if [ $code = 75 ]; then  # a worker was killed, by the node's fault perhaps: once more
    scontrol requeue "$SLURM_JOB_ID" && sleep 60
  fi
  exit $code
}
