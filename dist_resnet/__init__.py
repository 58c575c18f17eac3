"""What runs inside one worker process: CIFAR and ImageNet ResNets, trained on FFCV betons under
DDP."""

__version__ = "0.1.0"
