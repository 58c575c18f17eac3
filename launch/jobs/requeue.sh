#!/bin/bash
# requeue.sh CODE JOB: the end of a batch script. CODE is what `dist-resnet settle` ended with: 75 where the job should go on, 143 where
# its workers were told to terminate. SLURM knows by whom: a job that was cancelled is not requeued, one that has reached its time limit is.
# Nothing else in a job calls SLURM: workers, which may be in a container without its commands, only leave their wish in the job's folder.
code=$1 job=$2
case $code in 75 | 143) ;; *) exit "$code" ;; esac
command -v scontrol >/dev/null || { echo "job $job: no scontrol on $(hostname): not requeued; submit it again to go on" >&2; exit "$code"; }

for attempt in {1..60}; do  # a controller that restarts is silent for a while
  is=$(scontrol --oneliner show job "$job" 2>/dev/null | sed -n 's/.* JobState=\([^ ]*\) Reason=\([^ ]*\) .*/\1:\2/p')
  case $code:$is in
    75:RUNNING:* | *:COMPLETING:TimeLimit | *:TIMEOUT:*)
      scontrol requeue "$job" && exec sleep 60 ;;  # SLURM ends this script meanwhile
    75:) ;;  # SLURM does not answer
    75:*) echo "job $job was cancelled, or SLURM itself starts it again: not requeued"; exit 143 ;;
    *) exit "$code" ;;
  esac
  [ "$attempt" = 1 ] && echo "job $job: SLURM does not requeue it (${is:-no answer}); trying again" >&2
  sleep 5
done
exit "$code"
