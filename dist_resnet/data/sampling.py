"""The sample stream: which sample, which crop, flip and hole, as a pure function of (seed, epoch,
sample id).

There is no generator whose state would have to be kept: every draw is a hash of a counter (but for
mixup's weight, whose generator is made anew for every step). Global
batch k of an epoch therefore holds the same images with the same crops and flips for any number of
workers and loader threads, streamed or resident, started afresh or resumed in mid-epoch. The hash
is the finaliser of splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
generators"). The arithmetic stands here twice, in numpy (uint64) and in torch (int64, whose
products wrap the same way); data/augment.py compiles it for FFCV."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

MIX_1, MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
ORDER, CROP, FLIP, RESIZED_CROP, PAGES, HOLE, MIX, DEPTH = range(1, 9)  # what a draw is for
FLIP_BIT, DY_SHIFT, DX_SHIFT, FIELD = 0, 8, 32, 0xFFFFFF  # where a sample's hash holds them


def mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser over uint64, which wraps."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(MIX_1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(MIX_2)
    return x ^ (x >> np.uint64(31))


def key(seed: int, epoch: int, purpose: int) -> int:
    """One uint64 per (seed, epoch, purpose); neighbouring seeds and epochs share nothing."""
    value = np.array([seed], np.uint64)
    for word in (epoch, purpose):
        value = mix(mix(value) + np.uint64(word) + np.uint64(0x9E3779B97F4A7C15))
    return int(value[0])


def uniform(seed: int, step: int, purpose: int, count: int) -> np.ndarray:
    """Draws of a step, the same on every worker: float64 (count,), uniform in [0, 1)."""
    draws = mix(np.uint64(key(seed, step, purpose)) ^ mix(np.arange(count, dtype=np.uint64)))
    return (draws >> np.uint64(11)) * 2.0**-53


def flip_key(seed: int, epoch: int, flip: str) -> tuple[int, int]:
    """(key of the flip's draw, bit to add to it) for flip 'none', 'random' or 'alternating'.

    Alternating flip (Jordan 2024, airbench, section 3.6): drawn once, in epoch 0, then turned round
    every epoch."""
    return key(
        seed, 0 if flip == "alternating" else epoch, FLIP
    ), epoch % 2 if flip == "alternating" else 0


@dataclass(frozen=True)
class Augment:
    """Pad by `pad` pixels of the colour `fill` (red, green, blue in 0..255), crop back at random,
    flip some, and fill a square of `cutout` pixels a side, whose middle is any pixel (DeVries and
    Taylor 2017, section 3.2)."""

    seed: int
    pad: int
    flip: str  # none, random or alternating
    fill: tuple[int, int, int]
    cutout: int = 0

    def keys(self, epoch: int) -> np.ndarray:
        """What a sample's draws of this epoch are hashed with: uint64 (crop, flip, bit to add to
        the flip, hole)."""
        return _keys(self, epoch)


@lru_cache(maxsize=4)
def _keys(how: Augment, epoch: int) -> np.ndarray:
    """Asked for with every batch. Hashing them anew would take as long as a small network's step on
    a GPU."""
    crop, hole = (key(how.seed, epoch, purpose) for purpose in (CROP, HOLE))
    return np.array([crop, *flip_key(how.seed, epoch, how.flip), hole], np.uint64)


def epoch_order(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """The epoch's permutation of the sample ids: int64, shape (num_samples,)."""
    draws = mix(np.uint64(key(seed, epoch, ORDER)) ^ mix(np.arange(num_samples, dtype=np.uint64)))
    return np.argsort(draws, kind="stable")


