"""Group-sequential limits: against published values and the joint normal distribution."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from wua_mlflow.verdict.looks import (
    SEEDS_AT_LOOKS,
    chance_to_settle,
    planned_looks,
    repeated_confidence,
    spent,
)

FRACTIONS = [(1.0,), (0.2, 0.4, 0.6, 0.8, 1.0), (0.526, 0.69, 0.83, 0.93, 1.0),
             (0.97, 0.985, 0.9934, 0.9975, 1.0)]


def limits_of(fractions: tuple[float, ...], confidence: float) -> np.ndarray:
    """The limits of Z at all looks."""
    return np.array([norm.ppf((1 + repeated_confidence(fractions[:look], confidence)) / 2)
                     for look in range(1, len(fractions) + 1)])


def test_limits_are_those_that_are_published() -> None:
    """Five equal looks, one-sided 2.5%: Jennison & Turnbull (2000), gsDesign's ``sfLDOF``."""
    assert limits_of((0.2, 0.4, 0.6, 0.8, 1.0), 0.95) == pytest.approx(
        [4.8769, 3.3569, 2.6803, 2.2898, 2.0310], abs=2e-4)


@pytest.mark.parametrize("fractions", FRACTIONS)
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_error_spent_is_the_joint_normal_distributions(
    fractions: tuple[float, ...], confidence: float
) -> None:
    """The paths that cross by a look are as many as may be spent by then, at every look."""
    t, level = np.array(fractions), (1 - confidence) / 2
    correlations = np.sqrt(np.minimum.outer(t, t) / np.maximum.outer(t, t))
    limits = limits_of(fractions, confidence)
    for look in range(1, len(t) + 1):
        joint = multivariate_normal(np.zeros(look), correlations[:look, :look],
                                    seed=0)
        stay = joint.cdf(limits[:look])
        assert 1 - stay == pytest.approx(spent(t[look - 1], level), abs=5e-5)


def test_more_looks_widen_the_last_interval() -> None:
    """Each further look costs something; a single one at the end costs nothing."""
    assert repeated_confidence([1.0], 0.95) == pytest.approx(0.95, abs=1e-9)
    last = [repeated_confidence(looks, 0.95)
            for looks in ([1.0], [0.5, 1.0], [0.5, 0.75, 1.0], [0.5, 0.75, 0.9, 1.0])]
    assert all(fewer < more for fewer, more in pairwise(last))


@pytest.mark.parametrize("fractions", [[], [0.0], [0.5, 0.5], [0.5, 0.4], [1.1], [np.nan]])
def test_fractions_that_do_not_ascend_are_refused(fractions: list[float]) -> None:
    """A message of one line."""
    with pytest.raises(ValueError, match=r"^fractions: expected numbers that ascend .+$"):
        repeated_confidence(fractions, 0.95)


@pytest.mark.parametrize(("statistic", "fraction"), [(0.0, 0.3), (1.5, 0.5), (-2.0, 0.8)])
def test_chance_to_settle_is_what_simulation_gives(statistic: float, fraction: float) -> None:
    """The last statistic, drawn with a truth around the estimate."""
    rng = np.random.default_rng(0)
    drift = rng.normal(statistic / fraction**0.5, 1 / fraction**0.5, 400_000)
    score = statistic * fraction**0.5 + drift * (1 - fraction) \
        + rng.normal(0, (1 - fraction) ** 0.5, drift.size)
    assert chance_to_settle(statistic, fraction, 0.95) == pytest.approx(
        float(np.mean(np.abs(score) > norm.ppf(0.975))), abs=0.003)


def test_planned_looks_end_with_the_most_seeds() -> None:
    """All plans begin like the shipped one."""
    assert planned_looks(20) == SEEDS_AT_LOOKS
    assert planned_looks(5) == (5,)
    assert planned_looks(9) == (5, 8, 9)
