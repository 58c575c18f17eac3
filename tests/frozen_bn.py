"""Twenty steps with BN frozen, so that no sample's gradient depends on which others its worker
holds."""

import zlib
from pathlib import Path

import torch

from dist_resnet import worker
from dist_resnet.config import config_file
from dist_resnet.data import loader
from dist_resnet.runtime import distributed
from dist_resnet.runtime.signals import StopSignal
from dist_resnet.training import loop
from dist_resnet.training.progress import Progress

STEPS = 20


def frozen_bn(run_dir: Path) -> tuple[list[float], list[list[int]]]:
    """(global loss, sorted checksums of the augmented images) of every step; in a worker."""
    config = config_file.load(run_dir / "config.yaml")
    with (
        distributed.connect("cpu", 120) as world,
        loader.betons_of(config, run_dir, world) as (data_dir, betons),
    ):
        config, _ = worker.settle(config, betons, world)
        run = worker.build(config, run_dir, data_dir, betons, world, StopSignal(), Progress())
        run.model.eval()
        run.model.train = lambda mode=True: run.model
        seen: list[torch.Tensor] = []
        batches = run.train_data.batches

        def recorded(ids, epoch):
            for images, labels in batches(ids, epoch):
                sums = [zlib.crc32(image.contiguous().numpy().tobytes()) for image in images]
                seen.append(torch.tensor(sums))
                yield images, labels

        run.train_data.batches = recorded
        losses, images = [], []
        while run.progress.step < STEPS:
            for step in loop.train_epoch(run):
                losses.append(run.sums.reduce(world).loss)
                images.append(sorted(torch.cat(world.gather(seen[-1])).tolist()))
                if step == STEPS:
                    break
        world.barrier()
    return losses, images
