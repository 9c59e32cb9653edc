"""The recipe verdict's interval: seeds that did not collapse, crossed with examples, at a look.

Tests: ``tests/verdict/test_recipe.py``; error rates: ``benchmarks/calibration.py`` and
``benchmarks/looks.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wua_mlflow.verdict import intervals
from wua_mlflow.verdict.bootstrap import examples_stretch
from wua_mlflow.verdict.inputs import FEWEST_SEEDS
from wua_mlflow.verdict.intervals import Crossed
from wua_mlflow.verdict.looks import chance_to_settle, repeated_confidence

__all__ = ["METHOD", "RecipeInterval", "SeedCounts", "collapse_confidence", "recipe_interval"]

Floats = NDArray[np.float64]

METHOD = "unpaired seeds crossed with examples, t"
_LEAST_STEP = 1e-6
"""Between the information fractions of two looks, where seeds add next to nothing."""


@dataclass(frozen=True)
class SeedCounts:
    """The seeds of a recipe verdict.

    Attributes:
        candidate: trained, those included that are not in the interval.
        baseline: trained; 1 where the original is one given network.
        collapsed: of the candidate's (``intervals.collapsed_seeds``).
        baseline_collapsed: of the baseline's.
        collapse_low: lower limit of the share of the candidate's recipe that collapses.
        collapse_high: its upper limit, exact.
        look: which look at the seeds this is, from 1; 1 also where none were planned.
        looks: how many looks are planned; 1 where the number of seeds was fixed.
        beyond_plan: the candidate's seeds that were not planned: the verdict is exploratory.
        screened: candidates that were screened for collapses, of which this is one: the limits of
            the collapsing share hold for all of them together.
        chance_to_settle: where a further look is planned, the chance that the last one settles it.
        compared: how many of the candidate's are in the interval, where further ones count among
            the collapses; None: all that did not collapse.
    """

    candidate: int
    baseline: int
    collapsed: int
    baseline_collapsed: int
    collapse_low: float
    collapse_high: float
    look: int = 1
    looks: int = 1
    chance_to_settle: float | None = None
    beyond_plan: int = 0
    screened: int = 1
    compared: int | None = None

    @property
    def enough(self) -> bool:
        """Whether enough seeds of both sides did not collapse."""
        sides = [self.candidate - self.collapsed if self.compared is None else self.compared]
        if self.baseline > 1:
            sides.append(self.baseline - self.baseline_collapsed)
        return min(sides) >= FEWEST_SEEDS


@dataclass(frozen=True)
class RecipeInterval:
    """The interval of the difference of typical seeds, and what it was made from.

    ``parts`` reach as far as the interval does on the side of −margin.
    """

    low: float
    high: float
    parts: Crossed
    seeds: SeedCounts
    unseen_span: float
    span: float
    same: bool


def recipe_interval(  # noqa: PLR0913 - scores, what they are judged by, and how
    baseline: Floats, candidate: Floats, *, margin: float, confidence: float,
    planned: Sequence[tuple[int, int]] | None = None, compared: int | None = None,
    moved: NDArray[np.bool_] | None = None, targets: Floats | None = None, seed: int = 0,
    screened: int = 1,
) -> RecipeInterval:
    """The interval of mean(candidate) − mean(baseline) over seeds that did not collapse.

    Args:
        baseline: scores, shape (S, n), S = 1 or at least 5.
        candidate: the same examples', with seeds of its own, at least 5.
        margin: of the verdict.
        confidence: of the two-sided interval; where looks are planned, of all of them together.
        planned: the candidate's and the baseline's seeds at each planned look, as ``checked_plan``
            gives them. None for numbers that were fixed beforehand.
        compared: how many of the candidate's seeds, the first ones, are in the interval; the others
            count among those that may collapse. All, if None.
        moved: as in ``intervals.score_range``.
        targets: of R² (``intervals.crossed``); the examples' part then has a bootstrap-t.
        seed: of that.
        screened: candidates that were screened for collapses; the error of the collapsing share's
            limits is shared out among them (Bonferroni).

    >>> rng = np.random.default_rng(0)
    >>> scores = rng.random((2, 8, 500)) < 0.9
    >>> plan = ((5, 5), (8, 8), (12, 12))
    >>> now = recipe_interval(*scores, margin=0.02, confidence=0.95, planned=plan)
    >>> now.seeds.look, now.seeds.looks, now.seeds.collapsed
    (2, 3, 0)
    """
    old, new = (np.asarray(side, dtype=np.float64) for side in (baseline, candidate))
    lost_old = intervals.collapsed_seeds(old, margin) if len(old) > 1 else np.zeros(1, dtype=bool)
    lost_new = intervals.collapsed_seeds(new, margin)
    lost = int(lost_new.sum())
    seeds = len(new) if compared is None else compared, len(old)
    old, new = old[~lost_old], new[:seeds[0]][~lost_new[:seeds[0]]]
    parts = intervals.crossed(old, new, targets=targets)
    stretch = (1.0, 1.0)
    if targets is not None:
        stretch = examples_stretch(new.mean(axis=0) - old.mean(axis=0), targets,
                                   confidence=confidence, seed=seed)
    low, high = intervals.collapse_limits(
        lost, len(candidate), confidence=collapse_confidence(confidence, screened))
    level, look, chance = confidence, 1, None
    if planned is not None:
        level, look, chance = _at_look(parts, margin, confidence, seeds, planned)
    span, unseen, same = intervals.score_range(old, new, moved)
    reach = unseen * intervals.zero_event_limit(parts.examples, confidence=level)
    sides = [replace(parts, stretch=factor) for factor in stretch]
    below, above = (max(side.half_width(level), reach) for side in sides)
    counts = SeedCounts(
        len(candidate), seeds[1], lost, int(lost_old.sum()), low, high, look,
        1 if planned is None else len(planned), chance, screened=screened,
        compared=len(new) if seeds[0] < len(candidate) else None)
    return RecipeInterval(parts.mean - below, parts.mean + above, sides[parts.mean < -margin],
                          counts, unseen, span, same)


def collapse_confidence(confidence: float, screened: int) -> float:
    """Of the limits of the collapsing share: 1 − (1 − confidence) ÷ ``screened``."""
    return 1 - (1 - confidence) / screened


def _at_look(
    parts: Crossed, margin: float, confidence: float, seeds: tuple[int, int],
    planned: Sequence[tuple[int, int]],
) -> tuple[float, int, float | None]:
    """The interval's confidence at this look, its number, and the chance to settle it later.

    Information is 1 ÷ variance, predicted for every look from the parts as seen now; as many seeds
    as have collapsed are missing at every look. ``seeds``: the candidate's, the baseline's.
    """
    numbers = [candidate for candidate, _ in planned]
    look = (planned.index(seeds) if seeds in planned else numbers.index(seeds[0])) + 1
    if not parts.variance:
        return confidence, look, None
    lost = seeds[0] - parts.candidate.seeds, seeds[1] - parts.baseline.seeds
    ahead = [parts.predicted(candidate - lost[0], max(baseline - lost[1], 1),
                             parts.examples).variance for candidate, baseline in planned]
    fractions = _ascending([ahead[-1] / variance for variance in ahead])
    level = repeated_confidence(fractions[:look], confidence)
    if look == len(planned):
        return level, look, None
    return level, look, chance_to_settle(
        (parts.mean + margin) / math.sqrt(parts.variance), fractions[look - 1],
        repeated_confidence(fractions, confidence))


def _ascending(fractions: Sequence[float]) -> list[float]:
    """Information fractions that end at 1, each above the one before."""
    steps: list[float] = []
    for fraction in fractions:
        steps.append(max(fraction, steps[-1] + _LEAST_STEP) if steps else fraction)
    return [step / steps[-1] for step in steps]
