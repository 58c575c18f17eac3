#!/bin/bash
# ResNet-110 on CIFAR-10: sbatch slurm/resnet110.sh [--optim.lr 0.2 ...]
# Resources are asked for here or on sbatch's line (sbatch --nodes=8 slurm/resnet110.sh); the recipe is in configs/.
#SBATCH --job-name=resnet110
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --gpus-per-node=2
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=USR2@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out

source "$SLURM_SUBMIT_DIR/slurm/common.sh" || { echo "submit from a checkout of dist_resnet: cd CHECKOUT && sbatch slurm/resnet110.sh ..." >&2; exit 1; }
train configs/resnet110.yaml "$@"
