"""Which GPUs workers get, without one: by number, by UUID, as slices, and none of them twice."""

import threading

import pytest
import torch

from dist_resnet.runtime import distributed, gpus
from dist_resnet.runtime.gpus import Gpu, Seen
from launch.executors import local

LISTED = """\
GPU 0: NVIDIA H100 (UUID: GPU-1a2b3c4d-0000-0000-0000-000000000001)
  MIG 1g.10gb     Device  0: (UUID: MIG-5e6f0000-0000-0000-0000-00000000000a)
GPU 1: NVIDIA H100 (UUID: GPU-9f8e7d6c-0000-0000-0000-000000000002)
"""


@pytest.mark.parametrize(
    "allowed, expected",
    [
        (None, ["0", "1"]),
        ("1", ["1"]),
        ("1, 0", ["1", "0"]),
        ("GPU-9f8e7d6c-0000-0000-0000-000000000002", 1),
        ("GPU-9f8e,GPU-1a2b", 2),
        ("MIG-5e6f0000-0000-0000-0000-00000000000a", 1),
        ("0,7,1", ["0"]),
        ("GPU-beef,0", []),
        ("", []),
        ("-1", []),
    ],
)
def test_gpus_are_named_as_schedulers_and_containers_do(tmp_path, monkeypatch, allowed, expected):
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\ncat <<'END'\n{LISTED}END\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    if allowed is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    if isinstance(expected, int):
        expected = [word.strip() for word in allowed.split(",")]
    assert local.visible_gpus() == expected


def together(function, *values):
    """What `function(store, rank, value)` returns or raises in a thread of each rank."""
    store, answers = torch.distributed.HashStore(), {}

    def rank_of(rank, value):
        try:
            answers[rank] = function(store, rank, value)
        except (ValueError, RuntimeError) as error:
            answers[rank] = str(error)

    threads = [threading.Thread(target=rank_of, args=each) for each in enumerate(values)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answers[rank] for rank in range(len(values))]


def test_two_workers_on_one_gpu_are_told_so():
    def worker(store, rank, uuid):
        gpu = Gpu(rank, "node1", uuid, f"0000:{uuid}:00", "NVIDIA H100", 80, 80)
        gpus.require_one_each(distributed.gather(store, "gpu", rank, 3, gpu.place))

    assert together(worker, "1a", "2b", "3c") == [None] * 3
    answers = together(worker, "1a", "2b", "2b")
    assert len(set(answers)) == 1
    assert "ranks 1 and 2 have the same GPU, 0000:2b:00 on node1" in answers[0]


@pytest.mark.parametrize(
    "device, gpus_of, asked, expected",
    [
        ("auto", (0, 0), False, "cpu"),
        ("auto", (2, 2), True, "cuda"),
        ("auto", (2, 0), True, "rank 1 on n1 sees no GPU, and rank 0 on n0 does"),
        ("auto", (0, 4), False, "rank 0 on n0 sees no GPU, and rank 1 on n1 does"),
        ("auto", (0, 0), True, "rank 0 on n0 sees no GPU, and the job has asked for GPUs"),
        ("cuda", (0, 0), False, "sbatch --exclude=n0"),
        ("cpu", (2, 0), True, "cpu"),
    ],
)
def test_all_ranks_take_one_kind_of_device_or_name_the_node_that_cannot(
    device, gpus_of, asked, expected
):
    def worker(store, rank, number):
        mine = (f"n{rank}", number, asked)
        everyone = distributed.gather(store, "seen", rank, len(gpus_of), mine)
        return gpus.device_of_all(device, [Seen(*seen) for seen in everyone])

    first, second = together(worker, *gpus_of)
    assert first == second and expected in first


def test_a_gpu_in_use_is_named():
    def line(free):
        return gpus.busy(Gpu(3, "node1", "1a", "0000:1a:00", "NVIDIA H100", free << 30, 80 << 30))

    assert line(79) is None
    assert "rank 3's NVIDIA H100 (0000:1a:00 on node1) has 20.0 of 80.0 GiB free" in line(20)
