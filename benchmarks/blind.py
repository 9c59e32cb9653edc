"""Generated data for a blind check: fixed before any network was trained on them.

Each is a function of the seed that returns training, validation and test part, as ``--data`` takes
it. Run: ``python benchmarks/pruning.py --blind``.
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import make_classification, make_friedman1

__all__ = ["deep", "friedman", "gratings", "mixture", "rare", "spirals", "stripes", "table",
           "teacher"]

SAMPLES = (900, 150, 450)
SIZE = 12
Parts = tuple[tuple[np.ndarray, np.ndarray], ...]


def gratings(seed: int) -> Parts:
    """Noisy gratings of 8 directions, each at any phase and of two periods, 12 x 12 pixels."""
    rng = np.random.default_rng(1)
    total = sum(SAMPLES)
    labels = rng.integers(8, size=total)
    angle = np.pi * labels / 8 + rng.normal(0, 0.06, total)
    phase, period = rng.uniform(0, 2 * np.pi, total), rng.choice([3.0, 5.0], total)
    y, x = np.mgrid[:SIZE, :SIZE]
    along = x * np.cos(angle)[:, None, None] + y * np.sin(angle)[:, None, None]
    images = np.sin(2 * np.pi * along / period[:, None, None] + phase[:, None, None])
    images += rng.normal(0, 1.0, images.shape)
    return _parts(images[:, None].astype(np.float32), labels)


def teacher(seed: int) -> Parts:
    """What a random network of 16 inputs and 24 hidden units prefers of 6."""
    rng = np.random.default_rng(2)
    inputs = rng.normal(size=(sum(SAMPLES), 16))
    hidden = np.maximum(inputs @ rng.normal(size=(16, 24)) / 4, 0)
    scores = hidden @ rng.normal(size=(24, 6))
    return _parts(inputs.astype(np.float32), (scores - scores.mean(0)).argmax(1))


def mixture(seed: int) -> Parts:
    """Five classes of two clusters each in 10 of 20 dimensions, 2% of the labels wrong."""
    inputs, labels = make_classification(
        sum(SAMPLES), 20, n_informative=10, n_redundant=4, n_classes=5, n_clusters_per_class=2,
        flip_y=0.02, class_sep=1.5, random_state=3)
    return _parts(inputs.astype(np.float32), labels)


def spirals(seed: int) -> Parts:
    """Two interleaved spirals of 1.75 turns, their arms 0.57 apart, under noise of sd 0.1."""
    sizes = (600, 200, 800)
    rng = np.random.default_rng(11)
    labels = rng.integers(2, size=sum(sizes))
    radius = np.sqrt(rng.uniform(0.01, 1, len(labels)))
    angle = 2 * np.pi * 1.75 * radius + np.pi * labels
    inputs = 2 * radius[:, None] * np.stack((np.cos(angle), np.sin(angle)), 1)
    inputs += rng.normal(0, 0.1, inputs.shape)
    return _parts(inputs.astype(np.float32), labels, sizes)


def friedman(seed: int) -> Parts:
    """A regression: Friedman's first function of 5 of 10 inputs, noise of sd 1 (of about 5)."""
    inputs, amounts = make_friedman1(1400, 10, noise=1.0, random_state=12)
    amounts = (amounts - amounts.mean()) / amounts.std()
    return _parts(((inputs - 0.5) * 12**0.5).astype(np.float32), amounts.astype(np.float32),
                  (800, 200, 400))


def rare(seed: int) -> Parts:
    """Two classes, of which one has 7% of the examples; three clusters each in 8 of 12 inputs."""
    sizes = (1000, 300, 1200)
    inputs, labels = make_classification(
        sum(sizes), 12, n_informative=8, n_redundant=2, n_clusters_per_class=3, weights=(0.93,),
        flip_y=0, class_sep=1.2, random_state=13)
    share = np.where(labels == 1, np.cumsum(labels) / labels.sum(),
                     np.cumsum(1 - labels) / np.sum(1 - labels))
    order = np.argsort(share, kind="stable")  # every part has the same share of each class
    return _parts(_standardised(inputs)[order], labels[order], sizes)


def deep(seed: int) -> Parts:
    """What a random network of 10 inputs and hidden layers of 20 and 12 units prefers of 4."""
    sizes = (1200, 200, 800)
    rng = np.random.default_rng(14)
    inputs = rng.normal(size=(sum(sizes), 10))
    first = np.tanh(inputs @ rng.normal(size=(10, 20)) * 0.5)
    second = np.tanh(first @ rng.normal(size=(20, 12)) * 0.5)
    scores = second @ rng.normal(size=(12, 4))
    return _parts(inputs.astype(np.float32), (scores - scores.mean(0)).argmax(1), sizes)


def stripes(seed: int) -> Parts:
    """Images of 12 x 12 pixels, flat: stripes of 6 directions at any phase, under noise."""
    sizes = (1000, 200, 800)
    rng = np.random.default_rng(15)
    labels = rng.integers(6, size=sum(sizes))
    angle = np.pi * labels / 6 + rng.normal(0, 0.05, len(labels))
    phase = rng.uniform(0, 2 * np.pi, len(labels))
    y, x = np.mgrid[:SIZE, :SIZE]
    along = x * np.cos(angle)[:, None, None] + y * np.sin(angle)[:, None, None]
    images = np.sin(2 * np.pi * along / 4.0 + phase[:, None, None])
    images += rng.normal(0, 0.7, images.shape)
    return _parts(images.reshape(len(labels), -1).astype(np.float32), labels, sizes)


def table(seed: int) -> Parts:
    """2,000 rows, three classes: skewed amounts, a category of four, 5% of the labels random."""
    rows = 2000
    rng = np.random.default_rng(16)
    amounts = rng.lognormal(0, 0.6, (rows, 4))
    others = rng.uniform(-1, 1, (rows, 3))
    category = np.eye(4)[rng.integers(4, size=rows)]
    score = (np.log(amounts[:, 0] / amounts[:, 1]) * (category @ (1, -1, 0.5, 2))
             + 2 * np.abs(others[:, 0]) - np.maximum(amounts[:, 2], 1.0) * others[:, 1])
    labels = np.digitize(score, np.quantile(score, (0.45, 0.8)))
    wrong = rng.random(rows) < 0.05
    labels[wrong] = rng.integers(3, size=int(wrong.sum()))
    return _parts(_standardised(np.hstack((amounts, others, category))), labels, (1400, 200, 400))


def _standardised(inputs: np.ndarray) -> np.ndarray:
    return ((inputs - inputs.mean(0)) / inputs.std(0)).astype(np.float32)


def _parts(
    inputs: np.ndarray, labels: np.ndarray, sizes: tuple[int, int, int] = SAMPLES
) -> Parts:
    places = np.split(np.arange(len(inputs)), np.cumsum(sizes)[:-1])
    return tuple((inputs[place], labels[place]) for place in places)
