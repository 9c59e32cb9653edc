"""The bootstrap-t, one by one and by cells.

References: exhaustive resampling, scipy, resampling one by one.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from wua_mlflow.rng import Purpose
from wua_mlflow.verdict import bootstrap, intervals


def student(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    return tuple(stats.ttest_1samp(values, 0).confidence_interval(confidence))


def test_bootstrap_t_takes_the_quantiles_of_all_resamples():
    values = np.array([-0.3, 0.1, 0.15, 0.4, 1.1, 0.05])
    low, high = bootstrap.bootstrap_t_interval(values, confidence=0.9, seed=3)
    resamples = np.array(list(itertools.product(values, repeat=6)))
    spreads = np.where(np.ptp(resamples, axis=1) > 0, resamples.std(axis=1, ddof=1), 1e-300)
    t = (resamples.mean(axis=1) - values.mean()) / spreads * math.sqrt(6)
    error = values.std(ddof=1) / math.sqrt(6)
    # 10,000 draws: the share of a 5% tail has a standard deviation of 0.0022
    assert np.mean(t > (values.mean() - low) / error) == pytest.approx(0.05, abs=0.01)
    assert np.mean(t < (values.mean() - high) / error) == pytest.approx(0.05, abs=0.01)


def test_bootstrap_t_covers_the_mean_of_a_skewed_distribution():
    rng, covered = np.random.default_rng(5), []
    for trial in range(250):
        low, high = bootstrap.bootstrap_t_interval(
            1 - rng.exponential(size=40), confidence=0.95, seed=trial, resamples=999)
        covered.append(low <= 0 <= high)
    assert 0.92 < np.mean(covered) < 0.98


def test_bootstrap_t_is_antisymmetric_equivariant_and_the_same_in_chunks(monkeypatch):
    values = np.random.default_rng(2).gamma(2.0, size=50)

    def interval(of: np.ndarray) -> tuple[float, float]:
        return bootstrap.bootstrap_t_interval(of, confidence=0.95, seed=4)

    low, high = interval(values)
    assert interval(-values) == pytest.approx((-high, -low))
    assert interval(0.01 * values - 3) == pytest.approx((0.01 * low - 3, 0.01 * high - 3))
    monkeypatch.setattr(bootstrap, "_CHUNK_DRAWS", 500)
    assert interval(values) == pytest.approx((low, high), rel=1e-12)
    assert bootstrap._RESAMPLING == Purpose.RESAMPLING


def test_bootstrap_t_stays_finite_and_wide_where_resamples_have_no_spread():
    values = np.zeros(100)
    values[7] = -0.5
    low, high = bootstrap.bootstrap_t_interval(values, confidence=0.95, seed=0)
    assert low == -0.5
    assert student(values)[0] < high <= student(values)[1]
    pair = np.array([0.1, 0.3])
    assert bootstrap.bootstrap_t_interval(pair, confidence=0.95, seed=0) == pytest.approx(
        student(pair), rel=1e-9)


@pytest.mark.parametrize("confidence", [0.95, 1 - 0.05 / 5000])
def test_bootstrap_interval_is_widened_and_never_narrower_than_students(confidence):
    """At 1 − 0.05/5000 two of 10,000 resamples would have to lie further out."""
    values = 1 - np.random.default_rng(5).exponential(size=30)
    low, high = bootstrap.bootstrap_t_interval(values, confidence=confidence, seed=0)
    deviations = values - values.mean()
    factor = math.sqrt(1 + 3 * np.sum(deviations**4) / np.sum(deviations**2) ** 2)
    theory = student(values, confidence)
    farther = min(low, theory[0]) - values.mean(), max(high, theory[1]) - values.mean()
    assert (low < theory[0]) == (confidence == 0.95) and high < theory[1]
    interval = bootstrap.inflated_bootstrap_t(values, confidence=confidence, seed=0)
    assert interval == pytest.approx([values.mean() + factor * side for side in farther])


def sorted_t(values: np.ndarray, seed: int) -> np.ndarray:
    standardized = (values - values.mean()) / values.std(ddof=1)
    t = bootstrap._resampled_t(standardized, 3_000, np.random.default_rng(seed))
    return np.sort(t.round(9))  # counts of a few values tie but for rounding


@pytest.mark.parametrize("draw", [
    lambda rng: rng.normal(size=3_000),
    lambda rng: rng.normal(size=3_000) * rng.lognormal(0, 0.8, 3_000) ** 2,
    lambda rng: -rng.lognormal(0, 1.2, 3_000),
    lambda rng: -1.0 * (rng.random(3_000) < 0.01),
], ids=["normal", "uneven", "log-normal", "one in a hundred"])
def test_cells_and_one_by_one_resample_alike(draw, monkeypatch):
    """t of 3,000 resamples each: Kolmogorov-Smirnov, and the 2.5% tails within 4 standard errors.

    One of the four kinds in 100 such tests may fail by chance; the seeds are fixed.
    """
    values = draw(np.random.default_rng(0))
    cells = sorted_t(values, 1)
    monkeypatch.setattr(bootstrap, "_ONE_BY_ONE", 3_000)
    single = sorted_t(values, 2)
    assert stats.ks_2samp(cells, single).pvalue > 0.01
    for share in (0.025, 0.975):
        assert np.mean(cells < np.quantile(single, share)) == pytest.approx(share, abs=0.016)


def test_sums_by_cells_have_the_moments_of_those_drawn_one_by_one():
    """Of n draws with replacement: mean those of the rows, covariance that of the rows ÷ n."""
    rng = np.random.default_rng(3)
    values = rng.standard_t(5, size=4_000)
    columns = np.stack([values, values**2, rng.normal(size=4_000)], axis=1)
    means = bootstrap._resampled_means(columns, values, 4_000, rng)
    covariance = np.cov(columns.T, bias=True) / 4_000
    errors = np.sqrt(np.diag(covariance))
    assert np.abs((means.mean(axis=0) - columns.mean(axis=0)) / errors).max() < 4 / 4_000**0.5
    found = np.cov(means.T) / np.outer(errors, errors)
    assert found == pytest.approx(covariance / np.outer(errors, errors), abs=0.09)


@pytest.mark.parametrize(("examples", "most"), [(1_000, 100 * 1_000), (5_000, 100 * 514),
                                                (200_000, 100 * 514)])
def test_the_number_of_draws_does_not_grow_with_the_examples(examples, most, monkeypatch):
    """Of 100 resamples: a number for each cell and two normal ones; one by one, one an example."""
    made, drawn = np.random.default_rng, []

    class Counting:
        def __init__(self, seed):
            self.rng = made(seed)

        def __getattr__(self, name):
            def draw(*args, size, **kwargs):
                numbers = getattr(self.rng, name)(*args, size=size, **kwargs)
                drawn.append(numbers.size)
                return numbers
            return draw

    values = made(0).normal(size=examples)
    monkeypatch.setattr(np.random, "default_rng", Counting)
    bootstrap.bootstrap_t_interval(values, confidence=0.9, seed=0, resamples=100)
    assert sum(drawn) == most


def r2_difference(targets, old_errors, new_errors):
    """By scikit-learn's definition."""
    total = np.square(targets - targets.mean()).sum()
    return (np.square(old_errors).sum() - np.square(new_errors).sum()) / total


