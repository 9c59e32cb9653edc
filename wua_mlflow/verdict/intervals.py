"""Confidence intervals for the mean of a paired difference, candidate minus baseline.

Of 0/1 scores (Tango) and of seeds crossed with examples; of other scores: ``bootstrap.py``.
Tests: ``tests/verdict/test_intervals.py``; error rates: ``benchmarks/calibration.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "UNSEEN", "Crossed", "SideVariance", "collapse_limits", "collapsed_seeds", "crossed",
    "effective_examples", "excess_spread", "linearized_r2", "normal_quantile",
    "restricted_mle_variance", "score_range", "t_power", "t_quantile", "tango_interval",
    "unseen_examples", "variance_inflation", "zero_event_limit",
]


Floats = NDArray[np.float64]

_FEW = 5
"""With fewer differing examples, what may have gone unseen bounds the interval."""

UNSEEN = 3.0
"""So many examples like those that carry the spread may be unseen (``benchmarks/``)."""

_UNEVEN = 0.9
"""Errors are uneven whose kurtosis is above this share of that of as many normal ones."""

_SAME = 1e-6
"""Differences up to this share of the scores' span count as none: rounding of float32."""


def normal_quantile(confidence: float) -> float:
    """z such that a standard normal lies within ±z with probability ``confidence``."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def t_quantile(confidence: float, freedom: float) -> float:
    """The same for Student's t with ``freedom`` degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + confidence) / 2))


def t_power(ratio: float, quantile: float, freedom: float) -> float:
    """The chance that an interval leaves a point out on the side of the truth.

    The interval is the estimate ± ``quantile`` · its estimated standard error: noncentral t.

    Args:
        ratio: distance of the truth from the point, in standard errors.
        quantile: above 0.
        freedom: degrees of freedom of the estimated variance.

    >>> round(t_power(2.0, 2.093, 19), 2), round(t_power(0.0, 2.093, 19), 3)
    (0.48, 0.025)
    """
    from scipy.special import nctdtr

    return 1 - float(nctdtr(freedom, ratio, quantile))


def effective_examples(values: Floats) -> float:
    """How many of the values carry their spread: (Σe²)² ÷ Σe⁴ of the deviations e from the mean.

    n ÷ 3 of n normal ones, m of m equal ones that stand out from many more others; 1 where none
    deviates.

    >>> round(effective_examples(np.repeat([0.0, 1.0], [997, 3])), 1)
    3.0
    """
    squares = np.square(values - values.mean())
    fourth = float(squares @ squares)
    return float(squares.sum()) ** 2 / fourth if fourth > 0 else 1.0


def variance_inflation(carried_by: float, unseen: float = UNSEEN) -> float:
    """What a variance is multiplied by, since examples like those that carry it may be unseen.

    1 + 3/k: as if three more such had turned up. A spread that few examples carry is
    underestimated just where few of them were drawn, which is where the mean is too good.
    """
    return 1 + unseen / carried_by


def unseen_examples(scores: Floats) -> float:
    """How many examples like those that carry the spread may be unseen, of a regression.

    3 of ordinary errors; 6 + 500/n where they are uneven: where the kurtosis n·Σe⁴ ÷ (Σe²)² of the
    networks' errors e, their mean, is above 0.9 times that of n normal ones, 3(n − 1) ÷ (n + 1)
    (by simulation: ``benchmarks/uneven.py``).

    Args:
        scores: 1 − squared error ÷ a constant, shape (networks, n).
    """
    squares, n = 1 - scores, scores.shape[1]
    totals = squares.sum(axis=1)
    fourths = np.square(squares).sum(axis=1)[totals > 0]
    kurtosis = n * float((fourths / np.square(totals[totals > 0])).mean()) if fourths.size else 0.0
    return 6 + 500 / n if kurtosis > _UNEVEN * 3 * (n - 1) / (n + 1) else UNSEEN


def excess_spread(targets: Floats) -> Floats:
    """What each target adds to the targets' variance v, as a share of it: (y − ȳ)²/v − 1.

    >>> excess_spread(np.array([0.0, 1.0, 2.0])).round(2).tolist()
    [0.5, -1.0, 0.5]
    """
    squares = np.square(targets - targets.mean())
    return np.asarray(squares / squares.mean() - 1)


