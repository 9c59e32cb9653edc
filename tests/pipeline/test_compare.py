"""Judging two evaluations, by hand: classes, looks, ratios, the verdict that decides, bad input."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from wua_mlflow.config import Settings, load_settings
from wua_mlflow.data.datasets import load_data
from wua_mlflow.pipeline.compare import check_test_part, compare_evaluations, judge
from wua_mlflow.pipeline.replicates import Replicate
from wua_mlflow.results import Comparison, ratios
from wua_mlflow.training.evaluation import Evaluation
from wua_mlflow.verdict.compare import compare
from wua_mlflow.verdict.text import class_loss_sentence, latency_unlike_flops, looks_sentence


def _evaluation(predictions: list[int], targets: list[int], task: str = "multiclass") -> Evaluation:
    guess, truth = np.array(predictions), np.array(targets, dtype=float)
    return Evaluation(task, guess, truth, (guess != truth) * 1.0, "digest")  # type: ignore[arg-type]


CLASSES, BINARY, AMOUNTS = (_evaluation([0, 1], [0, 1], task)
                            for task in ("multiclass", "binary", "regression"))


def test_churn_and_the_worst_class():
    """Class 0: 3 of 4 right, then 1 of 4; class 1: 1 of 2, then 2 of 2; 4 of 6 answers differ."""
    targets = [0, 0, 0, 0, 1, 1]
    old = _evaluation([0, 0, 0, 1, 1, 0], targets)
    new = _evaluation([0, 1, 1, 2, 1, 1], targets)
    comparison = judge(old, new, Settings(), classes=("cat", "dog"), looks=1)
    assert comparison.churn == pytest.approx(4 / 6)
    assert comparison.worst_class_delta == pytest.approx(1 / 4 - 3 / 4)
    assert comparison.worst_class == "cat, 4 test examples"
    for classes, name in ((("cat", "dog"), "dog"), ((), "1")):
        back = judge(new, old, Settings(), classes=classes, looks=1)
        assert back.worst_class == f"{name}, 2 test examples"
    amounts = judge(AMOUNTS, AMOUNTS, Settings(), classes=(), looks=1)
    assert (amounts.churn, amounts.worst_class_delta, amounts.worst_class) == (None, None, None)


@pytest.mark.parametrize(("lost", "gained", "of", "named"), [
    (30, 0, 40, True), (5, 0, 40, False), (12, 11, 40, False), (1, 0, 3, False), (8, 0, 400, False),
    (9, 0, 400, True)])
def test_a_class_that_loses_much_is_named(lost, gained, of, named):
    """The other class, of 1,000, is answered alike; McNemar's exact test, two classes."""
    targets = np.r_[np.zeros(1000), np.ones(of)]
    old, new = np.ones(1000 + of), np.ones(1000 + of)
    new[1000:1000 + lost] = 0
    old[1000 + lost:1000 + lost + gained] = 0
    pair = [Evaluation("binary", np.where(right == 1, targets, 1 - targets), targets, 1 - right)
            for right in (old, new)]
    differing, change = lost + gained, (gained - lost) / of
    p = 2 * sum(math.comb(differing, k) for k in range(lost, differing + 1)) / 2**differing
    assert named == (p < 0.05 and change < -0.02)
    assert judge(*pair, Settings(margin=0.02), classes=("a", "rare"), looks=1).class_loss == \
        class_loss_sentence([("rare", of, change)] * named, 0.1)


def test_ratios_are_original_over_slim_of_what_both_measured():
    original = {"flops/forward": 60.0, "params/total": 41.0, "size/bytes": 100.0,
                "training/seconds": 3.0}
    slim = {"flops/forward": 42.0, "params/total": 29.0, "latency/p50_ms": 2.0,
            "training/seconds": 4.0}
    assert ratios(original, slim) == {
        "compare/flops_ratio": 60 / 42, "compare/params_ratio": 41 / 29,
        "compare/training_time_ratio": 0.75}


def test_the_recipes_verdict_comes_first():
    draw = np.random.default_rng(0)
    old, new = ((draw.random((5, 400)) < share).astype(float) for share in (0.9, 0.2))
    artifact = compare(old[0], old[0], margin=0.02)
    recipe = compare(old, new, margin=0.02)
    both, alone = (Comparison(artifact, verdict, 0.0, 0.0, 1, {}) for verdict in (recipe, None))
    assert both.verdict is recipe
    assert both.tags["wua.verdict"] == both.tags["wua.verdict.recipe"] == "inferior"
    assert alone.verdict is artifact
    assert "wua.verdict.recipe" not in alone.tags
    assert set(both.metrics) - set(alone.metrics) == {
        "compare/recipe_delta", "compare/recipe_delta_low", "compare/recipe_delta_high"}


