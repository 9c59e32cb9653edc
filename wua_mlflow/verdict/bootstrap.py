"""The studentized bootstrap: the interval of a mean difference of scores that are not 0 or 1.

Tests: ``tests/verdict/test_bootstrap.py``; error rates: ``benchmarks/calibration.py``; large test
sets: ``benchmarks/bootstrap.py``.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from wua_mlflow.verdict.intervals import (
    UNSEEN,
    effective_examples,
    excess_spread,
    normal_quantile,
    t_quantile,
    variance_inflation,
)

__all__ = ["bootstrap_t_interval", "examples_stretch", "inflated_bootstrap_t"]


Floats = NDArray[np.float64]

_CHUNK_DRAWS = 2**16
"""Draws held in memory at once while resampling one by one: what a processor's cache holds."""

_ONE_BY_ONE = 1_024
"""Up to so many examples are drawn one by one; of more, how many fall into each cell."""

_ALONE, _CELLS = 256, 256
"""Cells of a single example, the outermost ones, and cells that the others share."""

_RESAMPLING = 7
"""``Purpose.RESAMPLING`` of ``rng.py``, which imports torch; this file does not."""


def inflated_bootstrap_t(
    differences: Floats, *, confidence: float, seed: int, resamples: int = 10_000,
    targets: Floats | None = None, unseen: float = UNSEEN,
) -> tuple[float, float]:
    """The farther of bootstrap-t and Student's t to either side, times √``variance_inflation``.

    On small test sets the bootstrap-t alone claims too much (``benchmarks/calibration.py``).

    Args:
        differences: shape (n,), n ≥ 2, finite.
        confidence: of the two-sided interval.
        seed: as in ``bootstrap_t_interval``.
        resamples: as there.
        targets: as there.
        unseen: how many examples like those that carry the spread may be unseen
            (``intervals.unseen_examples`` of a regression).

    Returns:
        The lower and the upper limit of the mean.
    """
    n, mean = differences.size, float(differences.mean())
    low, high = bootstrap_t_interval(
        differences, confidence=confidence, seed=seed, resamples=resamples, targets=targets)
    influences = _influences(differences, targets)
    student = t_quantile(confidence, n - 1) * float(influences.std(ddof=1)) / math.sqrt(n)
    factor = math.sqrt(variance_inflation(effective_examples(influences), unseen))
    return (mean - factor * max(mean - low, student), mean + factor * max(high - mean, student))


def bootstrap_t_interval(
    differences: Floats, *, confidence: float, seed: int, resamples: int = 10_000,
    targets: Floats | None = None,
) -> tuple[float, float]:
    """Studentized bootstrap interval for a mean (Efron & Tibshirani 1993, section 12.5).

    With ``targets`` for a difference of R², whose denominator is the variance of these very
    targets: each resample has a denominator of its own, and a standard error by the delta method
    (Hall 1992, section 2.4: a smooth function of means).

    Where so many resamples consist of one value that the quantile of t is infinite, the limit is
    the farther of Student's t limit and the smallest (largest) difference seen. Differences that
    are all equal give an interval of no width: see ``zero_event_limit`` for what that leaves open.

    Args:
        differences: shape (n,), n ≥ 2, finite.
        confidence: of the two-sided interval.
        seed: at least 0; the generator is ``default_rng([seed, Purpose.RESAMPLING])``.
        resamples: their number.
        targets: shape (n,), not all equal, where the differences are of scores 1 − squared error ÷
            the variance of these targets; None for any other mean.

    Returns:
        The lower and the upper limit of the mean.

    >>> values = np.array([0.1, -0.2, 0.4, 0.0, 0.3, -0.1, 0.2, 0.1])
    >>> low, high = bootstrap_t_interval(values, confidence=0.95, seed=0)
    >>> bool(low < values.mean() < high)
    True
    """
    n, mean = differences.size, float(differences.mean())
    influences = _influences(differences, targets)
    deviation = float(influences.std(ddof=1))
    if deviation <= 1e-12 * float(np.abs(differences).max()):
        return mean, mean
    rng = np.random.default_rng([seed, _RESAMPLING])
    standardized = (differences - mean) / deviation
    if targets is None:
        t = _resampled_t(standardized, resamples, rng)
    else:
        t = _resampled_t_of_r2(standardized, mean / deviation, targets, resamples, rng)
    t.sort()
    tail = max(0, math.floor((resamples + 1) * (1 - confidence) / 2) - 1)
    error = deviation / math.sqrt(n)
    low, high = mean - float(t[-1 - tail]) * error, mean - float(t[tail]) * error
    reach = t_quantile(confidence, n - 1) * error
    if not math.isfinite(low):
        low = min(float(differences.min()), mean - reach)
    if not math.isfinite(high):
        high = max(float(differences.max()), mean + reach)
    return low, high


