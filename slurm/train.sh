#!/bin/bash
# Any configuration: sbatch slurm/train.sh configs/resnet56.yaml [--optim.lr 0.2 ...]
# Resources are asked for here or on sbatch's line: sbatch --nodes=8 --gpus-per-node=4 --ntasks-per-node=4 slurm/train.sh ...
#SBATCH --job-name=train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=USR2@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out

source "$SLURM_SUBMIT_DIR/slurm/common.sh" || { echo "submit from a checkout of dist_resnet: cd CHECKOUT && sbatch slurm/train.sh ..." >&2; exit 1; }
train "$@"
