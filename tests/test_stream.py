"""The sample stream is a pure function of (seed, epoch, sample id)."""

import importlib.util
import math

import numpy as np
import pytest
import torch
from conftest import ROOT

from dist_resnet.data import resident_loader, sampling
from dist_resnet.data.augment import crop_flip
from dist_resnet.data.resident_loader import ResidentLoader
from dist_resnet.data.sampling import Augment
from dist_resnet.data.streaming_loader import StreamingLoader
from dist_resnet.models.normalise import Normalise

CPU = torch.device("cpu")
HOW = Augment(seed=3, pad=4, flip="random", fill=(10, 20, 30), cutout=8)


def test_known_hashes():
    """splitmix64 seeded with 0 gives these first outputs (the generator's published test
    vector)."""
    gamma = 0x9E3779B97F4A7C15
    states = np.array([(gamma * i) % 2**64 for i in (1, 2, 3)], np.uint64)
    assert [hex(v) for v in sampling.mix(states)] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


def test_torch_and_numpy_hash_alike():
    values = np.random.default_rng(0).integers(0, 2**63, 1000, dtype=np.int64)
    assert np.array_equal(
        sampling.mix_torch(torch.from_numpy(values)).numpy().view(np.uint64),
        sampling.mix(values.view(np.uint64)),
    )


def test_epoch_order_is_a_permutation_of_its_own_for_every_seed_and_epoch():
    orders = [sampling.epoch_order(seed, epoch, 1000) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(1000))
    matches = [(a == b).sum() for i, a in enumerate(orders) for b in orders[:i]]
    assert max(matches) < 10  # FFCV's and torch's samplers give seed 0, epoch 1 == seed 1, epoch 0


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_global_batches_hold_the_same_samples_for_every_world_size(world_size):
    order = sampling.epoch_order(7, 3, 1000)
    shards = [sampling.shard(order, 64, rank, world_size) for rank in range(world_size)]
    local = 64 // world_size
    assert {len(s) for s in shards} == {15 * local}
    for k in range(15):
        batch = np.concatenate([s[k * local : (k + 1) * local] for s in shards])
        assert np.array_equal(np.sort(batch), np.sort(order[64 * k : 64 * (k + 1)]))
    resumed = sampling.shard(order, 64, world_size - 1, world_size, start_batch=6)
    assert np.array_equal(resumed, shards[-1][6 * local :])