def linearized_r2(scores: Floats, targets: Floats) -> Floats:
    """Scores 1 − squared error ÷ v with the influence that each example has through v; same means.

    Args:
        scores: shape (n,) or (S, n).
        targets: shape (n,), whose variance is v.
    """
    means = scores.mean(axis=-1, keepdims=True)
    return np.asarray(scores + (1 - means) * excess_spread(targets))


def tango_interval(
    gained: float, lost: float, examples: int, *, confidence: float
) -> tuple[float, float]:
    """Tango's score interval for the difference of two paired proportions.

    The limits are the differences at which the score statistic, its variance taken at the
    constrained maximum likelihood, equals ±z (Tango 1998, Statistics in Medicine 17:891, eq. 6-8).
    Right also without discordant pairs: ±z²/(n + z²) then.

    Args:
        gained: examples that only the candidate gets right.
        lost: examples that only the baseline gets right.
        examples: all examples.
        confidence: of the two-sided interval.

    Returns:
        The lower and the upper limit of (gained − lost) / examples, within [−1, 1].

    >>> [round(limit, 3) for limit in tango_interval(9, 3, 32, confidence=0.95)]
    [-0.027, 0.39]
    """
    z, gained, lost = normal_quantile(confidence), gained / examples, lost / examples
    return _tango_low(gained, lost, examples, z), -_tango_low(lost, gained, examples, z)


def restricted_mle_variance(delta: float, gained: float, lost: float) -> float:
    """Variance of one difference if its mean were ``delta``, by constrained likelihood.

    ``gained`` and ``lost`` are shares. The estimate q of the probability of "lost" is the larger
    root of 2q² + bq + c; it is written so that nothing cancels.
    """
    b = -gained - lost + (2 - gained + lost) * delta
    c = -lost * delta * (1 - delta)
    root = math.sqrt(max(b * b - 8 * c, 0.0))
    q = -2 * c / (b + root) if b > 0 else (root - b) / 4
    return 2 * q + delta * (1 - delta)


def zero_event_limit(examples: int, *, confidence: float) -> float:
    """The share of examples that may differ though none of ``examples`` did: z²/(n + z²).

    It is the limit of Tango's (and of Wilson's) interval for no event in n.
    """
    z2 = normal_quantile(confidence) ** 2
    return z2 / (examples + z2)


def score_range(
    old: Floats, new: Floats, moved: NDArray[np.bool_] | None = None
) -> tuple[float, float, bool]:
    """How much a single example could change the difference, and whether that matters.

    Args:
        old: the baseline's scores, shape (n,) or (S, n).
        new: the candidate's, of the same examples; with seeds of its own, if any.
        moved: shape (n,), the examples that may count as different. None for all: but where scores
            are influences, one prediction that differs moves those of all examples.

    Returns:
        The scores' span (at least 1, the span of right and wrong); the same where fewer than five
        examples differ from the typical one in their mean difference, else 0: times
        ``zero_event_limit`` this is the least that an interval must reach; whether no score
        differs at all.

    >>> score_range(np.array([0.5, 0.25, 0.125]), np.array([0.5, 0.25, 0.25]))
    (1.0, 1.0, False)
    """
    span = max(1.0, float(max(old.max(), new.max()) - min(old.min(), new.min())))
    old, new = np.atleast_2d(old), np.atleast_2d(new)
    by_example = new.mean(axis=0) - old.mean(axis=0)
    apart = np.abs(by_example - np.median(by_example)) > _SAME * span
    differing = int((apart if moved is None else apart & moved).sum())
    same = float((np.maximum(old.max(0), new.max(0)) - np.minimum(old.min(0), new.min(0))).max()) \
        <= _SAME * span
    return span, span if differing < _FEW else 0.0, same


