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
def test_four_of_five_artifacts_are_settled_at_the_examples_as_seen(gained, lost, margin):
    """As many examples, right and wrong drawn with the shares seen; 600 trials: ± 0.016."""
    verdict = compare(*outcomes(gained, lost, 500), margin=margin)
    assert (verdict.outcome, verdict.needed.now) == ("inconclusive", (500,))
    (needed,) = verdict.needed.as_seen
    assert "with a chance of 80%" in verdict.settle
    assert numbers(verdict.settle)[-1] == needed

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
    assert (fewer.needed.low, fewer.needed.high, fewer.needed.now) == ((n,), (n,), (n - 1,))
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


def test_four_of_five_regressions_are_settled_at_the_examples_as_seen():
    """200 trials, 300 resamples each: ± 0.028."""
    rng = np.random.default_rng(0)
    differences = rng.normal(0, 0.3, size=80)
    differences -= differences.mean()
    base = rng.normal(size=80)
    verdict = compare(base, base + differences, margin=0.06, score="R²")
    (needed,) = verdict.needed.as_seen
    assert verdict.needed.now == (80,)
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


@pytest.mark.parametrize(("components", "margin", "kind", "too_few"), [
    ((0.03, 0.05, 0.1), 0.02, "seeds", {(6, 5_000): 0.4}),
    ((0.001, 0.3, 0.1), 0.04, "examples", {(300, 100): 0.4}),
    ((0.04, 0.2, 0.3), 0.06, "seeds", {}),
    (BALANCED, 0.02, "both", {(300, 100): 0.5, (6, 5_000): 0.7}),
], ids=["seeds", "examples", "either", "both"])
def test_what_settles_a_recipe(components, margin, kind, too_few):
    """One advice: seeds where they alone would do, else examples, else both."""
    verdict = compare(np.zeros(100), grown(components, (6, 100)), margin=margin)
    needed = verdict.needed
    assert needed.kind == kind
    shape = {"seeds": (*needed.as_seen, 100), "examples": (6, *needed.as_seen),
             "both": needed.as_seen}[kind]
    assert settled_share(components, shape, margin) == pytest.approx(0.8, abs=0.05)
    for shape, most in too_few.items():
        assert settled_share(components, shape, margin) < most


def test_an_estimate_at_the_margin_has_no_certain_number():
    artifact = compare(*outcomes(0, 5, 100), margin=0.05)
    (low,), high = artifact.needed.low, artifact.needed.high
    assert (low > 300, high, artifact.needed.as_seen) == (True, None, None)
    assert artifact.settle == (
        f"More than {low // 10 * 10} test examples (now 100) would settle it with a chance of 80%, "
        f"and no number is certain to: the true difference may be minus the margin itself.")
    recipe = compare(np.full(100, 0.02), grown(BALANCED, (6, 100)), margin=0.02)
    assert recipe.needed.high is None and recipe.needed.as_seen is None
    nothing = compare(np.ones(50), np.ones(50), margin=0)
    assert nothing.settle.startswith("No realistic number of test examples would settle it")
    assert nothing.needed is None


@pytest.mark.parametrize(("gained", "lost", "margin", "opened"), [
    (10, 20, 0.03, True), (10, 14, 0.03, False), (30, 20, 0.01, False), (0, 16, 0.05, False)])
def test_a_range_ends_where_intervals_of_difference_and_variance_do(gained, lost, margin, opened):
    """The fewer at the end farther from −margin, the more at the nearer: both by Nam's formula."""
    verdict = compare(*outcomes(gained, lost, 500), margin=margin, confidence=0.99)
    ends = intervals.tango_interval(gained, lost, 500, confidence=0.8)
    wilson = stats.binomtest(gained + lost, 500).proportion_ci(0.8, method="wilson")
    expected = []
    for end, share in ((ends[1], wilson.low), (ends[0], wilson.high)):
        share = max(share, abs(end))
        expected.append(sample_size.required_tango(
            (share + end) / 2, (share - end) / 2, margin=margin, confidence=0.99))
    assert verdict.needed.low == (expected[0],)
    assert opened == (ends[0] < -margin)
    assert verdict.needed.high == (None if opened else (expected[1],))
    assert verdict.needed.low <= verdict.needed.as_seen


@pytest.mark.parametrize(("draw", "margin", "truth"), [
    (lambda rng: outcomes(*rng.multinomial(300, [0.05, 0.05, 0.9])[:2], 300), 0.03,
     sample_size.required_tango(0.05, 0.05, margin=0.03, confidence=0.95)),
    (lambda rng: (np.zeros(100), rng.normal(size=(6, 1)) * 0.03 + grown((0, 0.05, 0.1), (6, 100))),
     0.025, 25),
], ids=["examples", "seeds"])
def test_the_range_mostly_holds_the_right_number(draw, margin, truth):
    """Of inconclusive pilots; the goal is 80%."""
    rng, held = np.random.default_rng(5), []
    for _ in range(60):
        needed = compare(*draw(rng), margin=margin).needed
        if needed is not None:
            held.append((needed.low <= needed.now or needed.low[0] <= truth)
                        and (needed.high is None or truth <= needed.high[0]))
    assert len(held) > 20
    assert np.mean(held) > 0.75


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
