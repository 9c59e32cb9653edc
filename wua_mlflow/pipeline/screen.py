"""New networks of the widths that a search chose: whether any of them collapses.

They are the slim variant's replicates, which the verdict then judges on the test part; the screen
looks at the validation part alone. Tests: ``tests/pipeline/test_screen.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from wua_mlflow.pipeline import allowance as allowances
from wua_mlflow.pipeline.allowance import CONTROL, Allowance
from wua_mlflow.pipeline.networks import NetworkFactory, cached
from wua_mlflow.pipeline.recipe import Recipe
from wua_mlflow.pipeline.replicates import Replicate, train_replicate
from wua_mlflow.progress import Bar
from wua_mlflow.verdict.inputs import FEWEST_SEEDS
from wua_mlflow.verdict.intervals import collapsed_seeds

__all__ = ["Screen", "more_collapse", "screen"]


@dataclass(frozen=True)
class Screen:
    """Networks of some widths on new seeds.

    Attributes:
        make: trains them, and has the first.
        replicates: by number, from 0.
        collapsed: how many of them, on validation data.
        passed: whether that is no larger a share than of the original's.
        cut_short: whether the time was up before all of them were trained.
    """

    make: NetworkFactory
    replicates: Mapping[int, Replicate] = field(repr=False)
    collapsed: int
    passed: bool
    cut_short: bool = False


def screen(
    recipe: Recipe, make: NetworkFactory, original: np.ndarray, *, seeds: int, label: str = "",
    allowance: Allowance | None = None,
) -> Screen:
    """Train networks one by one, to the last or until more collapse than of the original's.

    Once one was timed no more of them than there is time for: none, where there is none for five.
    How many they are hangs on the time alone, so it chooses nothing.

    Args:
        recipe: what is trained on what; its margin tells a collapse (``collapsed_seeds``).
        make: trains a network.
        original: validation scores of the original's networks, shape (networks, examples).
        seeds: at least 5.
        label: of the progress bar.
        allowance: what they may take, and the original trained on after them.
    """
    make, began = cached(make), allowances.clock()
    seconds = (1 - CONTROL) * max(0.0, (allowance or Allowance()).left)
    replicates: dict[int, Replicate] = {}
    passed, collapsed = True, 0
    for number in Bar(range(seeds), desc=f"screening {label}", unit="seed", at_most=seconds):
        if not _is_time_for(number, allowances.clock() - began, seconds):
            return Screen(make, replicates, collapsed, passed, cut_short=True)
        replicates[number] = train_replicate(recipe, make, number)
        collapsed, passed = more_collapse(
            np.stack([each.validation_scores for each in replicates.values()]), original,
            recipe.settings.margin)
        if not passed:
            break
    return Screen(make, replicates, collapsed, passed)


def _is_time_for(number: int, taken: float, seconds: float) -> bool:
    """Whether the next network is trained; of the first five all or one.

    >>> [_is_time_for(number, 10.0 * number, 65.0) for number in (0, 1, 4, 5, 6)]
    [True, True, True, True, False]
    >>> _is_time_for(1, 10.0, 49.0)
    False
    """
    if number in (0, *range(2, FEWEST_SEEDS)):
        return True
    return taken / number * max(FEWEST_SEEDS, number + 1) <= seconds


def more_collapse(scores: np.ndarray, original: np.ndarray, margin: float) -> tuple[int, bool]:
    """How many networks collapsed, and whether that is no larger a share than of the original's.

    Of fewer than 5 networks none counts as collapsed: there is no median to speak of.

    Args:
        scores: of the networks on validation data, shape (networks, examples).
        original: the same of the original's.
        margin: the loss that is accepted.
    """
    if len(scores) < FEWEST_SEEDS:
        return 0, True
    collapsed = collapsed_seeds(scores, margin)
    return int(collapsed.sum()), bool(
        collapsed.mean() <= collapsed_seeds(original, margin).mean())
