"""``compare`` of predictions: values beside scikit-learn's, forms, alignment, groups, refusals."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics

from wua_mlflow.verdict.compare import Verdict, compare
from wua_mlflow.verdict.predictions import checked_predictions
from wua_mlflow.verdict.scores import SCORES

OF_PREDICTIONS = [name for name, score in SCORES.items() if score.takes != "scores"]

DRAW = np.random.default_rng(0)
N, SEEDS = 120, 6
Y = (DRAW.random(N) < 0.4).astype(int)
LOGITS = 2.0 * Y - 1 + DRAW.normal(0, 0.9, N)
OLD_P, NEW_P = (1 / (1 + np.exp(-LOGITS + DRAW.normal(0, 0.3, (SEEDS, N)))) for _ in range(2))
AMOUNTS = DRAW.normal(size=N)
OLD_A, NEW_A = (AMOUNTS + DRAW.normal(0, 0.4, N) + DRAW.normal(0, 0.1, (SEEDS, N))
                for _ in range(2))
REFERENCE = {
    "accuracy": metrics.accuracy_score, "balanced_accuracy": metrics.balanced_accuracy_score,
    "f1": metrics.f1_score, "mcc": metrics.matthews_corrcoef, "roc_auc": metrics.roc_auc_score,
    "f1_macro": lambda y, p: metrics.f1_score(y, p, average="macro"),
    "average_precision": metrics.average_precision_score, "log_loss": metrics.log_loss,
    "brier": metrics.brier_score_loss, "r2": metrics.r2_score, "mae": metrics.mean_absolute_error,
    "rmse": metrics.root_mean_squared_error,
}


def sides(score: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets and both sides' predictions, shape (S, n), as the score takes them."""
    if SCORES[score].takes == "values":
        return AMOUNTS, OLD_A, NEW_A
    if SCORES[score].takes == "labels":
        return Y, (OLD_P > 0.5).astype(int), (NEW_P > 0.5).astype(int)
    return Y, OLD_P, NEW_P


@pytest.mark.parametrize("seeds", [1, SEEDS])
@pytest.mark.parametrize("score", OF_PREDICTIONS)
def test_difference_is_that_of_scikit_learns_values(score: str, seeds: int) -> None:
    y, old, new = sides(score)
    verdict = compare(old[:seeds], new[:seeds], targets=y, score=score, margin=0.1)
    values = [np.mean([REFERENCE[score](y, row) for row in side[:seeds]]) for side in (old, new)]
    expected = 1 - values[1] / values[0] if SCORES[score].less_is_better else values[1] - values[0]
    assert verdict.delta == pytest.approx(expected, abs=1e-9)
    assert (verdict.baseline_score, verdict.candidate_score) == pytest.approx(values)
    assert verdict.low < verdict.delta < verdict.high
    assert verdict.kind == ("recipe" if seeds > 1 else "artifact")


def test_accuracy_of_predictions_is_the_verdict_of_right_or_wrong():
    y, old, new = sides("accuracy")
    for seeds in (slice(1), slice(None)):
        given = compare(old[seeds] == y, new[seeds] == y, margin=0.05)
        verdict = compare(old[seeds], new[seeds], targets=y, margin=0.05, class_margin=None)
        for name in ("method", "delta", "low", "high", "counts"):
            assert getattr(verdict, name) == getattr(given, name)


def test_f1_macro_is_over_the_classes_of_targets_and_both_sides():
    y, old, new = [0, 1, 0, 1, 1, 0], [0, 1, 0, 1, 0, 0], [0, 1, 2, 1, 1, 0]
    verdict = compare(old, new, targets=y, score="f1_macro", margin=0.5)
    values = [metrics.f1_score(y, side, labels=[0, 1, 2], average="macro", zero_division=0)
              for side in (old, new)]
    assert verdict.delta == pytest.approx(values[1] - values[0])


