"""Generated data for a blind check: fixed before any network was trained on them.

Each is a function of the seed that returns training, validation and test part, as ``--data`` takes
it. Run: ``python benchmarks/pruning.py --blind``.
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import make_classification

__all__ = ["gratings", "mixture", "teacher"]

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


def _parts(inputs: np.ndarray, labels: np.ndarray) -> Parts:
    places = np.split(np.arange(len(inputs)), np.cumsum(SAMPLES)[:-1])
    return tuple((inputs[place], labels[place]) for place in places)
