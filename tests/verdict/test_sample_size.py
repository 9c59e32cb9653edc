"""What would settle an inconclusive verdict: each number named is put back in.

References: how many of simulated verdicts on as many examples or seeds are settled; linear search
with scipy's noncentral t; values by hand.
"""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from scipy import stats

from wua_mlflow.verdict import intervals, sample_size
from wua_mlflow.verdict.compare import Verdict, compare
from wua_mlflow.verdict.intervals import inflated_bootstrap_t
from wua_mlflow.verdict.sample_size import required_examples_without_discordance, too_few_examples


def outcomes(gained: int, lost: int, examples: int) -> tuple[np.ndarray, np.ndarray]:
    """0/1 scores of a baseline and a candidate with the given discordant counts."""
    base, cand = np.ones(examples), np.ones(examples)
    base[:gained] = 0
    cand[gained : gained + lost] = 0
    return base, cand


def table(rows: float, columns: float, residual: float, shape: tuple[int, int]) -> np.ndarray:
    """Differences with mean 0 whose three mean squares are exactly the given ones."""
    rng = np.random.default_rng(0)

    def unit(size: int) -> np.ndarray:
        values = rng.normal(size=size)
        return (values - values.mean()) / values.std(ddof=1)

    noise = rng.normal(size=shape)
    noise += noise.mean() - noise.mean(axis=0) - noise.mean(axis=1, keepdims=True)
    noise /= math.sqrt(np.square(noise).sum() / ((shape[0] - 1) * (shape[1] - 1)))
    effects = math.sqrt(rows) * unit(shape[0])[:, None] + math.sqrt(columns) * unit(shape[1])
    return effects + math.sqrt(residual) * noise


