"""New networks of the widths that a search chose: whether any of them collapses.

They are the slim variant's replicates, which the verdict then judges on the test part; the screen
looks at the validation part alone. Tests: ``tests/pipeline/test_screen.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from wua_mlflow.pipeline.networks import NetworkFactory, cached
from wua_mlflow.pipeline.recipe import Recipe, Replicate, train_replicate
from wua_mlflow.verdict.inputs import FEWEST_SEEDS
from wua_mlflow.verdict.intervals import collapsed_seeds

__all__ = ["Screen", "screen"]


@dataclass(frozen=True)
class Screen:
    """Networks of some widths on new seeds.

    Attributes:
        make: trains them, and has the first.
        replicates: by number, from 0.
        collapsed: how many of them, on validation data.
        passed: whether that is no larger a share than of the original's.
    """

    make: NetworkFactory
    replicates: Mapping[int, Replicate] = field(repr=False)
    collapsed: int
    passed: bool


def screen(
    recipe: Recipe, make: NetworkFactory, original: np.ndarray, *, seeds: int, label: str = ""
) -> Screen:
    """Train networks one by one, to the last or until more collapse than of the original's.

    Args:
        recipe: what is trained on what; its margin tells a collapse (``collapsed_seeds``).
        make: trains a network.
        original: validation scores of the original's networks, shape (networks, examples).
        seeds: at least 5.
        label: of the progress bar.
    """
    margin = recipe.settings.margin
    share = float(collapsed_seeds(original, margin).mean())
    make = cached(make)
    replicates: dict[int, Replicate] = {}
    collapsed = 0
    for number in tqdm(range(seeds), desc=f"screening {label}", disable=None, leave=False,
                       unit="seed"):
        replicates[number] = train_replicate(recipe, make, number)
        if len(replicates) < FEWEST_SEEDS:
            continue
        rows = np.stack([each.validation_scores for each in replicates.values()])
        collapsed = int(collapsed_seeds(rows, margin).sum())
        if collapsed / len(rows) > share:
            return Screen(make, replicates, collapsed, passed=False)
    return Screen(make, replicates, collapsed, passed=True)
