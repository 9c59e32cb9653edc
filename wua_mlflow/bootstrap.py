"""The studentized bootstrap interval, for scores of one model pair that are not 0 or 1.

May import: numpy, ``intervals``. Tests: ``tests/test_intervals.py``; error rates:
``benchmarks/calibration.py``.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from wua_mlflow.intervals import carriers, t_quantile, unseen_factor

__all__ = ["bootstrap_t_interval", "widened_interval"]

Floats = NDArray[np.float64]

_CHUNK_DRAWS = 2**21
"""Draws held in memory at once while resampling: about 40 MB."""

_TOTAL_DRAWS = 10**9
"""Above this many draws the number of resamples is lowered, to no fewer than 1,000."""

_RESAMPLING = 7
"""``Purpose.RESAMPLING`` of ``randomness.py``, which imports torch; this file does not."""


def widened_interval(
    differences: Floats, *, confidence: float, seed: int, resamples: int = 10_000
) -> tuple[float, float]:
    """The farther of bootstrap-t and Student's t to either side, times √``unseen_factor``.

    On small test sets the bootstrap-t alone claims too much (``benchmarks/calibration.py``).

    Args:
        differences: shape (n,), n ≥ 2, finite.
        confidence: of the two-sided interval.
        seed: as in ``bootstrap_t_interval``.
        resamples: as there.

    Returns:
        The lower and the upper limit of the mean.
    """
    n, mean = differences.size, float(differences.mean())
    low, high = bootstrap_t_interval(
        differences, confidence=confidence, seed=seed, resamples=resamples)
    student = t_quantile(confidence, n - 1) * float(differences.std(ddof=1)) / math.sqrt(n)
    factor = math.sqrt(unseen_factor(carriers(differences)))
    return (mean - factor * max(mean - low, student), mean + factor * max(high - mean, student))


def bootstrap_t_interval(
    differences: Floats, *, confidence: float, seed: int, resamples: int = 10_000
) -> tuple[float, float]:
    """Studentized bootstrap interval for a mean (Efron & Tibshirani 1993, section 12.5).

    Where so many resamples consist of one value that the quantile of t is infinite, the limit is
    the farther of Student's t limit and the smallest (largest) difference seen. Differences that
    are all equal give an interval of no width: see ``unseen_reach`` for what that leaves open.

    Args:
        differences: shape (n,), n ≥ 2, finite.
        confidence: of the two-sided interval.
        seed: at least 0; the generator is ``default_rng([seed, Purpose.RESAMPLING])``.
        resamples: lowered so that n · resamples stays near 10⁹, to 1,000 at the least.

    Returns:
        The lower and the upper limit of the mean.

    >>> values = np.array([0.1, -0.2, 0.4, 0.0, 0.3, -0.1, 0.2, 0.1])
    >>> low, high = bootstrap_t_interval(values, confidence=0.95, seed=0)
    >>> bool(low < values.mean() < high)
    True
    """
    n = differences.size
    mean, deviation = float(differences.mean()), float(differences.std(ddof=1))
    if deviation <= 1e-12 * float(np.abs(differences).max()):
        return mean, mean
    resamples = max(min(resamples, 1_000), min(resamples, _TOTAL_DRAWS // n))
    rng = np.random.default_rng([seed, _RESAMPLING])
    t = np.sort(_resampled_t((differences - mean) / deviation, resamples, rng))
    tail = max(0, math.floor((resamples + 1) * (1 - confidence) / 2) - 1)
    error = deviation / math.sqrt(n)
    low, high = mean - float(t[-1 - tail]) * error, mean - float(t[tail]) * error
    reach = t_quantile(confidence, n - 1) * error
    if not math.isfinite(low):
        low = min(float(differences.min()), mean - reach)
    if not math.isfinite(high):
        high = max(float(differences.max()), mean + reach)
    return low, high


def _resampled_t(standardized: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """t of each resample of values with mean 0; ±inf where a resample has no spread."""
    n = standardized.size
    rows = max(1, _CHUNK_DRAWS // n)
    chunks = []
    for start in range(0, resamples, rows):
        picks = rng.integers(n, size=(min(rows, resamples - start), n), dtype=np.int32)
        values = standardized[picks]
        means = values.mean(axis=1)
        squares = np.einsum("ij,ij->i", values, values) / n
        spread = squares - means**2
        spread[spread < 1e-12 * squares] = 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            t = means / np.sqrt(spread / (n - 1))
        chunks.append(np.nan_to_num(t, nan=0.0, posinf=np.inf, neginf=-np.inf))
    return np.concatenate(chunks)
