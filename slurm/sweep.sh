#!/bin/bash
# The runs of a sweep, as a job array, without a server: sbatch slurm/sweep.sh configs/sweeps/FILE.yaml [--section.key value ...]
# One task of the array per run, on one node; those beyond the last run end at once. The same line again trains what has not finished.
# sbatch --array=0-499%32 slurm/sweep.sh ...: for more runs, more at once.
#SBATCH --job-name=sweep
#SBATCH --array=0-99%8
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=USR2@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%A-%a.out

source "$SLURM_SUBMIT_DIR/slurm/common.sh" || { echo "submit from a checkout of dist_resnet: cd CHECKOUT && sbatch slurm/sweep.sh ..." >&2; exit 1; }
train --sweep-run "$SLURM_ARRAY_TASK_ID" "$@"
