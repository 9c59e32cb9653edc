"""``compare``: design, outcome, invariances, sentences, errors.

References: intervals held by ``test_intervals.py``, scipy, sentences written by hand.
"""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from wua_mlflow.verdict import intervals
from wua_mlflow.verdict.compare import compare
from wua_mlflow.verdict.sample_size import required_examples_without_discordance, too_few_examples


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


# Invariances and little data


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


# Errors


@pytest.mark.parametrize("margin", [3, 1, -0.1, math.nan, math.inf, "0.1", None, True])
def test_margin_outside_its_range(margin):
    with pytest.raises(ValueError, match=r"^margin: expected a number in \[0, 1\), but got "):
        compare([0, 1], [1, 1], margin=margin)
    with pytest.raises(ValueError, match=r"^margin: expected a number in \[0, 1\), but got "):
        too_few_examples(100, margin)


@pytest.mark.parametrize("confidence", [0, 1, 95, math.nan])
def test_confidence_outside_its_range(confidence):
    with pytest.raises(ValueError, match=r"^confidence: expected a number in \(0, 1\), but got "):
        compare([0, 1], [1, 1], margin=0.1, confidence=confidence)
    with pytest.raises(ValueError, match=r"^confidence: expected a number in \(0, 1\), but got "):
        required_examples_without_discordance(0.01, confidence)
    with pytest.raises(ValueError, match=r"^confidence: expected a number in \(0, 1\), but got "):
        too_few_examples(100, 0.01, confidence)


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


def test_verdicts_alone_import_neither_scipy_nor_torch():
    """The package's own ``__init__`` is left out: other parts of it need torch."""
    code = (
        "import sys, types; package = types.ModuleType('wua_mlflow');"
        f"package.__path__ = [{str(Path(intervals.__file__).parents[1])!r}];"
        "sys.modules['wua_mlflow'] = package; import wua_mlflow.verdict.compare as verdict;"
        "print(verdict.compare([1, 1], [1, 0], margin=0.5).outcome);"
        "print([m for m in ('scipy', 'torch', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["inconclusive", "[]"]
