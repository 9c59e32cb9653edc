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
from wua_mlflow.verdict.inputs import R2Scores
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


def test_compare_chooses_the_method_by_shape_and_values():
    right = np.random.default_rng(0).random((6, 40)) < 0.8
    real = np.random.default_rng(1).normal(size=40)
    artifact = compare(right[0], right[1], margin=0.1)
    assert (artifact.kind, artifact.method) == ("artifact", "Tango score interval")
    assert (artifact.examples, artifact.seeds) == (40, 1)
    assert compare(right[:1], right[1:2], margin=0.1) == artifact
    assert compare(Results(right[0], "a"), Results(right[1], "a"), margin=0.1) == artifact
    assert compare(Results(right[0], "a"), right[1].tolist(), margin=0.1) == artifact
    assert compare(real, real**2, margin=0.1).method == "paired bootstrap-t"
    recipe = compare(right, ~right, margin=0.1)
    assert (recipe.kind, recipe.method) == ("recipe", "unpaired seeds crossed with examples, t")
    assert (recipe.examples, recipe.seeds) == (40, 6)


def test_compare_repeats_itself_and_the_seed_matters_little():
    base, cand = np.random.default_rng(0).gamma(2.0, size=(2, 200))
    first = compare(base, cand, margin=0.1)
    assert compare(base, cand, margin=0.1) == first
    other = compare(base, cand, margin=0.1, seed=1)
    assert other.low != first.low
    assert other.low == pytest.approx(first.low, abs=0.05 * (first.high - first.low))


@pytest.mark.parametrize(("gained", "lost", "margin", "outcome", "words"), [
    (40, 5, 0.01, "non_inferior", "better (non-inferior)"),
    (10, 10, 0.02, "non_inferior", "as good within the margin (non-inferior)"),
    (0, 10, 0.03, "non_inferior", "worse, but within the margin (non-inferior)"),
    (0, 40, 0.01, "inferior", "worse by more than the margin (inferior)"),
    (10, 20, 0.01, "inconclusive", "cannot tell whether the loss stays within the margin"),
])
def test_outcome_follows_from_the_interval(gained, lost, margin, outcome, words):
    verdict = compare(*outcomes(gained, lost, 1000), margin=margin)
    low, high = intervals.tango_interval(gained, lost, 1000, confidence=0.95)
    assert (verdict.delta, verdict.low, verdict.high) == ((gained - lost) / 1000, low, high)
    assert (low > -margin, high < -margin) == (outcome == "non_inferior", outcome == "inferior")
    assert verdict.outcome == outcome
    assert words in verdict.sentence
    assert (verdict.settle is None) == (outcome != "inconclusive")


@pytest.mark.parametrize("shape", [(60,), (6, 30)])
def test_verdict_scales_and_ignores_a_common_shift_and_the_order(shape):
    rng = np.random.default_rng(3)
    base, cand = rng.normal(size=(2, *shape))
    verdict = compare(base, cand, margin=0.9, score="R²")
    expected = pytest.approx((0.1 * verdict.delta, 0.1 * verdict.low, 0.1 * verdict.high))
    order = np.ix_(*(rng.permutation(size) if len(shape) > 1 else range(size) for size in shape))
    scaled = compare(0.1 * base[order] + 2, 0.1 * cand[order] + 2, margin=0.09, score="R²")
    assert (scaled.delta, scaled.low, scaled.high) == expected
    assert scaled.outcome == verdict.outcome


@pytest.mark.parametrize(("examples", "outcome"), [(380, "inconclusive"), (381, "non_inferior")])
def test_two_perfect_recipes_prove_no_more_than_their_examples(examples, outcome):
    assert compare(*np.ones((2, 20, examples)), margin=0.01).outcome == outcome


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


