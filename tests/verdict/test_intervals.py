"""Tango's interval and the crossed variance.

References: published tables, brute-force likelihoods, loops, scipy.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq, minimize_scalar

from wua_mlflow.verdict import intervals


@pytest.mark.parametrize(("gained", "lost", "examples", "confidence", "published"), [
    (9, 3, 32, 0.95, (-0.027, 0.390)),  # Tango 1998
    (0, 1, 44, 0.90, (-0.096, 0.037)),  # Tango 1998
    (16, 8, 86, 0.95, (-0.020, 0.207)),  # Agresti & Min 2005
    (1, 7, 21, 0.95, (-0.517, -0.026)),  # Fagerland, Lydersen & Laake 2014
])
def test_tango_gives_the_published_intervals(gained, lost, examples, confidence, published):
    interval = intervals.tango_interval(gained, lost, examples, confidence=confidence)
    assert tuple(round(limit, 3) for limit in interval) == published


def score_statistic(delta: float, gained: int, lost: int, examples: int) -> float:
    """The statistic with the nuisance found by numeric maximization of the likelihood."""

    def loss(q: float) -> float:
        shares = ((gained, q + delta), (lost, q), (examples - gained - lost, 1 - 2 * q - delta))
        return -sum(count * math.log(max(share, 1e-300)) for count, share in shares if count)

    bounds = (max(0.0, -delta), (1 - delta) / 2)
    q = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-13}).x
    return (gained - lost - examples * delta) / math.sqrt(examples * (2 * q + delta * (1 - delta)))


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize(("gained", "lost", "examples"), [
    (0, 0, 25), (0, 3, 30), (3, 0, 30), (1, 1, 12), (4, 11, 114), (2, 40, 60), (5, 5, 10)])
def test_tango_inverts_the_score_test(gained, lost, examples, confidence):
    z, delta = stats.norm.ppf((1 + confidence) / 2), (gained - lost) / examples

    def root(sign: int) -> float:
        ends = sorted((delta - sign * 1e-7, -sign * (1 - 1e-7)))
        statistic = (score_statistic(end, gained, lost, examples) - sign * z for end in ends)
        assert math.prod(statistic) < 0
        return brentq(lambda d: score_statistic(d, gained, lost, examples) - sign * z, *ends)

    interval = intervals.tango_interval(gained, lost, examples, confidence=confidence)
    assert interval == pytest.approx((root(1), root(-1)), abs=2e-6)


def test_tango_is_antisymmetric_and_within_minus_one_and_one():
    for gained, lost in [(0, 0), (2, 5), (0, 20), (20, 0), (10, 10), (7, 0)]:
        low, high = intervals.tango_interval(gained, lost, 20, confidence=0.9)
        assert intervals.tango_interval(lost, gained, 20, confidence=0.9) == (-high, -low)
        assert -1 <= low <= (gained - lost) / 20 <= high <= 1


@pytest.mark.parametrize("examples", [2, 30, 540])
def test_tango_without_discordant_pairs_is_the_wilson_limit(examples):
    wilson = stats.binomtest(0, examples).proportion_ci(0.95, method="wilson").high
    interval = intervals.tango_interval(0, 0, examples, confidence=0.95)
    assert interval == pytest.approx((-wilson, wilson), rel=1e-12)
    assert intervals.zero_event_limit(examples, confidence=0.95) == pytest.approx(wilson, rel=1e-12)


@pytest.mark.parametrize("gained_share", [0.0, 0.1])
@pytest.mark.parametrize(("examples", "margin"), [(30, 0.12), (114, 0.05)])
def test_tango_seldom_claims_non_inferiority_at_the_margin(examples, margin, gained_share):
    """The exact probability of the false claim, summed over all outcomes."""
    counts = np.array([(gained, lost, examples - gained - lost) for gained in range(examples + 1)
                       for lost in range(examples + 1 - gained)])
    shares = gained_share, gained_share + margin, 1 - 2 * gained_share - margin
    chances = stats.multinomial.pmf(counts, examples, shares)
    claimed = sum(
        chance * (intervals.tango_interval(gained, lost, examples, confidence=0.95)[0] > -margin)
        for chance, (gained, lost, _) in zip(chances, counts, strict=True) if chance > 1e-7)
    assert 0.001 < claimed < 0.03


def brute_force_anova(d):
    """Mean squares of rows, of columns (in units of one difference) and of the residual."""
    seeds, examples = d.shape
    grand, row, column = d.mean(), [r.mean() for r in d], [c.mean() for c in d.T]
    residual = sum((d[s, e] - row[s] - column[e] + grand) ** 2
                   for s in range(seeds) for e in range(examples))
    return (sum((r - grand) ** 2 for r in row) / (seeds - 1),
            sum((c - grand) ** 2 for c in column) / (examples - 1),
            residual / ((seeds - 1) * (examples - 1)))


def side_by_loops(scores):
    """Sample variance of the seeds' means, and the residual mean square."""
    rows, _, residual = brute_force_anova(scores)
    return rows, residual