@dataclass(frozen=True)
class SideVariance:
    """How one side's scores x[seed, example] spread.

    ``seed_means_variance``: sample variance of the means of the S seeds, which estimates
    σ²_seed + σ²_γ/n; ``residual_variance``: interaction mean square, (S − 1)(n − 1) degrees of
    freedom, σ²_γ. Both are 0 of a single network, which is given and no draw.
    """

    seeds: int
    seed_means_variance: float = 0.0
    residual_variance: float = 0.0

    def predicted(self, seeds: int, now: int, examples: int) -> SideVariance:
        """The same side with other numbers of seeds and examples (``now`` are at hand)."""
        between = max(0.0, self.seed_means_variance - self.residual_variance / now)
        return replace(self, seeds=seeds if self.seeds > 1 else 1,
                       seed_means_variance=between + self.residual_variance / examples)


@dataclass(frozen=True)
class Crossed:
    """Variance of a difference of means, candidate minus baseline: own seeds, the same examples.

    The seeds of the two sides are unpaired draws, each crossed with the examples; the examples are
    paired. ``example_means_variance`` is the sample variance of the n differences of the examples'
    means. ``carried_by``: how many examples carry it (``effective_examples``); ``unseen``: how many
    more like these there may be. ``stretch``: how much farther than normally the examples' part
    reaches to one side (``bootstrap.examples_stretch``), of R².
    """

    mean: float
    candidate: SideVariance
    baseline: SideVariance
    examples: int
    example_means_variance: float
    carried_by: float = math.inf
    unseen: float = UNSEEN
    stretch: float = 1.0

    @property
    def variance(self) -> float:
        """Of the mean: R + C − E, never below R nor C.

        R = Σ s²/S over the sides, C = s²_D/n, E = Σ r²/(S·n): the interaction of seeds and examples
        is in R and in C, so it is taken off once (Owen 2007, arXiv:0712.1111; Owen & Eckles 2012,
        arXiv:1106.2125).
        """
        return self._variance(1.0)

    def half_width(self, confidence: float) -> float:
        """Of the interval around the mean: t · √variance, t with ``freedom``.

        Never below z · √variance with C multiplied by ``variance_inflation`` · ``stretch``²: with
        many seeds and few examples t does not account for how uncertain C is.
        """
        widened = self._variance(
            self.stretch**2 * variance_inflation(self.carried_by, self.unseen))
        return max(t_quantile(confidence, self.freedom) * math.sqrt(self.variance),
                   normal_quantile(confidence) * math.sqrt(widened))

    @property
    def _sides(self) -> tuple[SideVariance, ...]:
        return tuple(side for side in (self.candidate, self.baseline) if side.seeds > 1)

    def _variance(self, factor: float) -> float:
        seeds = sum(side.seed_means_variance / side.seeds for side in self._sides)
        examples = factor * self.example_means_variance / self.examples
        shared = sum(side.residual_variance / (side.seeds * self.examples) for side in self._sides)
        return max(seeds + examples - shared, seeds, examples)

    @property
    def freedom(self) -> float:
        """Degrees of freedom of ``variance``, by Satterthwaite (1946), from its parts.

        Where the sides have different numbers of seeds their parts are one, with the degrees of
        the side with fewer: the plain rule claims too much there.
        """
        parts = [(side.seed_means_variance / side.seeds, side.seeds - 1) for side in self._sides]
        if len({degrees for _, degrees in parts}) > 1:
            parts = [(sum(part for part, _ in parts), min(degrees for _, degrees in parts))]
        parts.append((self.example_means_variance / self.examples, self.examples - 1))
        spread = sum(part**2 / degrees for part, degrees in parts)
        return self.variance**2 / spread if spread else float(parts[0][1])

    def predicted(self, candidate: int, baseline: int, examples: int) -> Crossed:
        """What other numbers of seeds and examples would show, the components staying as seen."""
        residual = sum(side.residual_variance / side.seeds for side in self._sides)
        between = max(0.0, self.example_means_variance - residual)
        sides = [side.predicted(seeds, self.examples, examples)
                 for side, seeds in ((self.candidate, candidate), (self.baseline, baseline))]
        residual = sum(side.residual_variance / side.seeds for side in sides)
        return replace(self, candidate=sides[0], baseline=sides[1], examples=examples,
                       example_means_variance=between + residual,
                       carried_by=self.carried_by * examples / self.examples)