def test_a_share_of_the_originals_value_counts_that_value_as_an_estimate():
    """The interval of the logarithm of the ratio of means, by the delta method, written out."""
    old, new = (-np.log(np.where(Y == 1, p[0], 1 - p[0])) for p in (OLD_P, NEW_P))
    pair = checked_predictions(OLD_P[0], NEW_P[0], Y, "log_loss")
    first, second = pair.scores(0.1)
    expected = old / old.mean() - new / new.mean() + math.log(old.mean() / new.mean())
    assert (second - first)[0] == pytest.approx(expected)
    verdict = compare(OLD_P[0], NEW_P[0], targets=Y, score="log_loss", margin=0.1)
    assert (verdict.low > -0.1) == (math.log1p(-verdict.low) < math.log(1.1))


@pytest.mark.parametrize("factor", [0.0, 1e-12])
def test_a_candidate_without_a_loss_is_better(factor: float) -> None:
    perfect = AMOUNTS + factor * (OLD_A[0] - AMOUNTS)
    verdict = compare(OLD_A[0], perfect, targets=AMOUNTS, score="rmse", margin=0.1)
    assert verdict.outcome == "non_inferior"
    assert verdict.delta == pytest.approx(1.0)


COLUMNS = np.stack([1 - OLD_P, OLD_P], axis=-1), np.stack([1 - NEW_P, NEW_P], axis=-1)
INDEX = [f"row {number}" for number in range(N)]
ORDER = DRAW.permutation(N)


@pytest.mark.parametrize(("old", "new", "y", "options"), [
    (COLUMNS[0][0], COLUMNS[1][0], Y, {}),
    (COLUMNS[0][:1], COLUMNS[1][:1], Y, {}),
    (torch.tensor(OLD_P[0], requires_grad=True), NEW_P[0].tolist(), torch.tensor(Y), {}),
    (OLD_P[0], NEW_P[0], np.where(Y, "yes", "no"), {}),
    (COLUMNS[0][0][:, ::-1], COLUMNS[1][0][:, ::-1], np.where(Y, "a", "b"),
     {"classes": ["a", "b"]}),
    (pd.DataFrame(COLUMNS[0][0], columns=["no", "yes"]),
     pd.DataFrame(COLUMNS[1][0][:, ::-1], columns=["yes", "no"]), np.where(Y, "yes", "no"), {}),
    (pd.Series(OLD_P[0], INDEX), pd.Series(NEW_P[0], INDEX)[::-1],
     pd.Series(Y, INDEX).iloc[ORDER], {}),
], ids=["columns", "one seed", "tensors", "text", "classes", "tables", "index"])
def test_forms_of_the_same_probabilities(old: Any, new: Any, y: Any, options: Any) -> None:
    for score in ("roc_auc", "log_loss"):
        expected = compare(OLD_P[0], NEW_P[0], targets=Y, score=score, margin=0.1)
        verdict = compare(old, new, targets=y, score=score, margin=0.1, **options)
        assert verdict.delta == pytest.approx(expected.delta)
        assert verdict.outcome == expected.outcome
        if score == "roc_auc":
            continue
        seeds = compare(OLD_P, NEW_P, targets=Y, score=score, margin=0.1)
        assert compare(*COLUMNS, targets=Y, score=score, margin=0.1).low == pytest.approx(seeds.low)


