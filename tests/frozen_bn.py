"""Twenty steps with BN frozen, so that no sample's gradient depends on which others its worker
holds."""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from submitit import JobEnvironment

from launch.executors.task import WorkerTask

STEPS = 20


@dataclass(frozen=True)
class FrozenBN(WorkerTask):
    """Rank 0 writes RUN_DIR/frozen.json: the global loss of every step, and the checksums of its
    augmented images, sorted."""

    def __call__(self) -> str:
        self.join(JobEnvironment())
        from dist_resnet import worker
        from dist_resnet.config import config_file
        from dist_resnet.data import loader
        from dist_resnet.runtime import distributed
        from dist_resnet.runtime.signals import StopSignal
        from dist_resnet.training import loop
        from dist_resnet.training.progress import Progress

        run_dir = Path(self.run_dir)
        config = config_file.load(run_dir / "config.yaml")
        with (
            distributed.connect("cpu", 120) as world,
            loader.betons_of(config, run_dir, world) as (data_dir, betons),
        ):
            run = worker.build(config, run_dir, data_dir, betons, world, StopSignal(), Progress())
            run.model.eval()
            run.model.train = lambda mode=True: run.model
            seen: list[torch.Tensor] = []
            batches = run.train_data.batches

            def recorded(ids, epoch):
                for images, labels in batches(ids, epoch):
                    seen.append(
                        torch.tensor(
                            [zlib.crc32(image.contiguous().numpy().tobytes()) for image in images]
                        )
                    )
                    yield images, labels

            run.train_data.batches = recorded
            losses, images = [], []
            while run.progress.step < STEPS:
                for step in loop.train_epoch(run):
                    losses.append(run.sums.reduce(world).loss)
                    images.append(sorted(torch.cat(world.gather(seen[-1])).tolist()))
                    if step == STEPS:
                        break
            if world.rank == 0:
                (run_dir / "frozen.json").write_text(
                    json.dumps({"losses": losses, "images": images, "world_size": world.size})
                )
            world.barrier()
        return "completed"
