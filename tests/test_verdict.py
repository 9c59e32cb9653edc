"""Intervals, outcomes, sentences and what would settle a verdict.

References: published tables, brute-force likelihoods, exhaustive resampling, loops, scipy.
"""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq, minimize_scalar

from wua_mlflow import intervals, settling
from wua_mlflow.verdict import Verdict, compare, required_examples_without_discordance


@dataclass(frozen=True)
class Results:
    """Stands for an evaluation: scores and the digest of its test set."""

    scores: np.ndarray
    digest: str | None = None


def outcomes(gained: int, lost: int, examples: int) -> tuple[np.ndarray, np.ndarray]:
    """0/1 scores of a baseline and a candidate with the given discordant counts."""
    base, cand = np.ones(examples), np.ones(examples)
    base[:gained] = 0
    cand[gained : gained + lost] = 0
    return base, cand


def table(rows: float, columns: float, residual: float, shape: tuple[int, int], seed: int = 0):
    """Differences with mean 0 whose three mean squares are exactly the given ones."""
    rng = np.random.default_rng(seed)

    def unit(size: int) -> np.ndarray:
        values = rng.normal(size=size)
        return (values - values.mean()) / values.std(ddof=1)

    noise = rng.normal(size=shape)
    noise += noise.mean() - noise.mean(axis=0) - noise.mean(axis=1, keepdims=True)
    noise /= math.sqrt(np.square(noise).sum() / ((shape[0] - 1) * (shape[1] - 1)))
    effects = math.sqrt(rows) * unit(shape[0])[:, None] + math.sqrt(columns) * unit(shape[1])
    return effects + math.sqrt(residual) * noise


# Tango's score interval


@pytest.mark.parametrize(
    ("gained", "lost", "examples", "confidence", "published"),
    [
        (9, 3, 32, 0.95, (-0.027, 0.390)),  # Tango 1998
        (0, 1, 44, 0.90, (-0.096, 0.037)),  # Tango 1998
        (16, 8, 86, 0.95, (-0.020, 0.207)),  # Agresti & Min 2005
        (1, 7, 21, 0.95, (-0.517, -0.026)),  # Fagerland, Lydersen & Laake 2014
    ],
)
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
@pytest.mark.parametrize(
    ("gained", "lost", "examples"),
    [(0, 0, 25), (0, 3, 30), (3, 0, 30), (1, 1, 12), (4, 11, 114), (2, 40, 60), (5, 5, 10)],
)
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
    assert intervals.unseen_reach(examples, confidence=0.95) == pytest.approx(wilson, rel=1e-12)


@pytest.mark.parametrize("gained_share", [0.0, 0.02, 0.1])
@pytest.mark.parametrize(("examples", "margin"), [(30, 0.12), (114, 0.05)])
def test_tango_seldom_claims_non_inferiority_at_the_margin(examples, margin, gained_share):
    """The exact probability of the false claim, summed over all outcomes."""
    lost_share, claimed = gained_share + margin, 0.0
    for gained, lost in itertools.product(range(examples + 1), repeat=2):
        if gained + lost > examples:
            continue
        cell = (gained, lost, examples - gained - lost)
        p = stats.multinomial.pmf(
            cell, examples, (gained_share, lost_share, 1 - gained_share - lost_share)
        )
        if p > 1e-7 and compare(*outcomes(*cell[:2], examples), margin=margin).outcome == (
            "non_inferior"
        ):
            claimed += p
    assert 0.001 < claimed < 0.03


# Paired bootstrap-t


def test_bootstrap_t_agrees_with_normal_theory_on_a_big_sample():
    values = np.random.default_rng(1).normal(0.01, 0.2, size=3000)
    low, high = intervals.bootstrap_t_interval(values, confidence=0.95, seed=0)
    theory = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    error = values.std(ddof=1) / math.sqrt(values.size)
    assert (low, high) == pytest.approx((theory.low, theory.high), abs=0.1 * error)


