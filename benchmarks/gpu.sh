#!/usr/bin/env bash
# The benchmarks that concern a GPU, speedruns, and records of ResNet-20 and 110, on a machine with one, without a network. Planned for ten minutes on one H200; not run on one yet.
#   benchmarks/gpu.sh DATA OUT
# DATA: betons of CIFAR-10 with all 50,000 training images (dist-resnet prepare cifar10 --val 0). OUT: takes tables, JSON and runs.
# Python is $DIST_RESNET_PYTHON, or that of .venv.
set -uo pipefail
[ $# = 2 ] || { sed -n 2,5p "$0" >&2; exit 2; }
mkdir -p "$2"
data=$(realpath "$1") out=$(realpath "$2")
cd "$(dirname "$0")/.." || exit 1
python=${DIST_RESNET_PYTHON:-.venv/bin/python}
"$python" -c 'import torch; torch.cuda.get_device_name()' || exit 1
graph=(--train.cuda_graph true --train.all_reduce flat)
failed=0

table() {  # NAME MODULE ARGUMENTS
  local name=$1 module=$2; shift 2
  echo "== $name: python -m benchmarks.$module $*"
  timeout 150 "$python" -m "benchmarks.$module" --data "$data" --json "$out/$name.json" "$@" > "$out/$name.txt" 2>&1 || failed=1
  tail -n 20 "$out/$name.txt"
}

record() {  # NAME ARGUMENTS
  local name=$1; shift
  echo "== $name: dist-resnet $*"
  timeout 300 "$python" -m launch "$@" --run-dir "$out/$name" --data.dir "$data" > "$out/$name.txt" 2>&1 || failed=1
  tail -n 20 "$out/$name.txt"
}

record speedrun repeat configs/speedrun.yaml --runs 5
table step step --models resnet20 resnet110 --batches 128 --rounds 2
table step_graph step --models resnet20 resnet110 --batches 128 1024 --rounds 2 "${graph[@]}"
table step_cast step --models resnet110 --batches 128 --rounds 2 "${graph[@]}" --train.cast together
table step_compiled step --models resnet20 --batches 128 --rounds 2 --train.compile default
large=(--batch.per_worker 1024 --scaling.milestones samples --schedule.warmup linear --schedule.warmup_length "5 epochs" --train.evaluate_every "20 epochs"
       --train.checkpoint_every "80 epochs" --tracking.wandb disabled)
record resnet20 train configs/resnet20.yaml --workers-per-node 1 "${large[@]}" "${graph[@]}"
record resnet110 train configs/resnet110.yaml --workers-per-node 1 "${large[@]}" "${graph[@]}"
table loader loader --rounds 2
table start start --rounds 1
table memory memory --rounds 1
table scaling scaling --rounds 1
exit $failed
