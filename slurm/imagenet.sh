#!/bin/bash
# ResNet-50 on ImageNet, on nodes of 8 GPUs: sbatch slurm/imagenet.sh [--optim.lr 1.0 ...]
# The betons are copied to each node's own disk first ($SLURM_TMPDIR or $TMPDIR; without room there, the shared ones are read).
#SBATCH --job-name=imagenet
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR2@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out

source "$SLURM_SUBMIT_DIR/slurm/common.sh" || { echo "submit from a checkout of dist_resnet: cd CHECKOUT && sbatch slurm/imagenet.sh ..." >&2; exit 1; }
train configs/imagenet_resnet50.yaml --data.stage true "$@"