def crossed(baseline: Floats, candidate: Floats, *, targets: Floats | None = None) -> Crossed:
    """The parts of the variance of mean(candidate) − mean(baseline).

    Args:
        baseline: scores, shape (S, n), n ≥ 2; S = 1 is one given network.
        candidate: the same of n the same examples, with seeds of its own.
        targets: shape (n,), where the scores are 1 − squared error ÷ the variance of these
            targets, which is then of the same draw of examples.

    >>> parts = crossed(np.array([[0.0, 0.0, 0.0]]), np.array([[0.0, 1.0, 2.0], [1.0, 2.0, 3.0]]))
    >>> parts.mean, parts.candidate.seed_means_variance, parts.example_means_variance
    (1.5, 0.5, 1.0)
    >>> parts.candidate.residual_variance, parts.baseline.seed_means_variance
    (0.0, 0.0)
    """
    unseen = UNSEEN
    if targets is not None:
        unseen = unseen_examples(np.concatenate([baseline, candidate]))
        baseline, candidate = (linearized_r2(side, targets) for side in (baseline, candidate))
    differences = candidate.mean(axis=0) - baseline.mean(axis=0)
    return Crossed(
        mean=float(differences.mean()), candidate=_side(candidate), baseline=_side(baseline),
        examples=differences.size, example_means_variance=float(differences.var(ddof=1)),
        carried_by=effective_examples(differences), unseen=unseen)


def _side(scores: Floats) -> SideVariance:
    seeds, examples = scores.shape
    if seeds == 1:
        return SideVariance(1)
    rows, columns = scores.mean(axis=1), scores.mean(axis=0)
    residual = scores - rows[:, None] - columns[None, :] + rows.mean()
    return SideVariance(seeds, float(rows.var(ddof=1)),
                        float(np.square(residual).sum()) / ((seeds - 1) * (examples - 1)))


_MARGINS, _DEVIATIONS = 3, 5
"""A seed has collapsed that lies this far below: margins, and robust standard deviations."""


def collapsed_seeds(
    scores: Floats, margin: float, typical: Floats | None = None
) -> NDArray[np.bool_]:
    """Which seeds have collapsed: far below their own side's median, shape (S,).

    Farther than three margins, and than five standard deviations as the median absolute deviation
    gives them (× 1.4826). At a margin of 0 none has.

    Args:
        scores: shape (S, n).
        margin: the loss that is accepted, in the scores' unit.
        typical: networks whose median and deviation are taken, shape (S', n); ``scores``, if None.

    >>> collapsed_seeds(np.array([[0.99], [0.5], [0.98], [0.99], [0.98]]), 0.02).tolist()
    [False, True, False, False, False]
    """
    means = scores.mean(axis=1)
    among = means if typical is None else typical.mean(axis=1)
    below = np.median(among) - means
    deviation = 1.4826 * float(np.median(np.abs(among - np.median(among))))
    return np.asarray((below > max(_MARGINS * margin, _DEVIATIONS * deviation)) & (margin > 0))


def collapse_limits(collapsed: int, seeds: int, *, confidence: float) -> tuple[float, float]:
    """The exact interval of the share of seeds that collapse (Clopper & Pearson 1934).

    Of none in S the upper limit is 1 − α^(1/S), α = (1 − confidence) ÷ 2.

    >>> [round(collapse_limits(0, seeds, confidence=0.95)[1], 2) for seeds in (5, 10, 20)]
    [0.52, 0.31, 0.17]
    """
    alpha = (1 - confidence) / 2
    if not collapsed:
        return 0.0, 1 - alpha ** (1 / seeds)
    from scipy.special import betaincinv

    low = float(betaincinv(collapsed, seeds - collapsed + 1, alpha))
    high = float(betaincinv(collapsed + 1, seeds - collapsed, 1 - alpha)) \
        if collapsed < seeds else 1.0
    return low, high


def _tango_low(gained: float, lost: float, examples: int, z: float) -> float:
    """The lower limit by bisection: below it the statistic exceeds z, between it and delta not."""
    delta = gained - lost
    low, high = -1.0, delta
    for _ in range(60):
        middle = (low + high) / 2
        variance = max(restricted_mle_variance(middle, gained, lost), 0.0)
        if delta - middle > z * math.sqrt(variance / examples):
            low = middle
        else:
            high = middle
    return (low + high) / 2