def test_bootstrap_t_takes_the_quantiles_of_all_resamples():
    values = np.array([-0.3, 0.1, 0.15, 0.4, 1.1, 0.05])
    low, high = intervals.bootstrap_t_interval(values, confidence=0.9, seed=3)
    error, t = values.std(ddof=1) / math.sqrt(6), []
    for resample in itertools.product(values, repeat=6):
        spread = np.std(resample, ddof=1) if len(set(resample)) > 1 else 0.0
        shift = np.mean(resample) - values.mean()
        t.append(shift / (spread / math.sqrt(6)) if spread else math.copysign(math.inf, shift))
    # 10,000 draws: the share of a 5% tail has a standard deviation of 0.0022
    assert np.mean(np.array(t) > (values.mean() - low) / error) == pytest.approx(0.05, abs=0.01)
    assert np.mean(np.array(t) < (values.mean() - high) / error) == pytest.approx(0.05, abs=0.01)


def test_bootstrap_t_covers_the_mean_of_a_skewed_distribution():
    rng, covered = np.random.default_rng(5), []
    for trial in range(400):
        low, high = intervals.bootstrap_t_interval(
            1 - rng.exponential(size=40), confidence=0.95, seed=trial, resamples=999
        )
        covered.append(low <= 0 <= high)
    assert 0.92 < np.mean(covered) < 0.98


def test_bootstrap_t_is_antisymmetric_and_equivariant():
    values = np.random.default_rng(2).gamma(2.0, size=50)
    low, high = intervals.bootstrap_t_interval(values, confidence=0.95, seed=4)
    swapped = intervals.bootstrap_t_interval(-values, confidence=0.95, seed=4)
    assert swapped == pytest.approx((-high, -low))
    moved = intervals.bootstrap_t_interval(0.01 * values - 3, confidence=0.95, seed=4)
    assert moved == pytest.approx((0.01 * low - 3, 0.01 * high - 3))


def test_bootstrap_t_in_chunks_is_the_same(monkeypatch):
    values = np.random.default_rng(2).gamma(2.0, size=33)
    whole = intervals.bootstrap_t_interval(values, confidence=0.95, seed=4)
    monkeypatch.setattr(intervals, "_CHUNK_DRAWS", 500)
    assert intervals.bootstrap_t_interval(values, confidence=0.95, seed=4) == whole


def test_bootstrap_t_stays_finite_and_wide_where_resamples_have_no_spread():
    values = np.zeros(100)
    values[7] = -0.5
    low, high = intervals.bootstrap_t_interval(values, confidence=0.95, seed=0)
    student = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert low == -0.5
    assert student.low < high <= student.high
    pair = intervals.bootstrap_t_interval(np.array([0.1, 0.3]), confidence=0.95, seed=0)
    assert pair == pytest.approx(
        tuple(stats.ttest_1samp([0.1, 0.3], 0).confidence_interval(0.95)), rel=1e-9
    )


# Crossed seeds and examples


def brute_force_anova(d: np.ndarray) -> tuple[float, float, float]:
    seeds, examples = d.shape
    grand = sum(d[s, e] for s in range(seeds) for e in range(examples)) / d.size
    row = [sum(d[s, e] for e in range(examples)) / examples for s in range(seeds)]
    column = [sum(d[s, e] for s in range(seeds)) / seeds for e in range(examples)]
    residual = sum(
        (d[s, e] - row[s] - column[e] + grand) ** 2 for s in range(seeds) for e in range(examples)
    )
    return (
        sum((r - grand) ** 2 for r in row) / (seeds - 1),
        sum((c - grand) ** 2 for c in column) / (examples - 1),
        residual / ((seeds - 1) * (examples - 1)),
    )


