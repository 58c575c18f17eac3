"""Which GPUs workers get, without one: by number, by UUID, as slices, and none of them twice."""

import threading

import pytest
import torch

from dist_resnet.runtime import gpus
from dist_resnet.runtime.gpus import Gpu
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


def test_two_workers_on_one_gpu_are_told_so():
    def gpu(rank, uuid):
        return Gpu(rank, "node1", uuid, f"0000:{uuid}:00", "NVIDIA H100", 80, 80)

    def told(uuids):
        store, answers = torch.distributed.HashStore(), {}

        def worker(rank):
            try:
                gpus.require_one_each(store, gpu(rank, uuids[rank]), len(uuids))
            except ValueError as error:
                answers[rank] = str(error)

        threads = [threading.Thread(target=worker, args=(rank,)) for rank in range(len(uuids))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers

    assert told(["1a", "2b", "3c"]) == {}
    answers = told(["1a", "2b", "2b"])
    assert len(answers) == 3 and set(answers) == {0, 1, 2}
    assert "ranks 1 and 2 have the same GPU, 0000:2b:00 on node1" in answers[0]


def test_a_gpu_in_use_is_named():
    def line(free):
        return gpus.busy(Gpu(3, "node1", "1a", "0000:1a:00", "NVIDIA H100", free << 30, 80 << 30))

    assert line(79) is None
    assert "rank 3's NVIDIA H100 (0000:1a:00 on node1) has 20.0 of 80.0 GiB free" in line(20)
