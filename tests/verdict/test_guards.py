"""Guards: constant answers, tests that tell nothing, classes that are lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from wua_mlflow.verdict.compare import Verdict, compare
from wua_mlflow.verdict.guards import limits
from wua_mlflow.verdict.intervals import tango_interval
from wua_mlflow.verdict.text import question_answered

N = 6000
DRAW = np.random.default_rng(1)
SICK = np.arange(N) < 408
"""6.8% of 6,000."""


def answers(hits: float, alarms: float, seeds: int = 0) -> np.ndarray:
    """Predictions that find such shares of the sick, and of the well by mistake."""
    u = DRAW.random((seeds, N) if seeds else N)
    return np.asarray(u < np.where(SICK, hits, alarms))


NO = np.zeros(N, dtype=bool)
GOOD = answers(0.9, 0.01)


@pytest.mark.parametrize(("original", "outcome", "words"), [
    (GOOD, "inferior", None),
    (np.arange(N) < 80, "inferior", "of the class 1 (408 test examples)"),
    (np.arange(N) < 45, "inconclusive", "one and the same answer"),
    (np.arange(N) < 9, "inconclusive", "one and the same answer"),
    (NO, "inconclusive", "one and the same answer"),
])
def test_a_file_that_says_no_to_everything(original: np.ndarray, outcome: str, words: str) -> None:
    verdict = compare(original, NO, targets=SICK)
    assert verdict.outcome == outcome
    if words is not None:
        assert words in verdict.guard
        assert f"{verdict.guard} ({outcome})" in verdict.sentence
        assert verdict.guard in verdict.headline
        assert question_answered("A", "B", verdict).startswith(
            "No: B is worse than A in one class" if outcome == "inferior" else "Undecided: ")
        assert compare(original == SICK, NO == SICK).outcome == "non_inferior"
    assert verdict.constant_score == pytest.approx(1 - 408 / N)
    assert "a constant answer 93.2%" in verdict.sentence


def test_identical_copies_are_as_good_where_the_test_can_tell():
    for score in ("f1", "mcc", "balanced_accuracy"):
        verdict = compare(GOOD, GOOD, targets=SICK, score=score)
        assert (verdict.outcome, verdict.guard, verdict.delta) == ("non_inferior", "", 0.0)
    assert compare(GOOD, GOOD, targets=SICK, margin=0.01).outcome == "non_inferior"


def test_a_test_that_cannot_tell_names_a_score_that_can():
    verdict = compare(GOOD, GOOD, targets=SICK, margin=0.04)
    assert verdict.outcome == "inconclusive"
    assert verdict.guard.startswith("this test cannot tell a good model from a constant one")
    assert "less than twice the margin of 4 points" in verdict.guard
    assert verdict.settle is not None
    assert "score=balanced_accuracy" in verdict.settle
    guesses = np.arange(N) < 1
    hopeless = compare(guesses, guesses, targets=SICK)
    assert hopeless.outcome == "inconclusive"
    assert str(hopeless.settle).startswith("No score of these predictions")


def test_probabilities_and_numbers_have_constant_answers():
    rng = np.random.default_rng(2)
    x = rng.normal(size=400)
    y = rng.random(400) < 1 / (1 + np.exp(-3 * x))
    p = 1 / (1 + np.exp(-3 * x))
    share = y.mean()
    for score, constant in (("roc_auc", 0.5), ("average_precision", share),
                            ("brier", share * (1 - share))):
        verdict = compare(p, np.full(400, 0.5), targets=y, score=score, margin=0.1)
        assert verdict.constant_score == pytest.approx(constant)
        assert verdict.outcome == "inferior"
    noise = x + rng.normal(0, 0.2, 400)
    for score, constant in (("r2", 0.0), ("rmse", x.std())):
        verdict = compare(noise, noise, targets=x, score=score, margin=0.05)
        assert (verdict.constant_score, verdict.outcome) == (pytest.approx(constant),
                                                             "non_inferior")
    useless = rng.normal(size=400)
    blind = compare(useless, np.full(400, x.mean()), targets=x, score="rmse", margin=0.05)
    assert "one and the same answer" in blind.guard
    assert compare(useless, useless, targets=x, score="rmse", margin=0.05).guard.startswith(
        "the slim model scores below a constant answer (the mean)")


THREE = np.repeat(["cat", "cow", "dog"], [200, 200, 200])


def lose(share: float, *, seeds: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A good original, and a candidate that takes a share of the cows for dogs."""
    rng = np.random.default_rng(4)
    shape = (seeds, 600) if seeds else (600,)
    old, new = (np.where(rng.random(shape) < 0.99, THREE, "cat") for _ in range(2))
    return old, np.where((THREE == "cow") & (rng.random(shape) < share), "dog", new)