def test_crossed_components_and_interval_by_explicit_loops():
    rng = np.random.default_rng(8)
    base, cand = rng.random((2, 6, 9)) < 0.7
    rows, columns, residual = brute_force_anova(cand * 1.0 - base)
    variance = rows / 6 + columns / 9 - residual / 54
    assert variance > max(rows / 6, columns / 9)
    half = stats.t.ppf(0.975, 5) * math.sqrt(variance)
    verdict = compare(base, cand, margin=0.02)
    assert verdict.delta == pytest.approx(cand.mean() - base.mean())
    assert verdict.low == pytest.approx(verdict.delta - half)
    assert verdict.high == pytest.approx(verdict.delta + half)


@pytest.mark.parametrize(
    ("rows", "columns", "floor"), [(0.01, 2.0, 2.0 / 40), (1.0, 0.01, 1.0 / 8)]
)
def test_crossed_variance_never_falls_below_either_component(rows, columns, floor):
    parts = intervals.crossed(table(rows, columns, 1.0, (8, 40)))
    assert rows / 8 + columns / 40 - 1 / 320 < floor
    assert parts.variance == pytest.approx(floor)


def test_crossed_terms_estimate_the_variance_of_the_mean():
    rng, (seeds, examples) = np.random.default_rng(0), (6, 10)
    d = (
        rng.normal(0, 0.3, (4000, seeds, 1))
        + rng.normal(0, 0.5, (4000, 1, examples))
        + rng.normal(0, 0.8, (4000, seeds, examples))
    )
    parts = [intervals.crossed(one) for one in d]
    estimates = [
        p.seed_means_variance / 6 + p.example_means_variance / 10 - p.residual_variance / 60
        for p in parts
    ]
    true = 0.3**2 / 6 + 0.5**2 / 10 + 0.8**2 / 60
    assert np.mean(estimates) == pytest.approx(true, rel=0.03)
    assert np.var([p.mean for p in parts]) == pytest.approx(true, rel=0.08)
    covered = [abs(p.mean) < p.half_width(0.95) for p in parts]
    assert 0.94 < np.mean(covered) < 0.99


def test_crossed_does_not_depend_on_the_order_of_seeds_or_examples():
    rng = np.random.default_rng(3)
    base, cand = rng.normal(size=(2, 7, 20))
    verdict = compare(base, cand, margin=0.1, score="R²")
    order = np.ix_(rng.permutation(7), rng.permutation(20))
    again = compare(base[order], cand[order], margin=0.1, score="R²")
    assert (again.delta, again.low, again.high) == pytest.approx(
        (verdict.delta, verdict.low, verdict.high)
    )


@pytest.mark.parametrize("shape", [(60,), (6, 30)])
def test_verdict_scales_with_differences_and_margin_and_ignores_a_common_shift(shape):
    rng = np.random.default_rng(3)
    base, cand = rng.normal(size=(2, *shape))
    verdict = compare(base, cand, margin=0.9, score="R²")
    scaled = compare(0.1 * base + 2, 0.1 * cand + 2, margin=0.09, score="R²")
    assert (scaled.delta, scaled.low, scaled.high) == pytest.approx(
        (0.1 * verdict.delta, 0.1 * verdict.low, 0.1 * verdict.high)
    )
    assert scaled.outcome == verdict.outcome


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_two_perfect_recipes_prove_no_more_than_their_examples(value):
    same = np.full((20, 380), value)
    assert compare(same, same, margin=0.01).outcome == "inconclusive"
    same = np.full((20, 381), value)
    assert compare(same, same, margin=0.01).outcome == "non_inferior"


@pytest.mark.parametrize("changed", [0, 1, 4])
@pytest.mark.parametrize("seeds", [1, 5])
def test_few_differing_examples_reach_as_far_as_none(seeds, changed):
    base = np.full((seeds, 50), 0.5)
    cand = base.copy()
    cand[0, :changed] += 0.25
    verdict = compare(base, cand, margin=0.02)
    reach = stats.binomtest(0, 50).proportion_ci(0.95, method="wilson").high
    assert verdict.low <= verdict.delta - reach + 1e-12
    assert verdict.high >= verdict.delta + reach - 1e-12