def regression(n, seed=0):
    """Targets with a heavy tail, and the errors of two models."""
    rng = np.random.default_rng(seed)
    targets, errors = 3 + 2 * rng.standard_t(4, n), rng.normal(size=(2, n))
    return targets, errors[0], 1.2 * (0.8 * errors[0] + 0.6 * errors[1])


def test_r2_is_linearised_anew_in_every_resample(monkeypatch):
    """t of each resample by a loop: R² anew, its standard error from leaving out each example."""
    targets, old, new = regression(25)
    differences = (old**2 - new**2) / targets.var()
    picks = np.random.default_rng(7).integers(25, size=(40, 25))
    delta, expected = r2_difference(targets, old, new), []
    for rows in picks:
        y, a, b = targets[rows], old[rows], new[rows]
        d = (a**2 - b**2) / y.var()
        influences = d - d.mean() * (np.square(y - y.mean()) / y.var() - 1)
        expected.append((r2_difference(y, a, b) - delta) / (influences.std(ddof=1) / 5))
    scale = (differences - delta * intervals.excess_spread(targets)).std(ddof=1)
    found = bootstrap._resampled_t_of_r2(
        (differences - delta) / scale, delta / scale, targets, 40, np.random.default_rng(7))
    assert found == pytest.approx(expected)
    leave_one_out = [r2_difference(*(np.delete(each, i) for each in (y, a, b))) for i in range(25)]
    jackknife = (d.mean() - np.array(leave_one_out)) * 24
    assert np.corrcoef(jackknife, influences)[0, 1] > 0.98


def test_the_interval_of_r2_is_that_of_the_targets_in_any_unit():
    targets, old, new = regression(60)
    differences = (old**2 - new**2) / targets.var()

    def interval(given):
        return bootstrap.inflated_bootstrap_t(
            differences, confidence=0.95, seed=1, resamples=500, targets=given)

    assert interval(5 - 100 * targets) == pytest.approx(interval(targets))
    plain = interval(None)
    assert interval(targets) != pytest.approx(plain, abs=1e-3)
    same = bootstrap.bootstrap_t_interval(0 * targets, confidence=0.95, seed=1, targets=targets)
    assert same == (0, 0)


def test_r2_by_cells_and_one_by_one_resamples_alike(monkeypatch):
    targets, old, new = regression(2_500)
    differences = (old**2 - new**2) / targets.var()
    standardized = (differences - differences.mean()) / differences.std()

    def t(seed):
        return np.sort(bootstrap._resampled_t_of_r2(
            standardized, differences.mean() / differences.std(), targets, 3_000,
            np.random.default_rng(seed)))

    cells = t(1)
    monkeypatch.setattr(bootstrap, "_ONE_BY_ONE", 2_500)
    assert stats.ks_2samp(cells, t(2)).pvalue > 0.01


@pytest.mark.parametrize("heavy", [True, False])
def test_r2_seldom_claims_falsely_with_heavy_targets_or_uneven_errors(heavy):
    """The true difference is −margin, so every claim is false; 400 trials."""
    rng, claimed, before = np.random.default_rng(1), 0, 0
    for trial in range(400):
        targets = rng.standard_t(4, 60) / 2**0.5 if heavy else rng.normal(size=60)
        scales = 1.0 if heavy else np.exp(0.8 * rng.normal(size=60) - 0.64)
        first, other = rng.normal(size=(2, 60))
        old = 0.3 * scales * first
        new = 0.3 * 2**0.5 * scales * (0.9 * first + 0.19**0.5 * other)
        scores = [1 - each**2 / targets.var() for each in (old, new)]
        for given, unseen in ((targets, intervals.unseen_examples(np.stack(scores))),
                              (None, intervals.UNSEEN)):
            low, _ = bootstrap.inflated_bootstrap_t(
                scores[1] - scores[0], confidence=0.95, seed=trial, resamples=199, targets=given,
                unseen=unseen)
            claimed += given is not None and low > -0.09
            before += given is None and low > -0.09
    assert claimed < 0.6 * before
    assert before > 0.04 * 400
