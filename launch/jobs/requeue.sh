#!/bin/bash
# requeue.sh CODE JOB: the end of a batch script. CODE is what `dist-resnet settle` ended with: 75 where the job should go on, 143 where
# its workers were told to terminate. SLURM knows by whom: a job that was cancelled is not requeued, one that has reached its time limit is,
# and one that is so near it that SLURM's announcement came as SIGTERM (--signal=TERM@60). CODE 144: SLURM has cancelled their step; where it
# has not cancelled the job, nobody wished that.
# Workers, which may be in a container without SLURM's commands, only leave their wish in the job's folder.
code=$1 job=$2 cancelled=
[ "$code" != 144 ] || { code=143 cancelled=1; }
case $code in 75 | 143) ;; *) exit "$code" ;; esac
again="submit it again to go on (several at once run one after another with sbatch --dependency=singleton)"
command -v scontrol >/dev/null || { echo "job $job: no scontrol on $(hostname): not requeued; $again" >&2; exit "$code"; }

field() { sed -n "s/.* $1=\([^ ]*\) .*/\1/p" <<<"$shown"; }

near_its_limit() {  # in its last five minutes, or the last fifth of its time
  local start end now
  start=$(date -d "$(field StartTime)" +%s 2>/dev/null) && end=$(date -d "$(field EndTime)" +%s 2>/dev/null) || return 1
  now=$(date +%s)
  [ $((end - now)) -le 300 ] || [ $((5 * (end - now))) -le $((end - start)) ]
}

requeue() {
  [ "$(field Requeue)" = 1 ] || {
    echo "job $job: SLURM may not requeue it (--no-requeue, or JobRequeue=0 in slurm.conf): $again" >&2; exit "$code"; }
  local said
  said=$(scontrol requeue "$job" 2>&1) && exec sleep 60  # SLURM ends this script meanwhile
  case $said in *disabled* | *denied* | *ermission*)
    echo "job $job: SLURM refuses to requeue it ($said): $again" >&2; exit "$code" ;;
  esac
}

for attempt in {1..60}; do  # a controller that restarts is silent for a while
  shown=$(scontrol --oneliner show job "$job" 2>/dev/null)
  is=$(field JobState):$(field Reason)
  [ "$is" != : ] || is="no answer"
  case $code:$is in
    75:RUNNING:* | *:COMPLETING:TimeLimit | *:TIMEOUT:*) requeue ;;
    143:RUNNING:*)
      if [ -n "$cancelled" ] && ! near_its_limit; then echo "job $job: SLURM has cancelled its step"; requeue; fi
      near_its_limit || { echo "job $job: its workers were told to terminate, not near its time limit: not requeued; $again"; exit 143; }
      echo "job $job: its workers were told to terminate near its time limit: it goes on"
      requeue ;;
    *:'no answer') ;;  # SLURM does not answer
    75:*) echo "job $job was cancelled, or SLURM itself starts it again: not requeued"; exit 143 ;;
    *) exit "$code" ;;
  esac
  [ "$attempt" = 1 ] && echo "job $job: SLURM does not requeue it ($is); trying again" >&2
  sleep 5
done
exit "$code"