def quasi_random_order(seed: int, epoch: int, pages: np.ndarray, window: int) -> np.ndarray:
    """A permutation that reads a file page after page: the pages in a random order, and the samples
    of every `window` pages in a random order among themselves. For files that are larger than the
    memory.

    pages: (samples,), the page of each sample. Returns int64 (samples,). With one window of all
    pages it is `epoch_order`."""
    names, page_of = np.unique(pages, return_inverse=True)
    turn = np.argsort(
        np.argsort(
            mix(np.uint64(key(seed, epoch, PAGES)) ^ mix(names.astype(np.uint64))), kind="stable"
        )
    )
    draws = mix(np.uint64(key(seed, epoch, ORDER)) ^ mix(np.arange(len(pages), dtype=np.uint64)))
    return np.lexsort((draws, turn[page_of] // window))


def shard(
    order: np.ndarray,
    global_batch: int,
    rank: int,
    world_size: int,
    start_batch: int = 0,
    parts: int = 1,
) -> np.ndarray:
    """The ids that one rank sees from global batch `start_batch` on; an incomplete last batch is
    left out.

    Batch k of all ranks together is order[k * global_batch : (k + 1) * global_batch], for any world
    size. A rank runs `parts` virtual workers: number v of V has every V-th sample of a batch from
    its v-th on, and a rank's batch holds its virtual workers' samples one after the other."""
    whole = len(order) // global_batch * global_batch
    workers = parts * world_size
    batches = order[start_batch * global_batch : whole].reshape(
        -1, global_batch // workers, workers
    )
    own = batches[:, :, rank * parts : (rank + 1) * parts]
    return own.swapaxes(1, 2).reshape(-1)


def mix_torch(x: torch.Tensor) -> torch.Tensor:
    """The same bits as `mix`, in int64, on any device. An arithmetic shift is made a logical one by
    its mask."""

    def shifted(v: torch.Tensor, bits: int) -> torch.Tensor:
        return (v >> bits) & ((1 << (64 - bits)) - 1)

    x = (x ^ shifted(x, 30)) * signed(MIX_1)
    x = (x ^ shifted(x, 27)) * signed(MIX_2)
    return x ^ shifted(x, 31)


def augment(images: torch.Tensor, ids: torch.Tensor, epoch: int, how: Augment) -> torch.Tensor:
    """Crop, flip and cutout in torch's own operations, on any device: what data/augment.py and
    data/triton_augment.py compile, written plainly.

    images: uint8 (samples, H, W, C), all of them; ids: int64 (N,), which to take. Returns uint8 (N,
    H, W, C)."""
    _, height, width, _ = images.shape
    crop_key, flip_key_, turned, hole_key = (signed(int(value)) for value in how.keys(epoch))
    hashed = mix_torch(ids)
    crop = mix_torch(hashed ^ crop_key)
    flipped = ((mix_torch(hashed ^ flip_key_) & 1) ^ turned).bool() & (how.flip != "none")
    dy = ((crop >> DY_SHIFT) & FIELD) % (2 * how.pad + 1) - how.pad
    dx = ((crop >> DX_SHIFT) & FIELD) % (2 * how.pad + 1) - how.pad
    columns = torch.arange(width, device=images.device).expand(len(ids), width)
    columns = torch.where(flipped[:, None], width - 1 - columns, columns) + dx[:, None]
    rows = torch.arange(height, device=images.device) + dy[:, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[
        :, None, :
    ]
    if how.cutout:
        hole = mix_torch(hashed ^ hole_key)
        y, x = (
            torch.arange(size, device=images.device)
            - (((hole >> shift) & FIELD) % size - how.cutout // 2)[:, None]
            for size, shift in ((height, DY_SHIFT), (width, DX_SHIFT))
        )  # counted from the hole's first row, and column
        covered = [(position >= 0) & (position < how.cutout) for position in (y, x)]
        inside &= ~(covered[0][:, :, None] & covered[1][:, None, :])
    gathered = images[
        ids[:, None, None],
        rows.clamp(0, height - 1)[:, :, None],
        columns.clamp(0, width - 1)[:, None, :],
    ]
    return torch.where(inside[..., None], gathered, _colour(how.fill, images.device))


@lru_cache(maxsize=4)
def _colour(fill: tuple[int, int, int], device: torch.device) -> torch.Tensor:
    """Made once: what comes from the host waits for the device."""
    return torch.tensor(fill, dtype=torch.uint8, device=device)


def signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