def numbers(sentence: str | None) -> list[int]:
    """All but the chance."""
    assert sentence is not None
    bare = sentence.replace("a chance of 80%", "")
    return [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", bare)]


# Artifacts


@pytest.mark.parametrize(
    ("gained", "lost", "margin"), [(10, 20, 0.03), (3, 20, 0.02), (2, 2, 0.01), (0, 20, 0.05)]
)
def test_four_of_five_artifacts_are_settled_at_the_examples_named(gained, lost, margin):
    """As many examples, right and wrong drawn with the shares seen; 1,500 trials: ± 0.01."""
    verdict = compare(*outcomes(gained, lost, 500), margin=margin)
    needed, now = numbers(verdict.settle)
    assert (verdict.outcome, now) == ("inconclusive", 500)
    assert verdict.settle is not None and "with a chance of 80%, if" in verdict.settle

    def settled(n: int) -> float:
        shares = [gained / 500, lost / 500, 1 - (gained + lost) / 500]
        drawn = np.random.default_rng(0).multinomial(n, shares, size=1500)
        limits = [intervals.tango_interval(g, b, n, confidence=0.95) for g, b, _ in drawn]
        return float(np.mean([low > -margin or high < -margin for low, high in limits]))

    assert settled(needed) == pytest.approx(0.8, abs=0.05)
    assert settled(needed // 2) < 0.65


def test_examples_for_an_artifact_by_hand():
    """Gains 1%, loses 2%, margin 2 points.

    Lost if delta were −0.02: q = (0.0702 + √(0.0702² − 8 · 0.000408)) ÷ 4 = 0.0277485;
    variances 2q − 0.0204 = 0.035097 and 0.03 − 0.01² = 0.0299;
    n > ((1.95996 · 0.187342 + 0.84162 · 0.172916) ÷ 0.01)² = 2628.8.
    """
    assert sample_size.required_tango(0.01, 0.02, margin=0.02, confidence=0.95) == 2629


@pytest.mark.parametrize("margin", [0.001, 0.01, 0.025, 0.5])
def test_examples_without_discordance_are_the_fewest(margin):
    n = required_examples_without_discordance(margin)
    assert compare(np.ones(n), np.ones(n), margin=margin).outcome == "non_inferior"
    fewer = compare(np.ones(n - 1), np.ones(n - 1), margin=margin)
    assert fewer.outcome == "inconclusive"
    assert numbers(fewer.settle) == [n - 1, n]
    assert sample_size.required_tango(0.0, 0.0, margin=margin, confidence=0.95) == n


def test_examples_without_discordance_for_one_point():
    assert required_examples_without_discordance(0.01) == 381
    assert required_examples_without_discordance(0.01, 0.9) == 268


def test_a_test_set_too_small_says_how_large_it_must_be():
    assert too_few_examples(380, 0.01) == (
        "test data: expected at least 381 examples to show even of equal models that they are "
        "within a margin of 0.01, but got 380; take more, or a margin of at least 0.0101")
    assert too_few_examples(381, 0.01) is None
    assert too_few_examples(267, 0.01, 0.9) is not None and too_few_examples(268, 0.01, 0.9) is None
    assert (too_few_examples(10_000, 0.0) or "").startswith(
        "margin: expected above 0, since at 0 no"
    )


@pytest.mark.parametrize(("examples", "margin"), [(30, 0.02), (114, 0.01), (540, 0.001)])
def test_the_margin_that_is_offered_instead_can_be_shown(examples, margin):
    line = too_few_examples(examples, margin)
    assert line is not None
    offered = float(line.rsplit(" ", 1)[1])
    assert too_few_examples(examples, offered) is None
    assert too_few_examples(examples, 0.98 * offered) is not None
    assert compare(np.ones(examples), np.ones(examples), margin=offered).outcome == "non_inferior"


def test_four_of_five_regressions_are_settled_at_the_examples_named():
    """300 trials, 500 resamples each: ± 0.023."""
    rng = np.random.default_rng(0)
    differences = rng.normal(0, 0.3, size=80)
    differences -= differences.mean()
    base = rng.normal(size=80)
    needed, now = numbers(compare(base, base + differences, margin=0.05, score="R²").settle)
    assert now == 80
    spread, settled = differences.std(ddof=1), []
    for trial in range(300):
        low, high = inflated_bootstrap_t(
            rng.normal(0, spread, size=needed), confidence=0.95, seed=trial, resamples=500)
        settled.append(low > -0.05 or high < -0.05)
    assert np.mean(settled) == pytest.approx(0.8, abs=0.07)


# Recipes


def grown(components: tuple[float, float, float], shape: tuple[int, int]) -> np.ndarray:
    """Differences that show exactly these components: between seeds, examples, residual."""
    (between_seeds, between_examples, residual), (seeds, examples) = components, shape
    return table(
        between_seeds + residual / examples, between_examples + residual / seeds, residual, shape
    )


def outcome_at(
    components: tuple[float, float, float], shape: tuple[int, int], margin: float
) -> Verdict:
    return compare(np.zeros(shape), grown(components, shape), margin=margin)


def settled_share(
    components: tuple[float, float, float], shape: tuple[int, int], margin: float
) -> float:
    """Of 800 verdicts on effects drawn anew, true difference 0; ± 0.014."""
    rng, (a, b, e), (seeds, examples) = np.random.default_rng(1), np.sqrt(components), shape
    hits = 0
    for _ in range(800):
        drawn = a * rng.normal(size=(seeds, 1)) + b * rng.normal(size=examples)
        parts = intervals.crossed(drawn + e * rng.standard_normal(shape))
        half = parts.half_width(0.95)
        hits += parts.mean - half > -margin or parts.mean + half < -margin
    return hits / 800


SEEDS_DOMINATE = (0.03**2, 0.05**2, 0.1**2)
EXAMPLES_DOMINATE = (0.001**2, 0.3**2, 0.1**2)
BALANCED = (0.02**2, 0.2**2, 0.1**2)
EITHER = (0.04**2, 0.2**2, 0.1**2)


def test_recipe_settles_by_seeds_alone_where_seeds_dominate():
    verdict = outcome_at(SEEDS_DOMINATE, (6, 100), 0.02)
    assert verdict.settle is not None
    assert "more test examples alone cannot: the spread between seeds" in verdict.settle
    seeds, now = numbers(verdict.settle)
    assert now == 6
    assert settled_share(SEEDS_DOMINATE, (seeds, 100), 0.02) == pytest.approx(0.8, abs=0.05)
    assert settled_share(SEEDS_DOMINATE, (6, 5_000), 0.02) < 0.4


def test_recipe_settles_by_examples_alone_where_examples_dominate():
    verdict = outcome_at(EXAMPLES_DOMINATE, (6, 100), 0.04)
    assert verdict.settle is not None
    assert "more seeds alone may not: too few test examples tell the two apart" in verdict.settle
    examples, now = numbers(verdict.settle)
    assert now == 100
    assert settled_share(EXAMPLES_DOMINATE, (6, examples), 0.04) == pytest.approx(0.8, abs=0.05)
    assert settled_share(EXAMPLES_DOMINATE, (300, 100), 0.04) < 0.4


def test_recipe_settles_by_either():
    verdict = outcome_at(EITHER, (6, 100), 0.065)
    seeds, seeds_now, examples, examples_now = numbers(verdict.settle)
    assert (seeds_now, examples_now) == (6, 100)
    for shape in ((seeds, 100), (6, examples)):
        assert settled_share(EITHER, shape, 0.065) == pytest.approx(0.8, abs=0.05)


def test_recipe_settles_only_by_both():
    verdict = outcome_at(BALANCED, (6, 100), 0.02)
    assert verdict.settle is not None and verdict.settle.startswith("Neither more seeds nor")
    seeds, examples, *now = numbers(verdict.settle)
    assert now == [6, 100]
    assert settled_share(BALANCED, (seeds, examples), 0.02) == pytest.approx(0.8, abs=0.05)
    assert settled_share(BALANCED, (300, 100), 0.02) < 0.5
    assert settled_share(BALANCED, (6, 5_000), 0.02) < 0.7


def test_nothing_settles_an_estimate_at_the_margin():
    artifact = compare(*outcomes(0, 5, 100), margin=0.05)
    assert artifact.settle == (
        "No realistic number of test examples would settle it, by what was seen here: more than "
        "100 times those at hand. The estimated difference lies too near minus the margin for its "
        "uncertainty."
    )
    recipe = compare(np.full((6, 100), 0.02), grown(BALANCED, (6, 100)), margin=0.02)
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
    parts = intervals.crossed(grown((a, b, e), (seeds, examples)))

    def chance(s: int, n: int) -> float:
        rows, columns, shared = a / s + e / (s * n), b / n + e / (s * n), e / (s * n)
        variance = a / s + b / n + e / (s * n)
        freedom = variance**2 / (
            rows**2 / (s - 1) + columns**2 / (n - 1) + shared**2 / ((s - 1) * (n - 1)))
        beyond = stats.nct.sf(stats.t.ppf(0.975, s - 1), freedom, distance / math.sqrt(variance))
        return float(beyond)

    distance = share * parts.half_width(0.95)
    need = sample_size.required_crossed(parts, distance, confidence=0.95)
    more_seeds = (s for s in range(seeds, 101) if chance(s, examples) >= 0.8)
    more_examples = (n for n in range(examples, 1001) if chance(seeds, n) >= 0.8)
    both = (s for s in range(seeds, 501) if chance(s, 12 * s) >= 0.8)
    fewest = next(both)
    assert need.both == (fewest, 12 * fewest)
    for found, searched, last in (
        (need.seeds, next(more_seeds, None), 100), (need.examples, next(more_examples, None), 1000)
    ):
        assert found == searched if searched else found is None or found > last


def test_power_of_a_t_test():
    """Noncentral t, by scipy."""
    for ratio, seeds in [(0.5, 5), (2.0, 10), (3.5, 20)]:
        quantile = stats.t.ppf(0.975, seeds - 1)
        expected = stats.nct.sf(quantile, seeds - 1, ratio)
        assert intervals.t_power(ratio, quantile, seeds - 1) == pytest.approx(expected)
