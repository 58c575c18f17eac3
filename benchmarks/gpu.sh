#!/usr/bin/env bash
# The benchmarks that concern a GPU, speedruns, and records of ResNet-20 and 110, on a machine with one, without a network. Planned for a quarter of an hour on one H200; not run on one yet.
#   benchmarks/gpu.sh DATA OUT
# DATA: betons of CIFAR-10 with all 50,000 training images (dist-resnet prepare cifar10 --val 0). OUT: takes tables, JSON and runs.
# Python is $DIST_RESNET_PYTHON, or that of .venv. DRY_RUN=1: every command for a few steps of small networks, in one process, also without a GPU.
# report.md and report.json in OUT hold everything, to be sent to us.
set -uo pipefail
[ $# = 2 ] || { sed -n 2,6p "$0" >&2; exit 2; }
mkdir -p "$2"
data=$(realpath "$1") out=$(realpath "$2")
cd "$(dirname "$0")/.." || exit 1
python=${DIST_RESNET_PYTHON:-.venv/bin/python}
failed=0
if [ -n "${DRY_RUN:-}" ]; then
  small=resnet8 large=(resnet8) two=(resnet8) deep=() rounds=1 runs=1 few=(--steps 1 --workers 1) one=(--batches 4) both=(--batches 4)
  short=(--train.max_steps 2 --batch.global 8 --batch.per_worker null) whole=(--model.name resnet8)
  start=(--warm --residencies device --workers-per-node 1) memory=(--batch 4) scaling=(--steps 1 --batch 4 --repeats 1 --workers 1)
  where=(--cluster debug) plan=$(mktemp)
else
  "$python" -c 'import torch; torch.cuda.get_device_name()' || exit 1
  small=resnet20 large=(resnet110) two=(resnet20 resnet110) deep=(resnet1202) rounds=2 runs=5 few=() one=(--batches 128)
  both=(--batches 128 1024) short=() whole=() start=() memory=() scaling=() where=(--workers-per-node 1)
fi
steps=(--rounds "$rounds" "${few[@]}")

run() {  # SECONDS NAME MODULE ARGUMENTS
  local limit=$1 name=$2 module=$3; shift 3
  echo "== $name: python -m $module $*"
  if [ -n "${plan:-}" ]; then printf '%q ' "$name" "${module/%launch/launch.__main__}" "$@" >> "$plan"; echo >> "$plan"; return; fi
  timeout -k 10 "$limit" "$python" -m "$module" "$@" > "$out/$name.txt" 2>&1 || failed=1
  tail -n 20 "$out/$name.txt"
}
table() { local name=$1 module=$2; shift 2; run 400 "$name" "benchmarks.$module" --data "$data" --json "$out/$name.json" "$@"; }  # NAME MODULE ARGUMENTS
record() { local name=$1; shift; run 300 "$name" launch "$@" --run-dir "$out/$name" --data.dir "$data"; }  # NAME ARGUMENTS

record speedrun repeat configs/speedrun.yaml --runs "$runs" --workers-per-node 1 "${short[@]}"
table step step --models "${two[@]}" "${both[@]}" "${steps[@]}" --ways default "no graph" "no graph, cast each"
table step_compiled step --models "$small" "${one[@]}" "${steps[@]}" --ways compiled
recipe=("${where[@]}" --batch.per_worker 1024 --scaling.milestones samples --schedule.warmup linear --schedule.warmup_length "5 epochs"
        --train.evaluate_every "20 epochs" --train.checkpoint_every "80 epochs" --tracking.wandb disabled)
record resnet20 train configs/resnet20.yaml "${recipe[@]}" "${short[@]}" "${whole[@]}"
record resnet110 train configs/resnet110.yaml "${recipe[@]}" "${short[@]}" "${whole[@]}"
table loader loader --rounds "$rounds"
table start start --rounds 1 "${start[@]}"
table memory memory --models "${large[@]}" "${deep[@]}" --rounds 1 "${memory[@]}"
table scaling scaling --rounds 1 "${scaling[@]}"
if [ -n "${plan:-}" ]; then "$python" -m benchmarks.rehearse "$out" < "$plan" || failed=1; rm "$plan"; fi
"$python" -m benchmarks.report "$out" || failed=1
exit $failed