@pytest.mark.parametrize(("call", "name", "low"), [
    (lambda value: compare([0, 1], [1, 1], margin=value), "margin", "["),
    (lambda value: too_few_examples(100, value), "margin", "["),
    (required_examples_without_discordance, "margin", "("),
    (lambda value: compare([0, 1], [1, 1], margin=0.1, confidence=value), "confidence", "("),
    (lambda value: too_few_examples(100, 0.01, value), "confidence", "("),
    (lambda value: required_examples_without_discordance(0.01, value), "confidence", "("),
])
def test_margin_and_confidence_outside_their_range(call, name, low):
    for value in (3, 1, -0.1, math.nan, math.inf, "0.1", None, True, *([0] if low == "(" else [])):
        with pytest.raises(ValueError) as raised:
            call(value)
        assert str(raised.value) == f"{name}: expected a number in {low}0, 1), but got {value!r}"


SEEDS = ("seeds: expected at least 5 for a recipe verdict, or a single one for an artifact "
         "verdict, but got ")
SHAPE = "baseline: expected scores of shape (examples,) or (seeds, examples), but got "


@pytest.mark.parametrize(("baseline", "candidate", "message"), [
    (np.ones(540), np.ones(541),
     "baseline and candidate: expected scores of the same test examples, but got 540 and 541"),
    (np.ones((5, 90)), np.ones((11, 90)),
     "seeds: expected numbers at most a factor of two apart, but got 5 of the baseline and 11 of "
     "the candidate"),
    (np.ones((5, 9)), np.ones(9),
     "candidate: expected at least 5 seeds beside the baseline's 5, but got 1"),
    (np.ones((4, 9)), np.ones((4, 9)), f"{SEEDS}4"),
    ([1], [0], "examples: expected at least 2, but got 1"),
    (np.ones((2, 2, 2)), [1, 1], f"{SHAPE}(2, 2, 2)"),
    ([], [], f"{SHAPE}(0,)"),
    (Results(np.ones(3), "a1"), Results(np.ones(3), "b2"),
     "baseline and candidate: expected the same test set, but got the digests a1 and b2"),
])
def test_scores_that_do_not_fit(baseline, candidate, message):
    with pytest.raises(ValueError) as raised:
        compare(baseline, candidate, margin=0.01)
    assert str(raised.value) == message


def test_verdicts_alone_import_neither_scipy_nor_torch():
    """The package's own ``__init__`` is left out: other parts of it need torch."""
    code = ("import sys, types; package = types.ModuleType('wua_mlflow');"
            f"package.__path__ = [{str(Path(intervals.__file__).parents[1])!r}];"
            "sys.modules['wua_mlflow'] = package; import wua_mlflow.verdict.compare as verdict;"
            "print(verdict.compare([1, 1], [1, 0], margin=0.5).outcome);"
            "print([m for m in ('scipy', 'torch', 'mlflow') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["inconclusive", "[]"]


@pytest.mark.parametrize("shape", [(80,), (6, 80)])
def test_scores_that_know_their_targets_are_of_r2(shape):
    """The targets' variance is of the same draw; without the targets it counts as known."""
    rng = np.random.default_rng(0)
    targets = rng.standard_t(4, size=80)
    errors = rng.normal(size=shape), 1.3 * rng.normal(size=shape)
    scores = [1 - error**2 / targets.var() for error in errors]
    verdict = compare(*(R2Scores(each, targets) for each in scores), margin=0.2, score="R²")
    as_known = compare(*scores, margin=0.2, score="R²")
    assert verdict.delta == pytest.approx(as_known.delta)
    assert verdict.high - verdict.low > 1.05 * (as_known.high - as_known.low)
    answers = [targets + error for error in errors]
    computed = compare(*answers, targets=targets, score="r2", margin=0.2, class_margin=None)
    assert (computed.delta, computed.low) == pytest.approx((verdict.delta, verdict.low))


@pytest.mark.parametrize(("targets", "words"), [
    ([1.0, 2.0], "expected one for each of the 3 examples, but got the shape (2,)"),
    ([1.0, 1.0, 1.0], "expected at least two different values, but got one"),
    ([1.0, np.nan, 1.0], "expected finite scores, but got NaN or infinity"),
])
def test_targets_that_are_none(targets, words):
    side = R2Scores([0.1, 0.2, 0.4], targets)
    with pytest.raises(ValueError, match="^r2_targets: ") as raised:
        compare(side, side)
    assert words in str(raised.value)
