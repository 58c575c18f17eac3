#!/bin/bash
# ResNet-20 on CIFAR-10, on one node: sbatch slurm/resnet20.sh [--optim.lr 0.2 ...]
#SBATCH --job-name=resnet20
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=02:00:00
#SBATCH --signal=USR2@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out

source "$SLURM_SUBMIT_DIR/slurm/common.sh" || { echo "submit from a checkout of dist_resnet: cd CHECKOUT && sbatch slurm/resnet20.sh ..." >&2; exit 1; }
train configs/resnet20.yaml "$@"
