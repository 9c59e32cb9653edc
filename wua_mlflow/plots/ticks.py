"""Where an axis is marked, and what stands there.

May import: numpy. Test: ``tests/plots/test_pareto.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["log_ticks", "tick_words"]

_TICKS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), tuple(np.arange(10, 100) / 10))
_MOST_TICKS = 7


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers within the range, three to seven of them where there are so many.

    >>> log_ticks(35, 75), log_ticks(1e3, 1e6)
    ([40.0, 50.0, 70.0], [1000.0, 10000.0, 100000.0, 1000000.0])
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for steps in _TICKS:
        finer = [float(f"{step * 10.0**decade:.12g}") for decade in decades for step in steps]
        finer = [tick for tick in finer if low <= tick <= high]
        if len(finer) > _MOST_TICKS:
            return found or finer[:: math.ceil(len(finer) / _MOST_TICKS)]
        found = finer
        if len(found) >= 3:
            break
    return found


def tick_words(ticks: Sequence[float], score: str) -> list[str]:
    """All with as many decimals as tell them apart."""
    scale, unit = (100, "%") if score == "accuracy" else (1, "")
    values = [round(scale * tick, 9) + 0.0 for tick in ticks]
    decimals = next(d for d in range(10) if all(round(v, d) == v for v in values))
    return [f"{value:.{decimals}f}{unit}".replace("-", "−") for value in values]
