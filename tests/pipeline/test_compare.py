"""Damage, ratios, looks, budgets and the choice of the verdict, by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from wua_mlflow.config import Settings, load_settings
from wua_mlflow.data.datasets import load_data
from wua_mlflow.pipeline.compare import (
    check_classes,
    check_test_part,
    compare_evaluations,
    judge,
)
from wua_mlflow.results import Comparison, ratios
from wua_mlflow.training.evaluation import Evaluation
from wua_mlflow.verdict.compare import compare
from wua_mlflow.verdict.text import looks_sentence


def _evaluation(predictions: list[int], targets: list[int], task: str = "multiclass") -> Evaluation:
    guess, truth = np.array(predictions), np.array(targets, dtype=float)
    right = (guess == truth).astype(float)
    return Evaluation(task, guess, truth, 1 - right, right, "digest")  # type: ignore[arg-type]


def test_churn_and_the_worst_class() -> None:
    """Class 0: 3 of 4 right, then 1 of 4; class 1: 1 of 2, then 2 of 2; 4 of 6 answers differ."""
    targets = [0, 0, 0, 0, 1, 1]
    old = _evaluation([0, 0, 0, 1, 1, 0], targets)
    new = _evaluation([0, 1, 1, 2, 1, 1], targets)
    found = judge(old, new, Settings(), classes=("cat", "dog"), looks=1)
    assert found.churn == pytest.approx(4 / 6)
    assert found.worst_class_delta == pytest.approx(1 / 4 - 3 / 4)
    assert found.worst_class == "cat, 4 test examples"
    for classes, name in ((("cat", "dog"), "dog"), ((), "1")):
        back = judge(new, old, Settings(), classes=classes, looks=1)
        assert back.worst_class == f"{name}, 2 test examples"


def test_regression_has_neither() -> None:
    amounts = _evaluation([1, 2], [1, 2], "regression")
    found = judge(amounts, amounts, Settings(), classes=(), looks=1)
    assert (found.churn, found.worst_class_delta, found.worst_class) == (None, None, None)


def test_ratios_are_original_over_slim_of_what_both_measured() -> None:
    original = {"flops/forward": 60.0, "params/total": 41.0, "size/bytes": 100.0,
                "training/seconds": 3.0}
    slim = {"flops/forward": 42.0, "params/total": 29.0, "latency/p50_ms": 2.0,
            "training/seconds": 4.0}
    assert ratios(original, slim) == {
        "compare/flops_ratio": 60 / 42, "compare/params_ratio": 41 / 29,
        "compare/training_time_ratio": 0.75}


def test_the_recipes_verdict_comes_first() -> None:
    draw = np.random.default_rng(0)
    old, new = ((draw.random((5, 400)) < share).astype(float) for share in (0.9, 0.2))
    artifact = compare(old[0], old[0], margin=0.02)
    recipe = compare(old, new, margin=0.02)
    both = Comparison(artifact, recipe, 0.0, 0.0, 1, {})
    assert both.verdict is recipe
    assert both.tags["wua.verdict"] == both.tags["wua.verdict.recipe"] == "inferior"
    alone = Comparison(artifact, None, 0.0, 0.0, 1, {})
    assert alone.verdict is artifact
    assert "wua.verdict.recipe" not in alone.tags
    assert set(both.metrics) - set(alone.metrics) == {
        "compare/recipe_delta", "compare/recipe_delta_low", "compare/recipe_delta_high"}


def _alone(looks: int = 1, **options: Any) -> Comparison:
    same = compare(np.ones(400), np.ones(400), margin=0.02)
    return Comparison(same, None, 0.0, 0.0, looks, options.pop("ratios", {}), **options)


def test_the_interval_of_the_latency_ratio_is_logged() -> None:
    metrics = _alone(ratios={"compare/latency_ratio": 1.5},
                     latency_ratio=(1.5, 1.25, 1.75)).metrics
    assert (metrics["compare/latency_ratio_low"], metrics["compare/latency_ratio"],
            metrics["compare/latency_ratio_high"]) == (1.25, 1.5, 1.75)
    assert "compare/latency_ratio_low" not in _alone().metrics


@pytest.mark.parametrize(("flops", "timed", "said"), [
    (3.14, (1.02, 0.98, 1.05), ("FLOPs fall 3.1×, but latency at batch 1 does not: ratio 1.02 "
                                "(0.98 to 1.05).",)),
    (3.14, (0.8, 0.7, 0.9), ("FLOPs fall 3.1×, but latency at batch 1 does not: ratio 0.80 "
                             "(0.70 to 0.90).",)),
    (3.14, (1.2, 1.1, 1.3), ()),
    (1.04, (1.02, 0.98, 1.05), ()),
    (3.14, None, ()),
])
def test_flops_that_fall_without_latency_are_noted(flops, timed, said) -> None:
    assert _alone(ratios={"compare/flops_ratio": flops}, latency_ratio=timed).notes == said


def test_ten_looks_are_read_at_a_tenth_of_the_error() -> None:
    """200 of 10,000 lost, none gained; at 95% and at 99.5% by Tango's interval."""
    old = np.ones(10_000)
    new = np.where(np.arange(10_000) < 200, 0, 1)
    plain = compare(old, new, margin=0.0235)
    strict = compare(old, new, margin=0.0235, confidence=1 - 0.05 / 10)
    assert (plain.outcome, strict.outcome) == ("non_inferior", "inconclusive")
    (note,) = Comparison(plain, None, 0.0, 0.0, 10, {}, bonferroni=strict).notes
    assert note == looks_sentence(10, strict)
    assert "99.5% interval −2.4 to −1.6" in note
    assert _alone().notes == ()


