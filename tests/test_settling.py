"""What would settle an inconclusive verdict: each number named is put back in.

References: ``compare`` on data made to show exactly the components; linear search with scipy.
"""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from scipy import stats

from wua_mlflow import intervals, settling
from wua_mlflow.verdict import Verdict, compare, required_examples_without_discordance


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
        counts = gained * n / 500, lost * n / 500
        low, high = intervals.tango_interval(*counts, n, confidence=0.95)
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
    assert "more seeds alone may not: too few test examples tell the two apart" in verdict.settle
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
