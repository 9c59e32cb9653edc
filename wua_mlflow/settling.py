"""What would settle an inconclusive verdict: how many more test examples or seeds.

The estimate and its variances are taken for the truth, with no room for chance.
May import: ``wua_mlflow.intervals``. Tests: ``tests/test_settling.py``.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

from wua_mlflow.intervals import Crossed, normal_quantile, null_variance, unseen_reach

__all__ = [
    "Need",
    "crossed_need",
    "mean_examples",
    "tango_examples",
    "unseen_examples",
]

_REALISTIC_FACTOR = 100
"""More than so many times the examples or seeds at hand are not offered."""


@dataclass(frozen=True)
class Need:
    """Numbers that would settle a verdict; None where no realistic one would.

    ``seeds``: so many on the same examples; ``examples``: so many with the same seeds;
    ``both``: (seeds, examples), grown by the same factor.
    """

    seeds: int | None = None
    examples: int | None = None
    both: tuple[int, int] | None = None


def tango_examples(gained: float, lost: float, *, margin: float, confidence: float) -> int:
    """The smallest n at which Tango's interval excludes −margin, the two shares staying as given.

    The score statistic at −margin grows with √n: n > z² · variance(−margin) / (delta + margin)².

    Args:
        gained: share of examples that only the candidate gets right.
        lost: share that only the baseline gets right; lost − gained differs from the margin.
        margin: as a fraction.
        confidence: of the two-sided interval.

    >>> tango_examples(0.0, 0.0, margin=0.01, confidence=0.95)
    381
    """
    z = normal_quantile(confidence)
    distance = gained - lost + margin
    return math.floor(z**2 * null_variance(-margin, gained, lost) / distance**2) + 1


def unseen_examples(distance: float, *, span: float, confidence: float) -> int:
    """The smallest n at which ``span`` times ``unseen_reach`` is below ``distance`` (above 0)."""
    z2 = normal_quantile(confidence) ** 2
    return max(0, math.floor(z2 * (span - distance) / distance)) + 1


def mean_examples(half_width: float, distance: float, examples: int) -> int:
    """The smallest n at which a half width that shrinks with √n is below ``distance``.

    >>> mean_examples(0.2, 0.1, 50)
    201
    """
    return math.floor(examples * (half_width / distance) ** 2) + 1


def crossed_need(
    parts: Crossed, distance: float, *, confidence: float, unseen_span: float = 0.0
) -> Need:
    """The smallest numbers at which a crossed interval's half width is below ``distance``.

    Args:
        parts: the variance components seen.
        distance: from the estimate to −margin, above 0.
        confidence: of the two-sided interval.
        unseen_span: where above 0, ``unseen_span · unseen_reach`` must fall below it too.
    """

    def enough(seeds: int, examples: int) -> bool:
        reach = unseen_span * unseen_reach(examples, confidence=confidence)
        return max(parts.predicted_half_width(seeds, examples, confidence), reach) < distance

    def grown(seeds: int) -> int:
        return math.ceil(parts.examples * seeds / parts.seeds)

    seeds = range(parts.seeds + 1, _REALISTIC_FACTOR * parts.seeds + 1)
    examples = range(parts.examples + 1, _REALISTIC_FACTOR * parts.examples + 1)
    s = bisect_left(seeds, True, key=lambda more: enough(more, parts.examples))
    n = bisect_left(examples, True, key=lambda more: enough(parts.seeds, more))
    b = bisect_left(seeds, True, key=lambda more: enough(more, grown(more)))
    return Need(
        seeds=seeds[s] if s < len(seeds) else None,
        examples=examples[n] if n < len(examples) else None,
        both=(seeds[b], grown(seeds[b])) if b < len(seeds) else None,
    )