def test_latencies_and_looks_are_logged_and_noted():
    """200 of 10,000 lost, none gained; at 95% and, after ten looks, at 99.5% by Tango's method."""
    old = np.ones(10_000)
    new = np.where(np.arange(10_000) < 200, 0, 1)
    plain = compare(old, new, margin=0.0235)
    strict = compare(old, new, margin=0.0235, confidence=1 - 0.05 / 10)
    assert (plain.outcome, strict.outcome) == ("non_inferior", "inconclusive")
    first = Comparison(plain, None, 0.0, 0.0, 1, {})
    assert first.notes == ()
    assert "compare/latency_ratio_low" not in first.metrics
    tenth = replace(first, looks=10, bonferroni=strict, latency_ratio=(0.8, 0.7, 0.9),
                    ratios={"compare/flops_ratio": 3.14})
    assert tenth.notes == (looks_sentence(10, strict), latency_unlike_flops(3.14, (0.8, 0.7, 0.9)))
    assert "99.5% interval −2.4 to −1.6" in tenth.notes[0]
    assert [tenth.metrics[f"compare/latency_ratio{end}"] for end in ("", "_low", "_high")] == [
        0.8, 0.7, 0.9]


@pytest.mark.parametrize(("seeds", "kind"), [(4, "artifact"), (6, "recipe")])
def test_bonferronis_reading_is_of_the_same_verdict(seeds, kind):
    draw = np.random.default_rng(1)
    old, new = ((draw.random((seeds, 60)) < share).astype(float) for share in (0.9, 0.8))
    targets = np.arange(60) % 2
    sides = [np.where(side == 1, targets, 1 - targets) for side in (np.r_[old, old[:1]], new)]
    pair = [Evaluation("multiclass", side[0], targets, side[0] * 0.0, "digest") for side in sides]
    replicates = [[Replicate(0, right, 0.0, {}, predictions=row)
                   for row, right in zip(side, side == targets, strict=True)] for side in sides]
    settings = Settings(margin=0.02, seed=42, seeds=seeds)
    first, fourth = (judge(*pair, settings, classes=(), looks=looks,
                           replicates=tuple(replicates)).bonferroni for looks in (1, 4))
    assert first is None
    scores = (np.r_[old, old[:1]], new) if kind == "recipe" else (old[0], new[0])
    expected = compare(*scores, margin=0.02, confidence=1 - 0.05 / 4, seed=42)
    assert fourth is not None and fourth.kind == kind
    assert (fourth.delta, fourth.low, fourth.high) == (expected.delta, expected.low, expected.high)


ONE_CLASS = _evaluation([0, 1, 1], [1, 1, 1])


@pytest.mark.parametrize(("first", "second", "message"), [
    (CLASSES, replace(CLASSES, digest="other"), "compare: expected two models of the same test "
     "examples, but got the digests digest and other"),
    (CLASSES, AMOUNTS, "compare: expected two models of the same outputs, but one is scored by "
     "accuracy and the other by R²"),
    (ONE_CLASS, ONE_CLASS, "test data: expected examples of at least two classes, but all 3 are of "
     "class 1; an accuracy on one class says nothing of the others"),
])
def test_what_cannot_be_compared(first, second, message):
    with pytest.raises(ValueError) as caught:
        compare_evaluations(first, second, Settings())
    assert str(caught.value) == message
    assert compare_evaluations(CLASSES, BINARY, Settings()).delta == 0
    alike = _evaluation([1, 1], [1, 1], "regression")
    with pytest.raises(ValueError, match="^targets: expected at least two different values"):
        compare_evaluations(alike, alike, Settings())


@pytest.mark.parametrize(("data", "margin", "note"), [
    ("digits", 0.02, ""),
    ("wine", 0.02, "wua: note: test data: expected at least 189 examples to show even of equal "
                   "models that they are within a margin of 0.02, but got 54; take more, or a "
                   "margin of at least 0.0665\n"),
    ("wine", 0.07, ""), ("diabetes", 0.0001, ""),
])
def test_what_a_test_part_can_show(capsys, data, margin, note):
    settings, split = load_settings(None, {"margin": margin}), load_data(data, seed=42)
    check_test_part(split, settings)
    assert capsys.readouterr() == ("", note)
    if split.task != "regression":
        split.test.targets.fill_(3)
        with pytest.raises(ValueError, match=f"but all {len(split.test)} are of class 3; "):
            check_test_part(split, settings)
