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

from tests.verdict.test_compare import outcomes
from wua_mlflow.verdict import intervals, sample_size
from wua_mlflow.verdict.bootstrap import inflated_bootstrap_t
from wua_mlflow.verdict.compare import compare
from wua_mlflow.verdict.sample_size import required_examples_without_discordance, too_few_examples


def numbers(sentence):
    """All but the chance."""
    bare = (sentence or "").replace("a chance of 80%", "")
    return [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", bare)]


@pytest.mark.parametrize(("gained", "lost", "margin"), [(10, 20, 0.03), (0, 20, 0.05)])
def test_four_of_five_artifacts_are_settled_at_the_examples_named(gained, lost, margin):
    """As many examples, right and wrong drawn with the shares seen; 600 trials: ± 0.016."""
    verdict = compare(*outcomes(gained, lost, 500), margin=margin)
    needed, now = numbers(verdict.settle)
    assert (verdict.outcome, now) == ("inconclusive", 500)
    assert "with a chance of 80%, if" in verdict.settle

    def settled(n: int) -> float:
        shares = [gained / 500, lost / 500, 1 - (gained + lost) / 500]
        drawn = np.random.default_rng(0).multinomial(n, shares, size=600)
        counts, times = np.unique(drawn, axis=0, return_counts=True)
        limits = [intervals.tango_interval(g, b, n, confidence=0.95) for g, b, _ in counts]
        return float(times @ [low > -margin or high < -margin for low, high in limits]) / 600

    assert settled(needed) == pytest.approx(0.8, abs=0.05)
    assert settled(needed // 2) < 0.65


def test_examples_for_an_artifact_by_hand():
    """Gains 1%, loses 2%, margin 2 points.

    Lost if delta were −0.02: q = (0.0702 + √(0.0702² − 8 · 0.000408)) ÷ 4 = 0.0277485;
    variances 2q − 0.0204 = 0.035097 and 0.03 − 0.01² = 0.0299;
    n > ((1.95996 · 0.187342 + 0.84162 · 0.172916) ÷ 0.01)² = 2628.8.
    """
    assert sample_size.required_tango(0.01, 0.02, margin=0.02, confidence=0.95) == 2629


@pytest.mark.parametrize("margin", [0.001, 0.025, 0.5])
def test_examples_without_discordance_are_the_fewest(margin):
    n = required_examples_without_discordance(margin)
    assert compare(*np.ones((2, n)), margin=margin).outcome == "non_inferior"
    fewer = compare(*np.ones((2, n - 1)), margin=margin)
    assert fewer.outcome == "inconclusive"
    assert numbers(fewer.settle) == [n - 1, n]
    assert sample_size.required_tango(0.0, 0.0, margin=margin, confidence=0.95) == n


def test_a_test_set_too_small_says_how_large_it_must_be_and_which_margin_can_be_shown():
    assert too_few_examples(380, 0.01) == (
        "test data: expected at least 381 examples to show even of equal models that they are "
        "within a margin of 0.01, but got 380; take more, or a margin of at least 0.0101")
    assert too_few_examples(381, 0.01) is None
    assert too_few_examples(267, 0.01, 0.9) and too_few_examples(268, 0.01, 0.9) is None
    assert too_few_examples(10_000, 0.0).startswith("margin: expected above 0, since at 0 no")
    for examples, margin in ((30, 0.02), (540, 0.001)):
        offered = float(too_few_examples(examples, margin).rsplit(" ", 1)[1])
        assert too_few_examples(examples, offered) is None
        assert too_few_examples(examples, 0.98 * offered) is not None
        assert compare(*np.ones((2, examples)), margin=offered).outcome == "non_inferior"


def test_four_of_five_regressions_are_settled_at_the_examples_named():
    """200 trials, 300 resamples each: ± 0.028."""
    rng = np.random.default_rng(0)
    differences = rng.normal(0, 0.3, size=80)
    differences -= differences.mean()
    base = rng.normal(size=80)
    needed, now = numbers(compare(base, base + differences, margin=0.06, score="R²").settle)
    assert now == 80
    spread, settled = differences.std(ddof=1), []
    for trial in range(200):
        low, high = inflated_bootstrap_t(
            rng.normal(0, spread, size=needed), confidence=0.95, seed=trial, resamples=300)
        settled.append(low > -0.06 or high < -0.06)
    assert np.mean(settled) == pytest.approx(0.8, abs=0.07)


def grown(components, shape):
    """Differences with mean 0 that show exactly these components.

    These are standard deviations: between seeds, between examples, residual.
    """
    (a, b, e), (seeds, examples), rng = np.square(components), shape, np.random.default_rng(0)

    def unit(size: int) -> np.ndarray:
        values = rng.normal(size=size)
        return (values - values.mean()) / values.std(ddof=1)

    noise = rng.normal(size=shape)
    noise += noise.mean() - noise.mean(axis=0) - noise.mean(axis=1, keepdims=True)
    noise /= math.sqrt(np.square(noise).sum() / ((seeds - 1) * (examples - 1)))
    effects = math.sqrt(a + e / examples) * unit(seeds)[:, None]
    return effects + math.sqrt(b + e / seeds) * unit(examples) + math.sqrt(e) * noise


def settled_share(components, shape, margin):
    """Of 800 verdicts on effects drawn anew, true difference 0; ± 0.014.

    The means of seeds and of examples and the residual sum of squares are independent (Cochran).
    """
    rng, (a, b, e), (seeds, examples) = np.random.default_rng(1), np.square(components), shape
    settled, freedom = 0, (seeds - 1) * (examples - 1)
    for _ in range(800):
        seed_means = rng.normal(0, math.sqrt(a + e / examples), size=seeds)
        example_means = rng.normal(0, math.sqrt(b + e / seeds), size=examples)
        parts = intervals.Crossed(
            rng.normal(0, math.sqrt(a / seeds + (b + e / seeds) / examples)),
            intervals.SideVariance(seeds, seed_means.var(ddof=1),
                                   e * rng.chisquare(freedom) / freedom),
            intervals.SideVariance(1), examples, example_means.var(ddof=1),
            intervals.effective_examples(example_means))
        settled += abs(parts.mean + margin) > parts.half_width(0.95)
    return settled / 800


BALANCED = (0.02, 0.2, 0.1)


@pytest.mark.parametrize(("components", "margin", "words", "now", "enough", "too_few"), [
    ((0.03, 0.05, 0.1), 0.02, "more test examples alone cannot: the spread between seeds",
     [6], lambda seeds: [(seeds, 100)], {(6, 5_000): 0.4}),
    ((0.001, 0.3, 0.1), 0.04, "more seeds alone may not: too few test examples tell the two apart",
     [100], lambda examples: [(6, examples)], {(300, 100): 0.4}),
    ((0.04, 0.2, 0.3), 0.06, "(now 6) on the same test examples, or about",
     [6, 100], lambda seeds, examples: [(seeds, 100), (6, examples)], {}),
    (BALANCED, 0.02, "Neither more seeds nor more test examples alone",
     [6, 100], lambda seeds, examples: [(seeds, examples)], {(300, 100): 0.5, (6, 5_000): 0.7}),
], ids=["seeds", "examples", "either", "both"])
def test_what_settles_a_recipe(components, margin, words, now, enough, too_few):
    verdict = compare(np.zeros(100), grown(components, (6, 100)), margin=margin)
    assert words in verdict.settle
    assert set(now) <= set(numbers(verdict.settle))
    for shape in enough(*(number for number in numbers(verdict.settle) if number not in now)):
        assert settled_share(components, shape, margin) == pytest.approx(0.8, abs=0.05)
    for shape, most in too_few.items():
        assert settled_share(components, shape, margin) < most


def test_nothing_settles_an_estimate_at_the_margin():
    artifact = compare(*outcomes(0, 5, 100), margin=0.05)
    assert artifact.settle == (
        "No realistic number of test examples would settle it, by what was seen here: more than "
        "100 times those at hand. The estimated difference lies too near minus the margin for its "
        "uncertainty.")
    recipe = compare(np.full(100, 0.02), grown(BALANCED, (6, 100)), margin=0.02)
    assert recipe.settle.startswith("No realistic number of seeds or test examples")
    assert compare(np.ones(50), np.ones(50), margin=0).settle == artifact.settle


@pytest.mark.parametrize(("lost", "hopeless"), [(51, True), (52, False), (49, True), (48, False)])
def test_an_estimate_within_a_tenth_of_the_half_width_of_the_margin_is_hopeless(lost, hopeless):
    verdict = compare(*outcomes(0, lost, 1000), margin=0.05)
    assert verdict.settle.startswith("No realistic number") == hopeless
    nearer = verdict.delta - verdict.low if lost < 50 else verdict.high - verdict.delta
    assert (abs(verdict.delta + 0.05) < 0.1 * nearer) == hopeless


@pytest.mark.parametrize("share", [0.99, 0.8, 0.4])
def test_crossed_need_by_linear_search(share):
    a, b, e, seeds, examples = 0.02**2, 0.2**2, 0.3**2, 5, 60
    parts = intervals.crossed(np.zeros((1, examples)),
                              grown((0.02, 0.2, 0.3), (seeds, examples)))
    distance = share * parts.half_width(0.95)

    def there(s: int, n: int) -> intervals.Crossed:
        return parts.predicted(s, 1, n)

    def enough(s: int, n: int) -> bool:
        rows, columns = a / s + e / (s * n), b / n + e / (s * n)
        variance = a / s + b / n + e / (s * n)
        freedom = variance**2 / (rows**2 / (s - 1) + columns**2 / (n - 1))
        quantile = max(stats.t.ppf(0.975, freedom),
                       there(s, n).half_width(0.95) / math.sqrt(variance))
        return stats.nct.sf(quantile, freedom, distance / math.sqrt(variance)) >= 0.8

    need = sample_size.required_crossed(parts, distance, confidence=0.95)
    fewest = next(s for s in range(seeds, 501) if enough(s, 12 * s))
    assert need.both == (fewest, 12 * fewest)
    more_seeds = next((s for s in range(seeds, 101) if enough(s, examples)), None)
    more_examples = next((n for n in range(examples, 1001) if enough(seeds, n)), None)
    assert need.seeds == more_seeds or (not more_seeds and need.seeds > 100)
    assert need.examples == more_examples or (not more_examples and need.examples > 1000)


def test_power_of_a_t_test():
    """Noncentral t, by scipy."""
    for ratio, seeds in [(0.5, 5), (2.0, 10), (3.5, 20)]:
        quantile = stats.t.ppf(0.975, seeds - 1)
        expected = stats.nct.sf(quantile, seeds - 1, ratio)
        assert intervals.t_power(ratio, quantile, seeds - 1) == pytest.approx(expected)