def examples_stretch(
    differences: Floats, targets: Floats, *, confidence: float, seed: int, resamples: int = 10_000
) -> tuple[float, float]:
    """How much farther than a normal quantile the bootstrap-t reaches, to either side.

    Args:
        differences: of R², the examples' means over seeds, shape (n,).
        targets: as in ``bootstrap_t_interval``.
        confidence: as there.
        seed: as there.
        resamples: as there.

    Returns:
        Factors of at least 1, below the mean and above it.
    """
    mean = float(differences.mean())
    low, high = bootstrap_t_interval(
        differences, confidence=confidence, seed=seed, resamples=resamples, targets=targets)
    deviation = float(_influences(differences, targets).std(ddof=1))
    usual = normal_quantile(confidence) * deviation / math.sqrt(differences.size)
    if not usual:
        return 1.0, 1.0
    return max(1.0, (mean - low) / usual), max(1.0, (high - mean) / usual)


def _influences(differences: Floats, targets: Floats | None) -> Floats:
    """What each example adds to the mean; of R² with what it adds to the targets' variance."""
    if targets is None:
        return differences
    return np.asarray(differences - differences.mean() * excess_spread(targets))


def _resampled_t(standardized: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """t of each resample of values with mean 0; ±inf where a resample has no spread."""
    columns = np.stack([standardized, np.square(standardized)], axis=1)
    means, squares = _resampled_means(columns, standardized, resamples, rng).T
    return _ratio(means, squares - means**2, squares, standardized.size)


def _resampled_t_of_r2(
    standardized: Floats, mean: float, targets: Floats, resamples: int, rng: np.random.Generator
) -> Floats:
    """t of each resample's difference of R².

    Args:
        standardized: differences d less their mean, shape (n,).
        mean: of d, in the same unit.
        targets: shape (n,).
        resamples: their number.
        rng: draws.

    With u = (y − ȳ)/√v, means in a resample and m that of u, V = mean(u²) − m²: the difference is
    D = mean(d)/V, and its influence (d − D·(u − m)²)/V up to a constant.
    """
    d = standardized
    u = (targets - targets.mean()) / targets.std()
    columns = np.stack([d, d * d, u, u**2, u**3, u**4, d * u, d * u**2], axis=1)
    order = d - mean * u**2
    d1, d2, m, u2, u3, u4, du, du2 = _resampled_means(columns, order, resamples, rng).T
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = u2 - m**2
        difference = (d1 + mean) / spread
        with_squares = du2 - d1 * u2 - 2 * m * (du - d1 * m)
        of_squares = u4 - u2**2 - 4 * m * (u3 - u2 * m) + 4 * m**2 * spread
        variance = d2 - d1**2 - 2 * difference * with_squares + difference**2 * of_squares
        size = d2 + difference**2 * u4
        return _ratio(difference - mean, variance / spread**2, size / spread**2, len(d))


def _ratio(deviation: Floats, variance: Floats, size: Floats, examples: int) -> Floats:
    """Deviation ÷ standard error; ±inf where the variance is 0 beside its terms' ``size``."""
    variance = np.where(variance < 1e-12 * size, 0.0, variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = deviation / np.sqrt(variance / (examples - 1))
    return np.asarray(np.nan_to_num(t, nan=0.0, posinf=np.inf, neginf=-np.inf))


def _resampled_means(
    columns: Floats, order: Floats, resamples: int, rng: np.random.Generator
) -> Floats:
    """The columns' means in each resample of the rows, with replacement; shape (resamples, k).

    Args:
        columns: shape (n, k).
        order: shape (n,), by which rows are alike: the value that is averaged.
        resamples: their number.
        rng: draws.
    """
    n = len(columns)
    if n > _ONE_BY_ONE:
        return _means_by_cells(columns, order, resamples, rng)
    rows = max(1, _CHUNK_DRAWS // n)
    chunks = []
    for start in range(0, resamples, rows):
        now = min(rows, resamples - start)
        picks = rng.integers(n, size=(now, n)) + n * np.arange(now)[:, None]
        times = np.bincount(picks.reshape(-1), minlength=now * n).reshape(now, n)
        chunks.append(times.astype(np.float64) @ columns / n)
    return np.concatenate(chunks)


def _means_by_cells(
    columns: Floats, order: Floats, resamples: int, rng: np.random.Generator
) -> Floats:
    """The same at a cost that does not grow with n: how many of the n draws fall into each cell.

    These numbers are multinomial. The rows that weigh most in any column's sum of squares have a
    cell each; the others share cells of neighbours by ``order``, and what they differ by within
    their cells is added as a normal variable of the same covariance. So a resample's sums have
    exactly the first two moments of those that are drawn one by one.
    """
    n = len(columns)
    weight = np.max(np.square(columns) / np.square(columns).sum(axis=0), axis=1)
    by_weight = np.argpartition(weight, n - _ALONE)
    shared, alone = np.sort(by_weight[:-_ALONE]), by_weight[-_ALONE:]
    shared = shared[np.argsort(order[shared], kind="stable")]
    starts = np.linspace(0, len(shared), _CELLS, endpoint=False).astype(int)
    sizes = np.diff(starts, append=len(shared))
    means = np.add.reduceat(columns[shared], starts) / sizes[:, None]
    within = np.linalg.qr(columns[shared] - np.repeat(means, sizes, axis=0), mode="r")
    members = np.concatenate([np.ones(_ALONE), sizes])
    times = rng.multinomial(n, members / n, size=resamples)
    drawn = times @ np.concatenate([columns[alone], means])
    return np.asarray(drawn + rng.normal(size=(resamples, columns.shape[1])) @ within) / n