# compare: design, outcome, sentence


def test_compare_chooses_the_method_by_shape_and_values():
    rng = np.random.default_rng(0)
    right = rng.random((6, 40)) < 0.8
    real = rng.normal(size=40)
    artifact = compare(right[0], right[1], margin=0.1)
    assert (artifact.kind, artifact.method) == ("artifact", "Tango score interval")
    assert (artifact.examples, artifact.seeds) == (40, 1)
    assert compare(right[:1], right[1:2], margin=0.1) == artifact
    assert compare(Results(right[0], "a"), Results(right[1], "a"), margin=0.1) == artifact
    assert compare(Results(right[0], "a"), right[1].tolist(), margin=0.1) == artifact
    assert compare(real, real**2, margin=0.1).method == "paired bootstrap-t"
    recipe = compare(right, ~right, margin=0.1)
    assert (recipe.kind, recipe.method) == ("recipe", "crossed two-way, t")
    assert (recipe.examples, recipe.seeds) == (40, 6)


def test_compare_repeats_itself_and_the_seed_matters_little():
    base, cand = np.random.default_rng(0).gamma(2.0, size=(2, 200))
    first = compare(base, cand, margin=0.1)
    assert compare(base, cand, margin=0.1) == first
    other = compare(base, cand, margin=0.1, seed=1)
    assert other.low != first.low
    assert other.low == pytest.approx(first.low, abs=0.05 * (first.high - first.low))


@pytest.mark.parametrize(
    ("gained", "lost", "margin", "outcome", "words"),
    [
        (40, 5, 0.01, "non_inferior", "better (non-inferior)"),
        (10, 10, 0.02, "non_inferior", "as good within the margin (non-inferior)"),
        (0, 10, 0.03, "non_inferior", "worse, but within the margin (non-inferior)"),
        (0, 40, 0.01, "inferior", "worse by more than the margin (inferior)"),
        (10, 20, 0.01, "inconclusive", "cannot tell whether the loss stays within the margin"),
    ],
)
def test_outcome_follows_from_the_interval(gained, lost, margin, outcome, words):
    verdict = compare(*outcomes(gained, lost, 1000), margin=margin)
    low, high = intervals.tango_interval(gained, lost, 1000, confidence=0.95)
    expected = "inconclusive"
    if low > -margin:
        expected = "non_inferior"
    elif high < -margin:
        expected = "inferior"
    assert verdict.outcome == expected == outcome
    assert words in verdict.sentence
    assert (verdict.settle is None) == (outcome != "inconclusive")


VERDICT = Verdict(
    kind="artifact",
    outcome="non_inferior",
    delta=-0.012,
    low=-0.018,
    high=-0.006,
    margin=0.02,
    confidence=0.95,
    examples=2000,
    seeds=1,
    method="Tango score interval",
    score="accuracy",
    settle=None,
)


def test_sentences():
    assert VERDICT.sentence == (
        "Artifact verdict (these two saved models, 2,000 test examples): the candidate's accuracy "
        "minus the baseline's is −1.2 points (95% interval −1.8 to −0.6), against a margin of "
        "2 points: worse, but within the margin (non-inferior)."
    )
    recipe = replace(
        VERDICT, kind="recipe", seeds=20, high=0.0, low=-0.02, outcome="inconclusive", score="R²"
    )
    assert recipe.sentence == (
        "Recipe verdict (both trained with 20 seeds, 2,000 test examples): on average the "
        "candidate's R² minus the baseline's is −0.012 (95% interval −0.020 to 0.000), against a "
        "margin of 0.02: the data cannot tell whether the loss stays within the margin "
        "(inconclusive)."
    )
    assert "of 1 point:" in replace(VERDICT, margin=0.01).sentence
    assert "90% interval" in replace(VERDICT, confidence=0.9).sentence


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (-0.01996, 0.01, "−1.200 points (95% interval −1.996 to +1.000)"),
        (-0.0199, -0.0001, "−1.20 points (95% interval −1.99 to −0.01)"),
        (-0.015, -0.0001, "−1.20 points (95% interval −1.50 to −0.01)"),
        (-0.0184, 0.0, "−1.2 points (95% interval −1.8 to 0.0)"),
    ],
)
def test_limits_are_shown_on_their_side_of_the_margin_and_of_zero(low, high, shown):
    assert shown in replace(VERDICT, low=low, high=high).sentence