@pytest.mark.parametrize(("seeds", "kind"), [(1, "artifact"), (4, "artifact"), (6, "recipe")])
def test_bonferronis_reading_is_of_the_same_verdict(seeds: int, kind: str) -> None:
    draw = np.random.default_rng(1)
    old, new = ((draw.random((seeds, 60)) < share).astype(float) for share in (0.9, 0.8))
    targets = np.arange(60) % 2
    pair = [Evaluation("multiclass", targets, targets, 1 - scores[0], scores[0], "digest")
            for scores in (old, new)]
    settings = Settings(margin=0.02, seed=42)
    for looks in (1, 4):
        found = judge(*pair, settings, classes=(), looks=looks, replicates=(old, new)).bonferroni
        if looks == 1:
            assert found is None
            continue
        scores = (old, new) if kind == "recipe" else (old[0], new[0])
        assert found == compare(*scores, margin=0.02, confidence=1 - 0.05 / 4, seed=42)
        assert found is not None and found.kind == kind


@pytest.mark.parametrize(("lost", "gained", "of", "said"), [
    (30, 0, 40, True), (12, 11, 40, False), (1, 0, 3, False), (8, 0, 400, False),
    (9, 0, 400, True)])
def test_a_class_that_loses_much_is_named(lost: int, gained: int, of: int, said: bool) -> None:
    """The other class, of 1,000, is answered alike; McNemar's exact test, two classes."""
    targets = np.r_[np.zeros(1000), np.ones(of)]
    old, new = np.ones(1000 + of), np.ones(1000 + of)
    new[1000:1000 + lost] = 0
    old[1000 + lost:1000 + lost + gained] = 0
    pair = [Evaluation("binary", scores, targets, 1 - scores, scores) for scores in (old, new)]
    found = judge(*pair, Settings(margin=0.02), classes=("a", "rare"), looks=1).class_loss
    p = 2 * sum(math.comb(lost + gained, k) for k in range(lost, lost + gained + 1)) / 2 ** (
        lost + gained)
    assert said == (p < 0.05 and (lost - gained) / of > 0.02)
    assert bool(found) == said
    if said:
        assert found == (f"Single classes lose more than the margin: rare ({of:,} test examples) "
                         f"−{100 * (lost - gained) / of:.1f} points.")


# Bad input


def test_test_sets_that_differ() -> None:
    one = _evaluation([0, 1], [0, 1])
    with pytest.raises(ValueError, match="^baseline and candidate: expected the same test set, "
                                         "but got the digests digest and other$"):
        compare_evaluations(one, replace(one, digest="other"), Settings())


def test_outputs_that_differ() -> None:
    classes, amounts = _evaluation([0, 1], [0, 1]), _evaluation([0, 1], [0, 1], "regression")
    with pytest.raises(ValueError, match="^compare: expected two models of the same outputs, but "
                                         "one is scored by accuracy and the other by R²$"):
        compare_evaluations(classes, amounts, Settings())
    binary = _evaluation([0, 1], [0, 1], "binary")
    assert compare_evaluations(classes, binary, Settings()).delta == 0


def test_one_class_only() -> None:
    one = _evaluation([0, 1, 1], [1, 1, 1])
    with pytest.raises(ValueError) as raised:
        compare_evaluations(one, one, Settings())
    assert str(raised.value) == (
        "test data: expected examples of at least two classes, but all 3 are of class 1; an "
        "accuracy on one class says nothing of the others")
    amounts = _evaluation([1, 1], [1, 1], "regression")
    assert compare_evaluations(amounts, amounts, Settings()).outcome == "inconclusive"


# What a test part can show, before anything is trained


@pytest.mark.parametrize(("data", "margin", "said"), [
    ("digits", 0.02, ""),
    ("wine", 0.02, "wua: note: test data: expected at least 189 examples to show even of equal "
                   "models that they are within a margin of 0.02, but got 54; take more, or a "
                   "margin of at least 0.0665\n"),
    ("wine", 0.07, ""),
    ("diabetes", 0.0001, ""),
])
def test_how_large_it_must_be(capsys, data, margin, said):
    check_test_part(load_data(data, seed=42), load_settings(None, {"margin": margin}))
    assert capsys.readouterr() == ("", said)


def test_one_class_alone():
    split = load_data("digits", seed=42)
    rows = split.test.targets == 3
    alone = replace(split, test=replace(split.test, inputs=split.test.inputs[rows],
                                        targets=split.test.targets[rows]))
    with pytest.raises(ValueError, match=f"^test data: expected examples of at least two classes, "
                                         f"but all {int(rows.sum())} are of class 3; "):
        check_test_part(alone, load_settings(None, {}))
    check_classes(np.array([0, 0, 1]))
