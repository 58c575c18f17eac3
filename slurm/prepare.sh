#!/bin/bash
# Betons as a job: sbatch slurm/prepare.sh cifar10 --val 0 [--source PATH ...]
#SBATCH --job-name=prepare
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out

source "$SLURM_SUBMIT_DIR/slurm/common.sh" || { echo "submit from a checkout of dist_resnet: cd CHECKOUT && sbatch slurm/prepare.sh ..." >&2; exit 1; }
prepare "$@"