# What would settle it


def numbers(sentence: str | None) -> list[int]:
    assert sentence is not None
    return [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", sentence)]


@pytest.mark.parametrize(
    ("gained", "lost", "margin"), [(10, 20, 0.03), (3, 20, 0.02), (2, 2, 0.01)]
)
def test_tango_settles_at_the_examples_named(gained, lost, margin):
    verdict = compare(*outcomes(gained, lost, 500), margin=margin)
    needed, now = numbers(verdict.settle)
    assert (verdict.outcome, now) == ("inconclusive", 500)

    def excludes(n: int) -> bool:
        shares = (gained * n / 500, lost * n / 500, n)
        low, high = intervals.tango_interval(*shares, confidence=0.95)
        return low > -margin or high < -margin

    assert excludes(needed)
    assert not excludes(needed - 1)


@pytest.mark.parametrize("margin", [0.001, 0.01, 0.025, 0.5])
def test_examples_without_discordance_are_the_fewest(margin):
    n = required_examples_without_discordance(margin)
    assert compare(np.ones(n), np.ones(n), margin=margin).outcome == "non_inferior"
    fewer = compare(np.ones(n - 1), np.ones(n - 1), margin=margin)
    assert fewer.outcome == "inconclusive"
    assert numbers(fewer.settle) == [n - 1, n]
    assert settling.tango_examples(0.0, 0.0, margin=margin, confidence=0.95) == n


def test_examples_without_discordance_for_one_point():
    assert required_examples_without_discordance(0.01) == 381
    assert required_examples_without_discordance(0.01, 0.9) == 268


def test_bootstrap_settles_at_the_examples_named():
    rng = np.random.default_rng(0)
    base = rng.normal(size=80)
    cand = base + rng.normal(0, 0.3, size=80)
    margin = 0.05
    needed, now = numbers(compare(base, cand, margin=margin, score="R²").settle)
    assert now == 80
    above = math.ceil(1.2 * needed / 80)
    below = math.floor(needed / 80 / 1.2)
    assert 1 <= below < above
    assert (
        compare(np.tile(base, above), np.tile(cand, above), margin=margin).outcome != "inconclusive"
    )
    assert (
        compare(np.tile(base, below), np.tile(cand, below), margin=margin).outcome == "inconclusive"
    )


def grown(between_seeds, between_examples, residual, shape):
    """Differences, of the given shape, that show exactly these variance components."""
    seeds, examples = shape
    return table(
        between_seeds + residual / examples, between_examples + residual / seeds, residual, shape
    )


def outcome_at(components, shape, margin):
    d = grown(*components, shape)
    return compare(np.zeros(shape), d, margin=margin)


SEEDS_DOMINATE = (0.03**2, 0.05**2, 0.1**2)
EXAMPLES_DOMINATE = (0.001**2, 0.3**2, 0.1**2)
BALANCED = (0.02**2, 0.2**2, 0.1**2)


def test_recipe_settles_by_seeds_alone_where_seeds_dominate():
    verdict = outcome_at(SEEDS_DOMINATE, (6, 100), 0.02)
    assert verdict.settle is not None
    assert "more test examples alone cannot: the spread between seeds" in verdict.settle
    seeds, now = numbers(verdict.settle)
    assert now == 6
    assert outcome_at(SEEDS_DOMINATE, (seeds, 100), 0.02).outcome == "non_inferior"
    assert outcome_at(SEEDS_DOMINATE, (seeds - 1, 100), 0.02).outcome == "inconclusive"
    assert outcome_at(SEEDS_DOMINATE, (6, 10_000), 0.02).outcome == "inconclusive"


def test_recipe_settles_by_examples_alone_where_examples_dominate():
    verdict = outcome_at(EXAMPLES_DOMINATE, (6, 100), 0.04)
    assert verdict.settle is not None
    assert "more seeds alone cannot: the spread between test examples" in verdict.settle
    examples, now = numbers(verdict.settle)
    assert now == 100
    assert outcome_at(EXAMPLES_DOMINATE, (6, examples), 0.04).outcome == "non_inferior"
    assert outcome_at(EXAMPLES_DOMINATE, (6, examples - 1), 0.04).outcome == "inconclusive"
    assert outcome_at(EXAMPLES_DOMINATE, (600, 100), 0.04).outcome == "inconclusive"


def test_recipe_settles_by_either():
    verdict = outcome_at(BALANCED, (6, 100), 0.05)
    seeds, seeds_now, examples, examples_now = numbers(verdict.settle)
    assert (seeds_now, examples_now) == (6, 100)
    for enough, short in [((seeds, 100), (seeds - 1, 100)), ((6, examples), (6, examples - 1))]:
        assert outcome_at(BALANCED, enough, 0.05).outcome == "non_inferior"
        assert outcome_at(BALANCED, short, 0.05).outcome == "inconclusive"


def test_recipe_settles_only_by_both():
    verdict = outcome_at(BALANCED, (6, 100), 0.01)
    assert verdict.settle is not None and verdict.settle.startswith("Neither more seeds nor")
    seeds, examples, *now = numbers(verdict.settle)
    assert now == [6, 100]
    assert outcome_at(BALANCED, (seeds, examples), 0.01).outcome == "non_inferior"
    assert outcome_at(BALANCED, (600, 100), 0.01).outcome == "inconclusive"
    assert outcome_at(BALANCED, (6, 10_000), 0.01).outcome == "inconclusive"


def test_nothing_settles_an_estimate_at_the_margin():
    artifact = compare(*outcomes(0, 5, 100), margin=0.05)
    assert artifact.settle == (
        "No realistic number of test examples would settle it: the estimated difference itself "
        "lies about at minus the margin."
    )
    recipe = compare(np.full((6, 100), 0.02), grown(*BALANCED, (6, 100)), margin=0.02)
    assert recipe.settle is not None
    assert recipe.settle.startswith("No realistic number of seeds or test examples")
    nothing = compare(np.ones(50), np.ones(50), margin=0)
    assert nothing.settle == artifact.settle


@pytest.mark.parametrize(("lost", "hopeless"), [(51, True), (52, False), (49, True), (48, False)])
def test_an_estimate_within_a_tenth_of_the_half_width_of_the_margin_is_hopeless(lost, hopeless):
    verdict = compare(*outcomes(0, lost, 1000), margin=0.05)
    assert verdict.settle is not None
    assert verdict.settle.startswith("No realistic number") == hopeless
    nearer = verdict.delta - verdict.low if lost < 50 else verdict.high - verdict.delta
    assert (abs(verdict.delta + 0.05) < 0.1 * nearer) == hopeless


@pytest.mark.parametrize("share", [0.99, 0.8, 0.4])
def test_crossed_need_by_linear_search(share):
    a, b, e, seeds, examples = 0.02**2, 0.2**2, 0.3**2, 5, 60
    parts = intervals.crossed(grown(a, b, e, (seeds, examples)))

    def half(s: int, n: int) -> float:
        return stats.t.ppf(0.975, s - 1) * math.sqrt(a / s + b / n + e / (s * n))

    distance = share * half(seeds, examples)
    need = settling.crossed_need(parts, distance, confidence=0.95)
    more_seeds = (s for s in range(seeds, 100 * seeds + 1) if half(s, examples) < distance)
    more_examples = (n for n in range(examples, 6001) if half(seeds, n) < distance)
    both = (s for s in range(seeds, 501) if half(s, 12 * s) < distance)
    assert need.seeds == next(more_seeds, None)
    assert need.examples == next(more_examples, None)
    fewest = next(both)
    assert need.both == (fewest, 12 * fewest)


# Errors


@pytest.mark.parametrize("margin", [3, 1, -0.1, math.nan, math.inf, "0.1", None, True])
def test_margin_outside_its_range(margin):
    with pytest.raises(ValueError, match=r"^margin: expected a number in \[0, 1\), but got "):
        compare([0, 1], [1, 1], margin=margin)


@pytest.mark.parametrize("confidence", [0, 1, 95, math.nan])
def test_confidence_outside_its_range(confidence):
    with pytest.raises(ValueError, match=r"^confidence: expected a number in \(0, 1\), but got "):
        compare([0, 1], [1, 1], margin=0.1, confidence=confidence)
    with pytest.raises(ValueError, match=r"^confidence: expected a number in \(0, 1\), but got "):
        required_examples_without_discordance(0.01, confidence)


def test_margin_of_zero_is_never_shown_without_discordance():
    with pytest.raises(ValueError, match=r"^margin: expected a number in \(0, 1\), but got 0$"):
        required_examples_without_discordance(0)


@pytest.mark.parametrize(
    ("baseline", "candidate", "message"),
    [
        (
            np.ones(540),
            np.ones(541),
            "baseline and candidate: expected scores of the same test examples, but got 540 and "
            "541",
        ),
        (
            np.ones((5, 9)),
            np.ones((6, 9)),
            "baseline and candidate: expected scores of the same seeds, but got 5 and 6",
        ),
        (
            np.ones((3, 9)),
            np.ones((3, 9)),
            "seeds: expected at least 5 for a recipe verdict, or a single one for an artifact "
            "verdict, but got 3",
        ),
        (
            np.ones((2, 9)),
            np.ones((2, 9)),
            "seeds: expected at least 5 for a recipe verdict, or a single one for an artifact "
            "verdict, but got 2",
        ),
        ([1], [0], "examples: expected at least 2, but got 1"),
        (np.ones((5, 0)), np.ones((5, 0)), "examples: expected at least 2, but got 0"),
        ([1, math.nan], [0, 1], "baseline: expected finite scores, but got NaN or infinity"),
        ([1, 1], [0, math.inf], "candidate: expected finite scores, but got NaN or infinity"),
        (
            np.ones((2, 2, 2)),
            [1, 1],
            "baseline: expected scores of shape (examples,) or (seeds, examples), but got "
            "(2, 2, 2)",
        ),
        (
            [],
            [],
            "baseline: expected scores of shape (examples,) or (seeds, examples), but got (0,)",
        ),
        (
            ["right", "wrong"],
            [1, 1],
            "baseline: expected an array of numbers, but got could not convert string to float: "
            "'right'",
        ),
        (
            Results(np.ones(3), "a1"),
            Results(np.ones(3), "b2"),
            "baseline and candidate: expected the same test set, but got the digests a1 and b2",
        ),
    ],
)
def test_scores_that_do_not_fit(baseline, candidate, message):
    with pytest.raises(ValueError) as raised:
        compare(baseline, candidate, margin=0.01)
    assert str(raised.value) == message


def test_importing_the_module_leaves_scipy_and_torch_out():
    code = (
        "import sys; import wua_mlflow.intervals, wua_mlflow.settling, wua_mlflow.wording;"
        "print([m for m in ('scipy', 'torch', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
