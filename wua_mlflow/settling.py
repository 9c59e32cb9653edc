"""What would settle an inconclusive verdict: how many more test examples or seeds.

So many that a verdict on as many, drawn anew, is settled with a chance of 80% (``POWER``), if the
true difference and its variances are as seen.
May import: ``wua_mlflow.intervals``. Tests: ``tests/test_settling.py``.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from statistics import NormalDist

from wua_mlflow.intervals import Crossed, normal_quantile, null_variance, t_power, unseen_reach

__all__ = [
    "Need",
    "POWER",
    "crossed_need",
    "mean_examples",
    "tango_examples",
    "unseen_examples",
]

POWER = 0.8
"""The chance that a verdict on so many is settled."""
_POWER_QUANTILE = NormalDist().inv_cdf(POWER)
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
    """The n at which Tango's interval leaves −margin out with the chance ``POWER``.

    n > ((z · √variance if delta were −margin + z_power · √variance as seen) ÷ (delta + margin))²,
    the sample size of his score test (Nam 1997, Biometrics 53:1422). Where nothing differs it
    is certain: ``unseen_examples``.

    Args:
        gained: share of examples that only the candidate gets right.
        lost: share that only the baseline gets right; lost − gained differs from the margin.
        margin: as a fraction.
        confidence: of the two-sided interval.

    >>> tango_examples(0.01, 0.02, margin=0.02, confidence=0.95)
    2629
    >>> tango_examples(0.0, 0.0, margin=0.01, confidence=0.95)
    381
    """
    z = normal_quantile(confidence)
    distance = gained - lost + margin
    seen = gained + lost - (gained - lost) ** 2
    spread = z * math.sqrt(null_variance(-margin, gained, lost)) + _POWER_QUANTILE * math.sqrt(seen)
    return math.floor(spread**2 / distance**2) + 1


def unseen_examples(distance: float, *, span: float, confidence: float) -> int:
    """The smallest n at which ``span`` times ``unseen_reach`` is below ``distance`` (above 0)."""
    z2 = normal_quantile(confidence) ** 2
    return max(0, math.floor(z2 * (span - distance) / distance)) + 1


def mean_examples(half_width: float, error: float, distance: float, examples: int) -> int:
    """The n at which an interval for a mean leaves −margin out with the chance ``POWER``.

    Args:
        half_width: with ``examples`` examples, on the side of −margin; shrinks with √n.
        error: the standard error with as many.
        distance: from the mean to −margin, above 0.
        examples: the number at hand.

    >>> mean_examples(0.2, 0.0, 0.1, 50), mean_examples(0.2, 0.1, 0.1, 50)
    (201, 404)
    """
    return math.floor(examples * ((half_width + _POWER_QUANTILE * error) / distance) ** 2) + 1


def crossed_need(
    parts: Crossed, distance: float, *, confidence: float, unseen_span: float = 0.0
) -> Need:
    """The smallest numbers at which a crossed interval leaves −margin out with that chance.

    Args:
        parts: the variance components seen.
        distance: from the estimate to −margin, above 0.
        confidence: of the two-sided interval.
        unseen_span: where above 0, the interval reaches ``unseen_span · unseen_reach`` at least.
    """

    def enough(seeds: int, examples: int) -> bool:
        reach = unseen_span * unseen_reach(examples, confidence=confidence)
        there = parts.predicted(seeds, examples)
        error = math.sqrt(there.variance)
        if reach + _POWER_QUANTILE * error >= distance:
            return False
        quantile = there.half_width(confidence) / error if error else 0.0
        return error == 0 or t_power(distance / error, quantile, there.freedom) >= POWER

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
