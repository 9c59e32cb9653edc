"""Required sample sizes: for any claim at a margin, and to settle an inconclusive verdict.

Tests: ``tests/verdict/test_sample_size.py``.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from statistics import NormalDist

from wua_mlflow.verdict.intervals import (
    Crossed,
    normal_quantile,
    restricted_mle_variance,
    t_power,
    zero_event_limit,
)

__all__ = [
    "POWER", "RANGE", "RequiredRange", "RequiredSampleSize", "check_share", "required_crossed",
    "required_examples_without_discordance", "required_mean", "required_range",
    "required_seeds_without_collapse", "required_tango", "required_zero_events",
    "share_factors", "too_few_examples", "variance_factors",
]


_LONGEST = 40
"""Characters of a wrong value that is shown as it is."""


def check_share(name: str, value: float, *, zero: bool) -> None:
    """Raise unless 0 < ``value`` < 1 (0 included if ``zero``)."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not (0 < value < 1 or (zero and value == 0)):
        got = " ".join(repr(value).split())
        raise ValueError(f"{name}: expected a number in {'[' if zero else '('}0, 1), but got "
                         f"{got if len(got) <= _LONGEST else type(value).__name__}")


def required_examples_without_discordance(margin: float, confidence: float = 0.95) -> int:
    """The fewest examples on which two models that never differ are shown non-inferior.

    Tango's lower limit without discordant pairs is −z²/(n + z²), so n > z²(1 − margin)/margin.

    Args:
        margin: in (0, 1), as a fraction.
        confidence: of the two-sided interval, in (0, 1).

    Raises:
        ValueError: an argument outside these.

    >>> required_examples_without_discordance(0.01)
    381
    """
    check_share("margin", margin, zero=False)
    check_share("confidence", confidence, zero=False)
    return required_zero_events(margin, span=1.0, confidence=confidence)


def required_seeds_without_collapse(share: float, confidence: float = 0.95) -> int:
    """The fewest seeds of which none collapses that show that at most ``share`` of all do.

    The exact upper limit of none in S is 1 − α^(1/S), α = (1 − confidence) ÷ 2.

    Args:
        share: in (0, 1).
        confidence: of the two-sided interval, in (0, 1).

    >>> required_seeds_without_collapse(0.1), required_seeds_without_collapse(0.2)
    (36, 17)
    """
    return math.ceil(math.log((1 - confidence) / 2) / math.log1p(-share))


def too_few_examples(examples: int, margin: float, confidence: float = 0.95) -> str | None:
    """Whether a test set is too small to show that two models that never differ are as good.

    Args:
        examples: in the test set.
        margin: in [0, 1), as a fraction.
        confidence: of the two-sided interval, in (0, 1).

    Returns:
        One line that says how large it must be; None where it is large enough.

    Raises:
        ValueError: an argument outside these.

    >>> too_few_examples(381, 0.01)
    >>> too_few_examples(300, 0.01).partition(", but got ")[2]
    '300; take more, or a margin of at least 0.0127'
    """
    check_share("margin", margin, zero=True)
    check_share("confidence", confidence, zero=False)
    if margin == 0:
        return ("margin: expected above 0, since at 0 no test set is large enough to show that two "
                "equal models are, but got 0")
    required = required_examples_without_discordance(margin, confidence)
    if examples >= required:
        return None
    reach = zero_event_limit(examples, confidence=confidence)
    digits = 2 - math.floor(math.log10(reach))
    return (f"test data: expected at least {required:,} examples to show even of equal models "
            f"that they are within a margin of {margin:g}, but got {examples:,}; take more, or a "
            f"margin of at least {math.ceil(reach * 10**digits) / 10**digits:g}")


POWER = 0.8
"""The chance that a verdict on so many is settled."""
_POWER_QUANTILE = NormalDist().inv_cdf(POWER)
_REALISTIC_FACTOR = 100
"""More than so many times the examples or seeds at hand are not offered."""


@dataclass(frozen=True)
class RequiredSampleSize:
    """Numbers that would settle a verdict; None where no realistic one would.

    ``seeds``: so many on the same examples; ``examples``: so many with the same seeds;
    ``both``: (seeds, examples), grown by the same factor.
    """

    seeds: int | None = None
    examples: int | None = None
    both: tuple[int, int] | None = None

    def of(self, kind: str) -> tuple[int, ...] | None:
        """The numbers of ``RequiredRange.kind``."""
        if kind == "both":
            return self.both
        number = self.seeds if kind == "seeds" else self.examples
        return None if number is None else (number,)


RANGE = 0.8
"""The confidence of the intervals at whose ends a range of required numbers lies."""


@dataclass(frozen=True)
class RequiredRange:
    """Between which numbers the one lies that would settle a verdict.

    Attributes:
        kind: of what: ``examples``, ``seeds`` (on the same examples) or ``both``, grown by the same
            factor.
        low: the lower number, one of each; of ``both`` seeds and examples.
        high: the upper one; None where no number is certain, as the true difference may be
            −margin.
        now: what there is.
        as_seen: the number if the true difference and its variance were as seen; None where that
            is no realistic one.
    """

    kind: str
    low: tuple[int, ...]
    high: tuple[int, ...] | None
    now: tuple[int, ...]
    as_seen: tuple[int, ...] | None = None