@pytest.mark.parametrize("seeds", [(6, 6), (5, 9), (9, 5), (1, 6)])
def test_crossed_components_and_interval_by_explicit_loops(seeds):
    rng, n = np.random.default_rng(8), 9
    base, cand = (1.0 * (rng.random((side, n)) < 0.7) for side in seeds)
    sides = [(*side_by_loops(side), len(side)) for side in (base, cand) if len(side) > 1]
    by_example = [c.mean() - b.mean() for b, c in zip(base.T, cand.T, strict=True)]
    examples = np.var(by_example, ddof=1) / n
    by_seeds = [rows / size for rows, _, size in sides]
    variance = max(sum(by_seeds) + examples - sum(rest / (size * n) for _, rest, size in sides),
                   sum(by_seeds), examples)
    parts_of_it = [(part, size - 1) for part, (_, _, size) in zip(by_seeds, sides, strict=True)]
    if seeds[0] != seeds[1] and seeds[0] > 1:
        parts_of_it = [(sum(by_seeds), min(seeds) - 1)]
    freedom = variance**2 / sum(
        part**2 / degrees for part, degrees in [*parts_of_it, (examples, n - 1)])
    parts = intervals.crossed(base, cand)
    assert parts.mean == pytest.approx(cand.mean() - base.mean())
    assert parts.variance == pytest.approx(variance)
    assert parts.freedom == pytest.approx(freedom)
    student = stats.t.ppf(0.975, freedom) * math.sqrt(variance)
    assert parts.half_width(0.95) >= student * (1 - 1e-12)


@pytest.mark.parametrize("axis", [0, 1])
def test_crossed_variance_never_falls_below_either_component(axis):
    noise = np.random.default_rng(1).normal(size=(8, 40))
    noise += noise.mean() - noise.mean(axis=0) - noise.mean(axis=1, keepdims=True)
    effects = np.expand_dims(np.linspace(-1, 1, noise.shape[axis]), 1 - axis)
    rows, columns, residual = brute_force_anova(noise + effects)
    floor = max(rows / 8, columns / 40)
    assert rows / 8 + columns / 40 - residual / 320 < 0.99 * floor
    assert intervals.crossed(np.zeros((1, 40)), noise + effects).variance == pytest.approx(floor)


def crossed_draw(rng, seeds, examples):
    """Scores of two sides: effects of seeds, of examples (in common and own), and residuals."""
    common = rng.normal(0, 0.7, examples)
    return [common + rng.normal(0, 0.3, (size, 1)) + rng.normal(0, 0.35, examples)
            + rng.normal(0, 0.8, (size, examples)) for size in seeds]


@pytest.mark.parametrize("seeds", [(6, 6), (5, 10)])
def test_crossed_terms_estimate_the_variance_of_the_mean(seeds):
    rng, examples = np.random.default_rng(0), 30
    parts = [intervals.crossed(*crossed_draw(rng, seeds, examples)) for _ in range(1500)]
    true = sum(0.3**2 / size + 0.8**2 / (size * examples) for size in seeds) \
        + 2 * 0.35**2 / examples
    assert np.var([p.mean for p in parts]) == pytest.approx(true, rel=0.1)
    assert np.mean([p.variance for p in parts]) == pytest.approx(true, rel=0.05)
    covered = [abs(p.mean) < p.half_width(0.95) for p in parts]
    assert 0.94 < np.mean(covered) < 0.985
    more = [p.predicted(40, 20, 300).variance for p in parts[:300]]
    assert np.mean(more) == pytest.approx(0.3**2 / 40 + 0.3**2 / 20 + 2 * 0.35**2 / 300
                                          + 0.8**2 / 300 * (1 / 40 + 1 / 20), rel=0.1)


def test_carriers_count_those_that_stand_out():
    """Two of eight at 1: mean 1/4, deviations 3/4 twice and −1/4 six times."""
    values = np.repeat([0.0, 1.0], [6, 2])
    second, fourth = 2 * (3 / 4) ** 2 + 6 / 16, 2 * (3 / 4) ** 4 + 6 / 4**4
    assert intervals.effective_examples(values) == pytest.approx(second**2 / fourth)
    assert intervals.effective_examples(5 - 3 * values) == pytest.approx(second**2 / fourth)
    normal = np.random.default_rng(0).normal(size=100_000)
    kurtosis = stats.kurtosis(normal, fisher=False)
    assert intervals.effective_examples(normal) == pytest.approx(100_000 / kurtosis)
    assert intervals.effective_examples(np.full(7, 0.25)) == 1.0


