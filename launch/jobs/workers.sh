#!/bin/bash
# workers.sh FOLDER SETTLE ... -- SRUN'S ARGUMENTS ... -- WORKER ...: the end of every batch script, in the batch shell's place (`exec`).
# Starts the workers by srun, has `SETTLE -m dist_resnet settle FOLDER` say how they ended, and requeues the job where it should go on.
# Signals that reach this shell alone (--signal=B:USR2@60) go on to the workers, whose answer this waits for.
here=$(dirname "$0") folder=$1 settle=() options=(--unbuffered --kill-on-bad-exit=1 --open-mode=append) job=$SLURM_JOB_ID
[ -z "$SLURM_ARRAY_JOB_ID" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
shift
options+=(--output="$folder/${job}_%t_log.out" --error="$folder/${job}_%t_log.out")
[ -z "$SLURM_CPUS_PER_TASK" ] || options+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")  # srun does not inherit it from sbatch
# what a job inherits that was queued from inside of another; SLURM 24 would compare the first with the line above
unset "${!SRUN_@}" "${!SLURM_STEP@}" "${!SLURM_SRUN@}" "${!SLURM_CPU_BIND@}" "${!SLURM_MEM_BIND@}" "${!SLURM_PTY@}" SLURM_DISTRIBUTION
while [ "$1" != -- ]; do settle+=("$1"); shift; done; shift
while [ "$1" != -- ]; do options+=("$1"); shift; done; shift

# SLURM_NTASKS speaks of the first start, which may have had more nodes; --ntasks on sbatch's line may ask for fewer than all nodes take
each=${SLURM_NTASKS_PER_NODE%%[!0-9]*} asked=${SLURM_NTASKS:-$SLURM_JOB_NUM_NODES}
if [ -n "$each" ] && [ $((asked % each)) = 0 ]; then asked=$((SLURM_JOB_NUM_NODES * each)); fi
export SLURM_NTASKS=$asked SLURM_NPROCS=$asked SUBMITIT_EXECUTOR=slurm

told=()
for name in USR1 USR2 TERM; do
  # shellcheck disable=SC2064
  trap "scancel --signal=$name $job 2>/dev/null & told+=(\$!)" $name  # of an array only this task, whose SLURM_JOB_ID may be that of all
done
touch -c "$folder/${job}_submitted.pkl"  # settle: a log that is older is an earlier start's
srun "${options[@]}" "$@" &
step=$!
while wait "$step"; [ $? -gt 128 ] && kill -0 "$step" 2>/dev/null; do :; done
trap : USR1 USR2 TERM
[ ${#told[@]} = 0 ] || kill "${told[@]}" 2>/dev/null  # scancel tries again, and would reach the job's next start

"${settle[@]}" -m dist_resnet settle "$folder"  # says who failed and why
ended=$?
[ $ended != 0 ] || rm -f "$kept"  # of slurm/common.sh
exec bash "$here/requeue.sh" $ended "$job"