def test_groups_are_single_draws():
    y, old, new = sides("accuracy")
    twice = [np.repeat(array, 2, axis=-1) for array in (old[0], new[0], y)]
    groups = np.repeat(np.arange(N), 2)
    plain = compare(old[0], new[0], targets=y, score="mcc", margin=0.1)
    doubled = compare(twice[0], twice[1], targets=twice[2], score="mcc", margin=0.1, groups=groups)
    assert (doubled.low, doubled.high) == pytest.approx((plain.low, plain.high))
    assert (doubled.examples, doubled.groups, plain.groups) == (2 * N, N, None)
    assert f"{2 * N} test examples of {N} groups" in doubled.sentence
    table = pd.Series(groups.astype(str), range(2 * N)).sample(frac=1, random_state=0)
    series = [pd.Series(array) for array in twice]
    again = compare(series[0], series[1], targets=series[2], score="mcc", margin=0.1, groups=table)
    assert again.low == pytest.approx(doubled.low)
    scores = compare(twice[0] == twice[2], twice[1] == twice[2], margin=0.1,
                     groups=np.arange(2 * N) // 3)
    assert scores.groups == 2 * N // 3
    assert scores.method == "paired bootstrap-t"


@pytest.mark.parametrize("groups", [None, np.arange(N) // 3])
def test_what_would_settle_it_is_said_in_examples(groups: Any) -> None:
    same = compare(OLD_P[0], OLD_P[0], targets=Y, score="roc_auc", margin=0.02, groups=groups)
    assert same.outcome == "inconclusive"
    assert same.settle is not None
    least = int(same.settle.split("at least ")[1].split()[0].replace(",", ""))
    assert least > N


@pytest.mark.parametrize("changed", [0, 1, 4])
@pytest.mark.parametrize("score", ["f1", "roc_auc", "rmse"])
def test_few_predictions_that_differ_reach_as_far_as_none(score: str, changed: int) -> None:
    """The influence of every example moves where one prediction does."""
    y, old, _ = sides(score)
    new = old[0].copy()
    few = np.flatnonzero(y < 0.5)[:changed // 2 if score == "roc_auc" else changed]
    new[few] = 1 - new[few]
    verdict = compare(old[0], new, targets=y, score=score, margin=0.2)
    assert verdict.delta - verdict.low > 0.9 * 3.84 / (N + 3.84)


def test_a_monotone_change_moves_no_rank():
    moved = checked_predictions(OLD_P[0], OLD_P[0] ** 3, Y, "roc_auc").moved
    assert not moved.any()
    assert checked_predictions(OLD_P[0], OLD_P[0] ** 3, Y, "log_loss").moved.all()


def test_a_function_of_targets_and_predictions():
    expected = compare(OLD_A[0], NEW_A[0], targets=AMOUNTS, score="r2", margin=0.1)
    verdict = compare(OLD_A[0], NEW_A[0], targets=AMOUNTS, score="sklearn.metrics:r2_score",
                      margin=0.1)
    assert verdict.delta == pytest.approx(expected.delta, abs=1e-2)
    assert verdict.candidate_score == pytest.approx(expected.candidate_score)
    assert verdict.low == pytest.approx(expected.low, abs=2e-2)  # of R² errors may be uneven


P = OLD_P[0]


@pytest.mark.parametrize(("given", "message"), [
    ({"score": "f1", "targets": None}, "score: f1 is not the mean of scores by example"),
    ({"score": "rmse", "targets": None}, "score: rmse is not the mean of scores by example"),
    ({"score": "f2"}, "score: expected one of accuracy"),
    ({"score": "accuracy"}, "baseline: expected classes for accuracy, but got 0."),
    ({"targets": AMOUNTS, "score": "accuracy"}, "targets: expected classes for accuracy, but got"),
    ({"targets": Y[:-1]}, "baseline: expected probabilities of the shape (examples,), (exampl"),
    ({"targets": np.zeros(N)}, "targets: expected examples of each of 2 classes for roc_auc"),
    ({"targets": np.where(Y, np.nan, 0)}, "targets: expected finite numbers"),
    ({"candidate": COLUMNS[0][0]}, "baseline and candidate: expected predictions of one form"),
    ({"candidate": P[:, None, None]}, "candidate: expected probabilities of the shape"),
    ({"candidate": ["a"] * N}, "candidate: expected numbers for roc_auc, but got 'a'"),
    ({"candidate": 3}, "candidate: expected an array of numbers or of labels, but got int"),
    ({"candidate": [[1, 2], [3]]}, "candidate: expected an array, but got seeds of 1 to 2"),
    ({"candidate": ["a"] * N, "score": "accuracy", "baseline": Y},
     "candidate: expected classes such as"),
    ({"baseline": OLD_P[:3]}, "seeds: expected at least 5"),
    ({"groups": np.zeros(N)}, "groups: expected at least two groups"),
    ({"groups": np.arange(N - 1)}, "groups: expected one label for each of 120 examples"),
    ({"groups": [None] * N}, "groups: expected a label for each example, but 120"),
    ({"groups": pd.Series(range(N), INDEX)}, "baseline: expected a pandas Series"),
    ({"targets": pd.Series(Y, INDEX)}, "baseline: expected a pandas Series or DataFrame too"),
    ({"class_margin": 2}, "class_margin: expected a number in (0, 1)"),
    ({"classes": ["a", "b"]}, "classes: expected all that the targets have, each once"),
    ({"score": "collections:Counter"}, "score: expected collections:Counter to take 120 targets"),
    ({"score": "log_loss", "baseline": P * 2}, "predictions: expected probabilities within"),
    ({"score": "rmse", "targets": P, "candidate": OLD_P[1]}, "margin: expected a share of the or"),
])
def test_refusals_in_one_line(given: dict[str, Any], message: str) -> None:
    call = {"baseline": P, "candidate": NEW_P[0], "targets": Y, "score": "roc_auc", **given}
    with pytest.raises(ValueError) as raised:
        compare(call.pop("baseline"), call.pop("candidate"), **call)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_seeds_and_classes_that_cannot_be_told_apart():
    square = DRAW.random((5, 5))
    with pytest.raises(ValueError, match=r"tells seeds from classes.*baseline\[None\]"):
        compare(square, square, targets=[0, 1, 0, 1, 1], score="roc_auc")
    seeds = np.stack([1 - square, square], axis=-1)
    assert compare(seeds, seeds, targets=[0, 1, 0, 1, 1], score="roc_auc").seeds == 5


def fuzzed(rng: np.random.Generator) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Predictions and targets of any kind, for any score."""
    n = int(rng.choice([2, 3, 5, 30]))
    kinds = [lambda s: rng.random((*s, n)), lambda s: rng.integers(0, 3, (*s, n)),
             lambda s: rng.integers(0, 2, (*s, n)), lambda s: np.full((*s, n), 1),
             lambda s: rng.choice(["a", "b"], (*s, n)), lambda s: rng.normal(size=(*s, n)),
             lambda s: rng.dirichlet([1, 1], (*s, n))]
    seeds = [(), (1,), (5,), (n,)][rng.integers(4)]
    kind = rng.integers(7)
    old, new = kinds[kind](seeds), kinds[kind if rng.random() < 0.9 else rng.integers(7)](seeds)
    y = kinds[rng.choice([kind, 2, 4]) % 6](())
    options = {"score": rng.choice([*OF_PREDICTIONS, "sklearn.metrics:max_error"]),
               "margin": rng.choice([0.0, 0.02, 0.3])}
    if rng.random() < 0.3:
        options["groups"] = rng.integers(0, 4, n)
    return old, new, y, options


def test_any_outcome_is_a_finite_verdict_or_one_line():
    rng, verdicts = np.random.default_rng(3), 0
    for _ in range(300):
        old, new, y, options = fuzzed(rng)
        try:
            verdict = compare(old, new, targets=y, **options)
        except ValueError as error:
            assert str(error) == " ".join(str(error).split())
            continue
        verdicts += 1
        numbers = [getattr(verdict, field.name) for field in fields(Verdict)]
        assert all(math.isfinite(number) for number in numbers if isinstance(number, float))
        assert verdict.low <= verdict.delta <= verdict.high
        assert "\n" not in verdict.sentence + (verdict.settle or "")
    assert verdicts > 60