@pytest.mark.parametrize("seeds", [0, 5])
@pytest.mark.parametrize(("share", "class_margin", "outcome"), [
    (0.03, 0.10, "non_inferior"), (0.12, 0.10, "inconclusive"), (0.25, 0.10, "inferior"),
    (0.25, None, "non_inferior"), (0.25, 0.5, "non_inferior"),
])
def test_a_class_that_is_lost(
    share: float, class_margin: float | None, outcome: str, seeds: int
) -> None:
    old, new = lose(share, seeds=seeds)
    verdict = compare(old, new, targets=THREE, margin=0.2, class_margin=class_margin)
    assert verdict.outcome == outcome
    assert ("of the class cow (200 test examples)" in verdict.guard) == (outcome != "non_inferior")
    assert (verdict.settle is not None) == (outcome == "inconclusive")


def test_a_score_that_is_inferior_stays_so_without_a_guard():
    old, new = lose(0.9)
    verdict = compare(old, new, targets=THREE, margin=0.02)
    assert (verdict.outcome, verdict.guard) == ("inferior", "")


def test_intervals_of_guards_are_tangos_and_of_groups_wider():
    old, new = (side == THREE for side in lose(0.1))
    old, new = old[None].astype(float), new[None].astype(float)
    gained, lost = int((new > old).sum()), int((new < old).sum())
    assert limits(old, new, confidence=0.95) == tango_interval(gained, lost, 600, confidence=0.95)
    low, high = limits(old, new, confidence=0.95, groups=np.arange(600) // 20)
    plain = limits(old, new, confidence=0.95)
    assert high - low > plain[1] - plain[0]


def recipe(collapsed: int) -> Verdict:
    candidate = answers(0.9, 0.01, seeds=8)
    candidate[:collapsed] = NO
    return compare(answers(0.9, 0.01, seeds=8), candidate, targets=SICK, score="f1", margin=0.05)


def test_seeds_that_collapse_are_counted_and_left_out_of_the_guards():
    one = recipe(1)
    assert one.counts is not None
    assert (one.counts.collapsed, one.outcome, one.guard) == (1, "non_inferior", "")
    assert one.candidate_score == pytest.approx(recipe(0).candidate_score, abs=0.02)


def test_most_seeds_constant_is_no_good_model():
    same: Any = np.tile(NO, (6, 1))
    verdict = compare(same, same, targets=SICK)
    assert verdict.outcome == "inconclusive"
    assert "with 6 of 6 seeds" in verdict.guard


# Scores by example, beside those of a constant answer
def scored(mean: float, n: int = 400, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 0.1, n)


def test_scores_alone_are_guarded_by_a_constant_answers():
    good, constant = scored(0.8), scored(0.3, seed=1)
    assert compare(good, good + 0.001, margin=0.02, constant=constant).outcome == "non_inferior"
    same = compare(good, good, margin=0.02)
    assert (same.outcome, same.guard) == ("non_inferior", ""), "scores alone, as before"
    blind = compare(good, good, margin=0.02, constant=good - 0.03)
    assert blind.outcome == "inconclusive" and blind.guard, "the lead is less than two margins"
    lazy = compare(constant + 0.001, constant, margin=0.02, constant=constant)
    assert lazy.outcome == "inconclusive" and "one and the same answer" in lazy.guard
    worse = compare(good, good - 0.1, margin=0.02, constant=constant)
    assert worse.outcome == "inferior" and worse.constant_score == pytest.approx(constant.mean())


def test_perplexities_are_compared_as_shares_over_groups():
    words, sentences = 2000, 200
    old = scored(-1.5, words)
    groups = np.repeat(np.arange(sentences), words // sentences)
    constant = np.full(words, -2.3)
    for factor, outcome in ((1.0, "non_inferior"), (0.97, "non_inferior"), (1.06, "inferior")):
        new = old - np.log(factor)
        verdict = compare(old, new, margin=0.02, score="perplexity", groups=groups,
                          constant=constant)
        assert verdict.outcome == outcome and verdict.groups == sentences
        assert verdict.delta == pytest.approx(1 - factor)
        assert verdict.baseline_score == pytest.approx(np.exp(-old.mean()))
    unguarded = compare(old, old, margin=0.02, score="perplexity")
    assert unguarded.outcome == "non_inferior" and unguarded.baseline_score is None


@pytest.mark.parametrize(("options", "message"), [
    ({"constant": np.ones(3)}, "constant: expected a finite score for each of 400 examples"),
    ({"constant": np.full(400, np.nan)}, "constant: expected a finite score"),
    ({"constant": np.ones(400), "targets": np.ones(400)}, "constant: expected none beside")])
def test_a_constant_that_does_not_fit(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        compare(scored(0.8), scored(0.8), margin=0.02, **options)