def draws(seed, epoch, n=20_000, pad=4, flip="random"):
    """dy, dx and flip of n samples, read off images whose pixels are their own coordinates."""
    grid = torch.stack(torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij"), -1)
    image = torch.cat([grid + 1, torch.zeros(32, 32, 1, dtype=torch.long)], -1).to(torch.uint8)
    out = sampling.augment(
        image.expand(n, 32, 32, 3), torch.arange(n), epoch, Augment(seed, pad, flip, (0, 0, 0))
    )
    flipped = out[:, 16, 16, 1] < out[:, 16, 15, 1]
    dy = out[:, 16, 16, 0].long() - 17
    dx = torch.where(flipped, out[:, 16, 15, 1].long() - 17, out[:, 16, 16, 1].long() - 17)
    return dy, dx, flipped


def test_crops_and_flips_are_uniform_and_independent():
    dy, dx, flipped = draws(0, 0)
    counts = torch.bincount((dy + 4) * 18 + (dx + 4) * 2 + flipped, minlength=162).double()
    chi2 = ((counts - 20_000 / 162) ** 2 / (20_000 / 162)).sum().item()
    assert len(counts) == 162 and 110 < chi2 < 222  # 161 degrees of freedom: 99.9 % are below 222


def test_epochs_and_seeds_draw_anew():
    a, b, c = draws(0, 0), draws(0, 1), draws(1, 0)
    for other in (b, c):
        assert (
            0.08 < (a[0] == other[0]).double().mean() < 0.14
            and 0.47 < (a[2] == other[2]).double().mean() < 0.53
        )


def test_alternating_flip_turns_round_every_epoch():
    flips = [draws(5, epoch, n=500, flip="alternating")[2] for epoch in range(4)]
    assert (
        torch.equal(flips[0], flips[2])
        and torch.equal(flips[1], flips[3])
        and torch.equal(flips[0], ~flips[1])
    )
    assert 0.4 < flips[0].double().mean() < 0.6
    assert not draws(5, 0, n=500, flip="none")[2].any()


def test_cutout_covers_the_square_around_a_uniform_pixel():
    """Against a loop over pixels: where the middle is, all of the square that the image holds is
    covered, and nothing else."""
    white = torch.full((400, 9, 12, 3), 255, dtype=torch.uint8)
    out = sampling.augment(white, torch.arange(400), 0, Augment(0, 0, "none", (0, 0, 0), cutout=4))
    covered = (out == 0).all(-1)
    middles = set()
    for hole in covered:
        rows, columns = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
        assert hole.sum() == len(rows) * len(columns) >= 4  # a rectangle, a quarter at least
        y, x = (
            last - 1 if first == 0 else first + 2
            for first, last in ((v[0].item(), v[-1].item()) for v in (rows, columns))
        )
        middles.add((y, x))
        expected = torch.zeros(9, 12, dtype=torch.bool)
        expected[max(0, y - 2) : y + 2, max(0, x - 2) : x + 2] = True
        assert torch.equal(hole, expected)
    assert len(middles) > 100 and all(0 <= y < 9 and 0 <= x < 12 for y, x in middles)


@pytest.fixture(scope="module")
def loaders(shapes_dir):
    """(raw loader, then cropping and flipping ones: streaming with 1 and 2 threads and page by
    page, resident)."""
    path = shapes_dir / "train.beton"
    return (
        StreamingLoader(path, 64, CPU, threads=1),
        *(StreamingLoader(path, 64, CPU, augment=HOW, threads=n) for n in (1, 2)),
        StreamingLoader(path, 64, CPU, augment=HOW, os_cache=False),
        ResidentLoader(path, 64, CPU, augment=HOW),
    )


def collect(loader, ids, epoch=0):
    images, labels = zip(*((i.clone(), l.clone()) for i, l in loader.batches(ids, epoch)))
    return torch.cat(images), torch.cat(labels)


def test_streamed_resident_and_torch_arithmetic_give_the_same_pixels(loaders):
    raw, one, *others = loaders
    for epoch in (0, 5):
        ids = sampling.epoch_order(3, epoch, raw.num_samples)
        images, labels = collect(one, ids, epoch)
        plain, plain_labels = collect(raw, ids)
        whole, _ = collect(raw, np.arange(raw.num_samples))
        expected = sampling.augment(
            whole.permute(0, 2, 3, 1), torch.from_numpy(ids), epoch, HOW
        )  # what a GPU computes
        assert (
            torch.equal(images, expected.permute(0, 3, 1, 2))
            and torch.equal(labels, plain_labels)
            and not torch.equal(images, plain)
        )
        for other in others:
            assert all(
                torch.equal(a, b) for a, b in zip((images, labels), collect(other, ids, epoch))
            )


ODD = pytest.mark.parametrize(
    "how",
    [
        Augment(1, 0, "random", (1, 2, 3)),
        Augment(1, 9, "none", (1, 2, 3)),
        Augment(1, 30, "random", (1, 2, 3)),
        Augment(1, 2, "alternating", (1, 2, 250)),
        Augment(1, 2, "random", (1, 2, 250), cutout=5),
        Augment(1, 0, "none", (1, 2, 250), cutout=30),
    ],
)


@ODD
def test_compiled_and_torch_arithmetic_agree_on_odd_sizes(how):
    images = torch.randint(
        0, 256, (40, 7, 13, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    ids = torch.randperm(40)[:25]
    out = torch.empty(25, 7, 13, 3, dtype=torch.uint8)
    crop_flip(
        images.numpy().reshape(-1),
        ids.numpy() * images[0].numel(),
        ids.numpy(),
        out.numpy(),
        how,
        3,
    )
    assert torch.equal(out, sampling.augment(images, ids, 3, how))


@ODD
def test_the_kernel_for_gpus_agrees_on_odd_sizes(how, monkeypatch):
    """Run by triton's interpreter, which needs no GPU: bytes, and normalised in every precision;
    also a batch of one."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    gpu = kernel_module()
    images = torch.randint(
        0, 256, (40, 7, 13, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    ids = torch.randperm(40)[:25]
    for epoch, chosen in ((0, ids), (3, ids), (3, ids[:1])):
        expected = sampling.augment(images, chosen, epoch, how)
        assert torch.equal(gpu.crop_flip(images, chosen, epoch, how), expected)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        normalise = Normalise.of([0.4, 0.5, 0.6], [0.2, 0.21, 0.22], dtype, CPU)
        found = gpu.crop_flip(images, ids[:1], 3, how, normalise.table())
        assert found.dtype == dtype
        assert torch.equal(found.permute(0, 3, 1, 2), normalise(expected.permute(0, 3, 1, 2)))


def test_the_kernel_for_gpus_counts_beyond_two_gigabytes(monkeypatch):
    """Image 700,001 of 3,072 bytes begins at byte 2,150,403,072: more than 2^31. The memory is
    only asked for, not touched, but for that image."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    images = torch.from_numpy(np.zeros((700_002, 32, 32, 3), np.uint8))
    images[-1] = torch.arange(3072).view(32, 32, 3) % 251
    ids, how = torch.tensor([700_001]), Augment(1, 0, "none", (1, 2, 3))
    assert torch.equal(kernel_module().crop_flip(images, ids, 0, how)[0], images[-1])


@pytest.mark.parametrize("dtype", ["u8", "bf16", "fp16", "fp32"])
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_kernel_for_gpus_compiles(capability, dtype):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = kernel_module().kernel
    constants = {"pad": 4, "flips": True, "cutout": 5, "block": 1024}
    constants["normalises"] = dtype != "u8"
    pointers = {"images": "*u8", "ids": "*i64", "out": f"*{dtype}", "table": f"*{dtype}"}
    types = {
        name: pointers.get(name, "i64" if name.endswith("key") else "i32")
        for name in kernel.arg_names
    }
    types |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, types, constexprs=constants)
    assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]


def kernel_module():
    """A copy of data/triton_augment.py of its own: whether triton interprets is settled when it is
    imported."""
    pytest.importorskip("triton")
    spec = importlib.util.spec_from_file_location(
        "a_copy_of_gpu", ROOT / "dist_resnet/data/triton_augment.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_resident_batch_is_the_callers_and_ids_are_checked(loaders):
    resident = loaders[-1]
    first, second = resident.batches(np.arange(128), 0)
    assert first[0].is_contiguous(memory_format=torch.channels_last) and not torch.equal(
        first[0], second[0]
    )
    assert [len(labels) for _, labels in resident.batches(np.arange(100))] == [
        64,
        36,
    ] and not list(resident.batches(np.arange(0)))
    with pytest.raises(IndexError, match="600 samples"):
        next(resident.batches(np.array([1, 100_000])))


def test_pixels_do_not_depend_on_world_size_or_resume(loaders):
    raw, one, *_ = loaders
    order = sampling.epoch_order(3, 2, raw.num_samples)
    whole, whole_labels = collect(one, sampling.shard(order, 60, 0, 1), epoch=2)
    for world_size in (2, 4):
        images = torch.empty_like(whole)
        labels = torch.empty_like(whole_labels)
        for rank in range(world_size):
            images[rank::world_size], labels[rank::world_size] = collect(
                one, sampling.shard(order, 60, rank, world_size), epoch=2
            )
        assert torch.equal(images, whole) and torch.equal(labels, whole_labels)
    resumed, _ = collect(one, sampling.shard(order, 60, 0, 1, start_batch=4), epoch=2)
    assert torch.equal(resumed, whole[240:])


@pytest.mark.parametrize(
    "membership, file, limit",
    [
        ("0::/slurm/job_7", "slurm/memory.max", 8e9),
        ("0::/slurm/job_7", "slurm/job_7/memory.max", 8e9),
        ("0::/", "other/memory.max", math.inf),
        ("4:memory:/slurm/job_7\n1:cpu:/x", "memory/slurm/memory.limit_in_bytes", 8e9),
    ],
)
def test_residency_heeds_the_limits_of_control_groups(tmp_path, membership, file, limit):
    (tmp_path / "self").write_text(membership + "\n")
    (tmp_path / "cgroup" / file).parent.mkdir(parents=True)
    (tmp_path / "cgroup" / file).write_text("8000000000\n")
    (tmp_path / "cgroup/memory.max").write_text("max\n")
    assert resident_loader.memory_limit(tmp_path / "cgroup", tmp_path / "self") == limit


def test_an_epochs_keys_are_hashed_once(monkeypatch, shapes_dir, shapes_manifest):
    """For every batch it would take the host as long as a small network's step takes a GPU."""
    hashed, key = [], sampling.key
    monkeypatch.setattr(sampling, "key", lambda *words: (hashed.append(words), key(*words))[1])
    path, how = (
        shapes_dir / shapes_manifest.splits["train"].file,
        Augment(7, 4, "random", (1, 2, 3)),
    )
    loader = ResidentLoader(path, 50, CPU, augment=how, threads=1)
    for epoch in (3, 4):
        assert len(list(loader.batches(np.arange(600), epoch))) == 12
    assert sorted(hashed) == [
        (7, e, p) for e in (3, 4) for p in sorted((sampling.CROP, sampling.FLIP, sampling.HOLE))
    ]