def required_tango(gained: float, lost: float, *, margin: float, confidence: float) -> int:
    """The n at which Tango's interval leaves −margin out with the chance ``POWER``.

    n > ((z · √variance if delta were −margin + z_power · √variance as seen) ÷ (delta + margin))²,
    the sample size of his score test (Nam 1997, Biometrics 53:1422). Where nothing differs it
    is certain: ``required_zero_events``.

    Args:
        gained: share of examples that only the candidate gets right.
        lost: share that only the baseline gets right; lost − gained differs from the margin.
        margin: as a fraction.
        confidence: of the two-sided interval.

    >>> required_tango(0.01, 0.02, margin=0.02, confidence=0.95)
    2629
    >>> required_tango(0.0, 0.0, margin=0.01, confidence=0.95)
    381
    """
    z = normal_quantile(confidence)
    distance = gained - lost + margin
    variance = gained + lost - (gained - lost) ** 2
    at_margin = restricted_mle_variance(-margin, gained, lost)
    spread = z * math.sqrt(at_margin) + _POWER_QUANTILE * math.sqrt(variance)
    return math.floor(spread**2 / distance**2) + 1


def required_zero_events(distance: float, *, span: float, confidence: float) -> int:
    """The smallest n at which ``span`` × ``zero_event_limit`` is below ``distance`` (above 0)."""
    z2 = normal_quantile(confidence) ** 2
    return max(0, math.floor(z2 * (span - distance) / distance)) + 1


def required_mean(half_width: float, error: float, distance: float, examples: int) -> int:
    """The n at which an interval for a mean leaves −margin out with the chance ``POWER``.

    Args:
        half_width: with ``examples`` examples, on the side of −margin; shrinks with √n.
        error: the standard error with as many.
        distance: from the mean to −margin, above 0.
        examples: the number at hand.

    >>> required_mean(0.2, 0.0, 0.1, 50), required_mean(0.2, 0.1, 0.1, 50)
    (201, 404)
    """
    return math.floor(examples * ((half_width + _POWER_QUANTILE * error) / distance) ** 2) + 1


def required_crossed(
    parts: Crossed, distance: float, *, confidence: float, unseen_span: float = 0.0
) -> RequiredSampleSize:
    """The smallest numbers at which a crossed interval leaves −margin out with that chance.

    Seeds are the candidate's; the baseline has as many, or as it has where that is more.

    Args:
        parts: the variance components seen.
        distance: from the estimate to −margin, above 0.
        confidence: of the two-sided interval.
        unseen_span: where above 0, the interval reaches at least ``unseen_span`` times
            ``zero_event_limit``.
    """

    now = parts.candidate.seeds

    def enough(seeds: int, examples: int) -> bool:
        reach = unseen_span * zero_event_limit(examples, confidence=confidence)
        there = parts.predicted(seeds, max(seeds, parts.baseline.seeds), examples)
        error = math.sqrt(there.variance)
        if reach + _POWER_QUANTILE * error >= distance:
            return False
        quantile = there.half_width(confidence) / error if error else 0.0
        return error == 0 or t_power(distance / error, quantile, there.freedom) >= POWER

    def grown(seeds: int) -> int:
        return math.ceil(parts.examples * seeds / now)

    def fewest(now: int, settles: Callable[[int], bool]) -> int | None:
        more = range(now + 1, _REALISTIC_FACTOR * now + 1)
        index = bisect_left(more, True, key=settles)
        return more[index] if index < len(more) else None

    both = fewest(now, lambda seeds: enough(seeds, grown(seeds)))
    return RequiredSampleSize(
        seeds=fewest(now, lambda seeds: enough(seeds, parts.examples)),
        examples=fewest(parts.examples, lambda examples: enough(now, examples)),
        both=(both, grown(both)) if both else None)


def required_range(
    required: Callable[[float, float], RequiredSampleSize], delta: float,
    ends: tuple[float, float], factors: tuple[float, float], *, margin: float,
    now: tuple[int, int],
) -> RequiredRange | None:
    """The numbers required at the ends of intervals of the difference and of its variance.

    Seeds are named where they alone would do, by what was seen; else examples, else both.

    Args:
        required: what a true difference and a factor on the variance seen would require.
        delta: the difference seen.
        ends: of the interval of the difference, at the confidence ``RANGE``.
        factors: of the variance over that seen, at the same.
        margin: of the verdict.
        now: seeds and examples at hand.

    Returns:
        None where even the end that is farther from −margin, at the lesser variance, requires more
        than 100 times what is at hand.
    """
    farther, nearer = sorted(ends, key=lambda end: -abs(end + margin))
    best, seen = required(farther, factors[0]), required(delta, 1.0)
    kind = next((kind for size in (seen, best) for kind in ("seeds", "examples", "both")
                 if size.of(kind)), None)
    low = best.of(kind) if kind else None
    if kind is None or low is None:
        return None
    certain = (ends[0] + margin) * (ends[1] + margin) > 0
    high = required(nearer, factors[1]).of(kind) if certain else None
    at_hand = {"seeds": now[:1], "examples": now[1:], "both": now}[kind]
    return RequiredRange(kind, low, high, at_hand, seen.of(kind))


def variance_factors(relative_error: float) -> tuple[float, float]:
    """The interval of a variance over that seen, its logarithm taken as normal.

    Args:
        relative_error: standard error of the estimated variance as a share of it.
    """
    z = normal_quantile(RANGE)
    return math.exp(-z * relative_error), math.exp(z * relative_error)


def share_factors(share: float, examples: int) -> tuple[float, float]:
    """The same of a share of ``examples`` (Wilson 1927), over that seen; above 0."""
    z2 = normal_quantile(RANGE) ** 2
    middle = share + z2 / (2 * examples)
    reach = math.sqrt(z2 * (share * (1 - share) / examples + z2 / (4 * examples**2)))
    scale = share * (1 + z2 / examples)
    return (middle - reach) / scale, (middle + reach) / scale