def test_crossed_interval_of_many_seeds_is_widened_where_few_examples_differ():
    rng = np.random.default_rng(4)
    d = rng.normal(0, 0.01, (40, 30))
    d[:, :3] -= 0.5
    rows, columns, residual = brute_force_anova(d)
    means = d.mean(axis=0) - d.mean()
    factor = 1 + 3 * np.sum(means**4) / np.sum(means**2) ** 2
    wide = 1.9599640 * math.sqrt(rows / 40 + factor * columns / 30 - residual / 1200)
    assert wide > 1.3 * stats.t.ppf(0.975, 39) * math.sqrt(columns / 30)
    given = np.zeros((1, 30))
    parts = intervals.crossed(given, d)
    assert parts.half_width(0.95) == pytest.approx(wide)
    seeds_differ = intervals.crossed(given, rng.normal(0, 0.3, (5, 1)) + d[:5])
    assert seeds_differ.half_width(0.95) == pytest.approx(
        stats.t.ppf(0.975, seeds_differ.freedom) * math.sqrt(seeds_differ.variance))


def test_many_seeds_on_thirty_examples_seldom_claim_falsely():
    """Each example lost or won by its own chance in all seeds; the true mean is −margin."""
    rng, claimed, plain, given = np.random.default_rng(0), 0, 0, np.zeros((1, 30))
    for _ in range(800):
        chance = np.where(rng.random(30) < 0.25, 0.6, 0.0)
        parts = intervals.crossed(given, -1.0 * (rng.random((20, 30)) < chance))
        claimed += parts.mean - parts.half_width(0.95) > -0.15
        plain += parts.mean - stats.t.ppf(0.975, parts.freedom) * math.sqrt(parts.variance) > -0.15
    assert claimed / 800 < 0.04
    assert plain > claimed


def test_collapsed_seeds_lie_far_below_their_own_side():
    """Beyond three margins and five robust standard deviations of the side's median."""
    means = np.array([0.97, 0.95, 0.96, 0.96, 0.5])
    scores = means[:, None] + np.zeros(10)
    assert intervals.collapsed_seeds(scores, 0.02).tolist() == [False] * 4 + [True]
    assert not intervals.collapsed_seeds(scores, 0.2).any()
    assert not intervals.collapsed_seeds(scores, 0.0).any()
    spread = np.linspace(0.1, 0.9, 9)[:, None] + np.zeros(10)
    assert not intervals.collapsed_seeds(spread, 0.001).any()


@pytest.mark.parametrize(("collapsed", "seeds"), [(0, 5), (0, 20), (1, 20), (3, 8), (5, 5)])
def test_limits_of_collapses_are_exact(collapsed, seeds):
    exact = stats.binomtest(collapsed, seeds).proportion_ci(0.95, method="exact")
    assert intervals.collapse_limits(collapsed, seeds, confidence=0.95) == pytest.approx(exact)


def test_linearised_r2_keeps_each_networks_mean():
    rng = np.random.default_rng(2)
    targets, scores = rng.normal(5, 2, 40), 1 - rng.exponential(size=(3, 40))
    linear = intervals.linearized_r2(scores, targets)
    assert linear.mean(axis=1) == pytest.approx(scores.mean(axis=1))
    excess = (targets - targets.mean()) ** 2 / targets.var() - 1
    assert linear[1] - linear[0] == pytest.approx(
        scores[1] - scores[0] - (scores[1] - scores[0]).mean() * excess)
    parts = intervals.crossed(scores[:1], scores, targets=targets)
    plain = intervals.crossed(linear[:1], linear)
    assert (parts.mean, parts.variance) == pytest.approx((plain.mean, plain.variance))


@pytest.mark.parametrize(("squares", "unseen"), [
    ([1.0] * 20, 3.0),  # kurtosis 1
    ([1.0] * 19 + [10.0], 31.0),  # 20 · 119 ÷ 29² = 2.83, above 0.9 · 3 · 19 ÷ 21 = 2.44
    ([1.0] * 19 + [6.0], 3.0),  # 20 · 55 ÷ 25² = 1.76
    ([0.0] * 20, 3.0),
])
def test_more_examples_may_be_unseen_where_errors_are_uneven(squares, unseen):
    scores = 1 - 0.1 * np.array([squares, squares])
    assert intervals.unseen_examples(scores) == unseen
    if unseen > 3:
        wide, usual = (intervals.Crossed(0.0, *2 * [intervals.SideVariance(1)], 20, 1.0, 4.0, more)
                       for more in (unseen, 3.0))
        assert wide.half_width(0.95) == pytest.approx(
            usual.half_width(0.95) * math.sqrt((1 + unseen / 4) / (1 + 3 / 4)))
