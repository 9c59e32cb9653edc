"""Group-sequential limits: a verdict that is looked at while seeds are added.

Error spending (Lan & DeMets 1983, Biometrika 70:659) with the O'Brien-Fleming-like function, and
repeated confidence intervals (Jennison & Turnbull 1989, JRSS B 51:305). Tests:
``tests/verdict/test_looks.py``; error rates: ``benchmarks/looks.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "LEAST_CHANCE", "SEEDS_AT_LOOKS", "chance_to_settle", "planned_looks", "repeated_confidence",
    "spent",
]

Floats = NDArray[np.float64]

SEEDS_AT_LOOKS = (5, 8, 12, 16, 20)
"""Seeds a side at each look."""

LEAST_CHANCE = 0.02
"""No further look where the chance that the last one settles the verdict is lower."""

_NORMAL = NormalDist()
_FEWEST_POINTS, _MOST_POINTS = 201, 1601
"""Of the grid of Simpson's rule: two to the standard deviation of the next increment."""
_FARTHEST = 8.0
"""The normal density beyond is left out."""
_NO_LIMIT = 8.2
"""The limit where nothing may be spent yet."""


def planned_looks(max_seeds: int) -> tuple[int, ...]:
    """Seeds a side at each look, the last one being ``max_seeds``.

    >>> planned_looks(20), planned_looks(10), planned_looks(40)
    ((5, 8, 12, 16, 20), (5, 8, 10), (5, 8, 12, 16, 20, 40))
    """
    return (*(seeds for seeds in SEEDS_AT_LOOKS if seeds < max_seeds), max_seeds)


def spent(fraction: float, level: float) -> float:
    """The error that may be spent up to an information fraction: 2 − 2Φ(z ÷ √t).

    Lan & DeMets (1983), O'Brien-Fleming-like; z is the normal quantile of 1 − level/2.

    Args:
        fraction: t, the information at hand over that planned, in (0, 1].
        level: one-sided, spent in all at t = 1.

    >>> round(spent(0.5, 0.025), 5), spent(1.0, 0.025)
    (0.00153, 0.025)
    """
    if fraction >= 1:
        return level
    z = _NORMAL.inv_cdf(1 - level / 2)
    return 2 * (1 - _NORMAL.cdf(z / math.sqrt(fraction)))


def repeated_confidence(fractions: Sequence[float], confidence: float) -> float:
    """The confidence at which a two-sided interval is taken at the last of several looks.

    It is the repeated confidence interval's: all looks' intervals hold the truth together with the
    probability ``confidence``, where their estimates have the canonical joint distribution,
    Cov(Zⱼ, Zₖ) = √(tⱼ/tₖ). With one look at fraction 1 it is ``confidence`` itself.

    Args:
        fractions: information fractions of the looks so far, ascending, in (0, 1].
        confidence: of all looks together, in (0, 1).

    Raises:
        ValueError: fractions that do not ascend within (0, 1].

    >>> round(repeated_confidence([0.5], 0.95), 4), round(repeated_confidence([0.5, 1], 0.95), 4)
    (0.9969, 0.951)
    """
    steps = [0.0, *map(float, fractions)]
    if len(steps) < 2 or not all(before < after for before, after in pairwise(steps)) \
            or steps[-1] > 1 + 1e-12:
        raise ValueError(f"fractions: expected numbers that ascend within (0, 1], but got "
                         f"{', '.join(map(str, fractions))}")
    limit = _limits(tuple(round(fraction, 12) for fraction in steps[1:]), (1 - confidence) / 2)[-1]
    return 2 * _NORMAL.cdf(limit) - 1


def chance_to_settle(statistic: float, fraction: float, final_confidence: float) -> float:
    """The predictive chance that the last look's interval leaves −margin out, on either side.

    The truth is taken as the estimate ± its standard error, so the last statistic is normal with
    mean Z ÷ √t and variance 1 ÷ t − 1 (Spiegelhalter, Freedman & Blackburn 1986). Not binding: the
    limits are right whether it stops the looks or not.

    Args:
        statistic: Z, the estimate's distance from −margin in standard errors.
        fraction: t, the information at hand over that of the last look, in (0, 1).
        final_confidence: of the last look's interval.

    >>> round(chance_to_settle(0.0, 0.5, 0.95), 3), round(chance_to_settle(3.0, 0.5, 0.95), 3)
    (0.05, 0.989)
    """
    limit = _NORMAL.inv_cdf((1 + final_confidence) / 2)
    mean, spread = statistic / math.sqrt(fraction), math.sqrt(1 / fraction - 1)
    return _NORMAL.cdf((mean - limit) / spread) + _NORMAL.cdf((-mean - limit) / spread)


@lru_cache(maxsize=4096)
def _limits(fractions: tuple[float, ...], level: float) -> tuple[float, ...]:
    """One-sided limits of Z at the looks, by recursive integration.

    Armitage, McPherson & Rowe (1969, JRSS A 132:235): the density of the score √t·Z among the paths
    that stayed below the limits so far has independent normal increments.
    """
    limits: list[float] = []
    points, weights = np.zeros(1), np.ones(1)
    before = crossed = 0.0
    for fraction, after in zip(fractions, (*fractions[1:], None), strict=True):
        deviation = math.sqrt(fraction - before)
        allowed = spent(fraction, level) - crossed
        limit = _limit(points, weights, deviation, fraction, allowed)
        limits.append(limit)
        crossed += _beyond(points, weights, deviation, limit * math.sqrt(fraction))
        if after is not None:
            grid = _grid(limit * math.sqrt(fraction), fraction, after - fraction)
            points, weights = _stayed(points, weights, deviation, grid)
        before = fraction
    return tuple(limits)


def _limit(
    points: Floats, weights: Floats, deviation: float, fraction: float, allowed: float
) -> float:
    """The limit of Z that the share ``allowed`` of all paths crosses now, by bisection."""
    low, high = 0.0, _NO_LIMIT
    for _ in range(50):
        middle = (low + high) / 2
        if _beyond(points, weights, deviation, middle * math.sqrt(fraction)) > allowed:
            low = middle
        else:
            high = middle
    return high


def _beyond(points: Floats, weights: Floats, deviation: float, score: float) -> float:
    """The share of the paths whose score is beyond ``score`` after the next increment."""
    from scipy.special import ndtr

    return float(weights @ ndtr((points - score) / deviation))


def _grid(limit: float, fraction: float, increment: float) -> Floats:
    """Points of the score up to its limit, an odd number, as fine as the next increment needs."""
    lowest = -_FARTHEST * math.sqrt(fraction)
    points = math.ceil(2 * (limit - lowest) / math.sqrt(increment)) // 2 * 2 + 1
    return np.linspace(lowest, limit, min(max(points, _FEWEST_POINTS), _MOST_POINTS))


def _stayed(
    points: Floats, weights: Floats, deviation: float, grid: Floats
) -> tuple[Floats, Floats]:
    """The grid with the weights of the paths that end there, by Simpson's rule."""
    simpson = np.ones(len(grid))
    simpson[1:-1:2], simpson[2:-1:2] = 4, 2
    simpson *= (grid[1] - grid[0]) / 3
    standardized = (grid[:, None] - points[None, :]) / deviation
    density = np.exp(-0.5 * standardized**2) / (deviation * math.sqrt(2 * math.pi))
    return grid, simpson * (density @ weights)
