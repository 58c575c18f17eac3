"""The loader's failures surface, and nothing leaks."""

import gc
import threading

import numpy as np
import psutil
import pytest
import torch

from dist_resnet.data.sampling import Augment
from dist_resnet.data.streaming_loader import StreamingLoader

CPU = torch.device("cpu")


def make(shapes_dir, **options):
    return StreamingLoader(shapes_dir / "train.beton", 50, CPU, threads=1, **options)


def test_batches_are_uint8_in_channels_last_and_the_last_may_be_smaller(shapes_dir):
    batches = [(i.clone(), l.clone()) for i, l in make(shapes_dir).batches(np.arange(120))]
    assert [len(i) for i, _ in batches] == [50, 50, 20]
    images, labels = batches[0]
    assert (
        images.dtype == torch.uint8
        and images.shape == (50, 3, 32, 32)
        and images.is_contiguous(memory_format=torch.channels_last)
    )
    assert labels.dtype == torch.int64 and labels.shape == (50,)


def test_torchs_thread_count_is_left_alone(shapes_dir):
    torch.set_num_threads(2)
    loader = make(shapes_dir)
    for _ in loader.batches(np.arange(100)):
        assert torch.get_num_threads() == 2


def test_an_id_that_the_beton_does_not_hold_is_refused(shapes_dir):
    with pytest.raises(IndexError, match="100000 asked of a beton of 600"):
        list(make(shapes_dir).batches(np.array([1, 100_000])))


def test_an_error_in_the_loaders_thread_reaches_the_caller(shapes_dir):
    loader = make(shapes_dir)
    batches = loader.batches(np.arange(600))
    next(batches)
    loader._loader.code = ([(lambda **_: 1 / 0, ())], ())  # the pipeline now fails in FFCV's thread
    with pytest.raises(RuntimeError, match="thread ended early: ZeroDivisionError"):
        for _ in batches:
            pass


def test_a_stalled_loader_is_given_up(shapes_dir):
    loader = make(shapes_dir, timeout_s=1)
    release = threading.Event()
    loader._loader.code = ([(lambda **_: release.wait(20), ())], ())
    try:
        batches = loader.batches(np.arange(600))
        threading.Timer(3, release.set).start()
        with pytest.raises(RuntimeError, match="delivered nothing for 1 s"):
            next(batches)
    finally:
        release.set()


@pytest.mark.slow
def test_many_epochs_and_early_exits_leak_neither_threads_nor_memory(shapes_dir):
    loader = make(shapes_dir, augment=Augment(0, 4, "random", (0, 0, 0)))
    process, threads = psutil.Process(), threading.active_count()

    def work(rounds):
        for i in range(rounds):
            for _ in loader.batches(np.arange(600), epoch=i):
                pass
            batches = loader.batches(np.arange(600), epoch=i)
            next(batches)
            batches.close()
        gc.collect()
        return process.memory_info().rss / 2**20

    before = work(30)
    after = work(200)
    assert threading.active_count() == threads
    assert after - before < 30, (
        f"{after - before:.0f} MiB more after 200 epochs"
    )  # a leak of FFCV's kind: 50 MiB an exit
