"""The `shapes` data set: ten classes of drawn shapes, 32x32, made in seconds. For trying things out
without CIFAR-10."""

import numpy as np

from dist_resnet.prepare.betons import Dataset
from dist_resnet.prepare.encoding import Samples

CLASSES = [
    "disc",
    "ring",
    "square",
    "frame",
    "triangle",
    "diamond",
    "plus",
    "ex",
    "bar",
    "crescent",
]
SIZE = 32


def make(train: int = 20_000, test: int = 4_000, seed: int = 0) -> Dataset:
    """Shapes of random place, size, turn and colours on a noisy background. Classes are equally
    frequent."""
    return Dataset(
        "shapes",
        CLASSES,
        _split(train, [seed, 0]),
        _split(test, [seed, 1]),
        f"generated, seed {seed}",
    )


def _split(count: int, seed: list[int]) -> Samples:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % len(CLASSES))
    images = np.concatenate([_draw(labels[i : i + 1000], rng) for i in range(0, count, 1000)])
    return Samples(labels, images.__getitem__)


def _draw(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 images (N, SIZE, SIZE, 3) of the given classes."""
    n = len(labels)
    grid = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1
    centre, radius, angle = (
        rng.uniform(-0.35, 0.35, (2, n, 1, 1)),
        rng.uniform(0.35, 0.6, (n, 1, 1)),
        rng.uniform(-0.4, 0.4, (n, 1, 1)),
    )
    x, y = grid[None, None, :] - centre[0], grid[None, :, None] - centre[1]
    u = (x * np.cos(angle) + y * np.sin(angle)) / radius
    v = (y * np.cos(angle) - x * np.sin(angle)) / radius
    inside = np.choose(labels[:, None, None], _masks(u, v))
    background, colour = rng.uniform(0, 255, (2, n, 1, 1, 3))
    near = np.abs(background - colour).sum(-1, keepdims=True) < 120
    colour = np.where(near, 255 - background, colour)
    noise = rng.normal(0, 25, (n, SIZE, SIZE, 3))
    return np.clip(np.where(inside[..., None], colour, background) + noise, 0, 255).astype(np.uint8)


def _masks(u: np.ndarray, v: np.ndarray) -> list[np.ndarray]:
    """Where each class's shape is, in its own coordinates; in the order of CLASSES."""
    r, largest, a, b = np.hypot(u, v), np.maximum(abs(u), abs(v)), abs(u), abs(v)
    return [
        r < 1,
        (r < 1) & (r > 0.6),
        largest < 0.85,
        (largest < 0.95) & (largest > 0.6),
        (v < 0.7) & (v > 1.7 * a - 1),
        a + b < 1.1,
        (np.minimum(a, b) < 0.3) & (largest < 1),
        (abs(a - b) < 0.35) & (largest < 0.9),
        (a < 1) & (b < 0.3),
        (r < 1) & (np.hypot(u - 0.5, v) > 0.75),
    ]
