"""The examination, as a worker runs it: first what concerns it alone, then all ranks together.

What it finds is in DIRECTORY/rank_<n>.jsonl; the link's measures are in DIRECTORY/link.json."""

import contextlib
import socket
from pathlib import Path

from dist_resnet.config import Config
from dist_resnet.diagnosis import machine
from dist_resnet.diagnosis.findings import Report
from dist_resnet.runtime.distributed import World

TIMEOUT = 90.0  # seconds that a rank waits for the others
MEETING = "ranks meet"
OPEN_PORTS = (
    "let TCP through between the nodes, or choose the interface: "
    "export GLOO_SOCKET_IFNAME=... (GPUs: NCCL_SOCKET_IFNAME) in setup:"
)


def alone(config: Config, directory: Path, report: Report, local_rank: int, size: int) -> None:
    """size: workers of the node. The device's checks are every GPU's, and one worker's of a node
    without."""
    for check in machine.checks(config, directory, (report.rank, local_rank, size)):
        report.check(*check)
    import torch

    from dist_resnet.diagnosis import device
    from dist_resnet.runtime.distributed import choose_device

    with contextlib.suppress(ValueError):  # too few GPUs: told above
        gpus = torch.cuda.device_count()
        chosen = choose_device(config.train.device, local_rank, size, gpus)
        if chosen.type == "cuda" and gpus:
            torch.cuda.set_device(chosen)
        if gpus or local_rank == 0:
            for check in device.checks(chosen if gpus else torch.device("cpu"), config):
                report.check(*check)


def together(config: Config, directory: Path, report: Report) -> None:
    """Join the process group that the six variables name, and check it."""
    from dist_resnet.diagnosis import network
    from dist_resnet.runtime import distributed

    with contextlib.ExitStack() as stack:
        met: list[World] = []

        def meet() -> str:
            world = stack.enter_context(distributed.connect(config.train.device, TIMEOUT))
            hosts = len(set(world.gather(socket.gethostname())))
            met.append(world)
            return f"{world.size} workers on {hosts} host{'s' * (hosts > 1)}, {world.device.type}"

        report.check(MEETING, OPEN_PORTS, meet)
        for world in met:
            for check in network.checks(world, directory):
                report.check(*check)
            world.barrier()
