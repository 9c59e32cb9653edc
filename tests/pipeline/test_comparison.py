"""Damage, ratios and the choice of the verdict, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from wua_mlflow.evaluation import Evaluation
from wua_mlflow.pipeline.comparison import Comparison, damage, ratios
from wua_mlflow.verdict import compare


def _evaluation(predictions: list[int], targets: list[int], task: str = "multiclass") -> Evaluation:
    guess, truth = np.array(predictions), np.array(targets, dtype=float)
    right = (guess == truth).astype(float)
    return Evaluation(task, guess, truth, 1 - right, right, "digest")  # type: ignore[arg-type]


def test_churn_and_the_worst_class() -> None:
    """Class 0: 3 of 4 right, then 1 of 4; class 1: 1 of 2, then 2 of 2; 4 of 6 answers differ."""
    targets = [0, 0, 0, 0, 1, 1]
    old = _evaluation([0, 0, 0, 1, 1, 0], targets)
    new = _evaluation([0, 1, 1, 2, 1, 1], targets)
    churn, worst = damage(old, new)
    assert churn == pytest.approx(4 / 6)
    assert worst == pytest.approx(1 / 4 - 3 / 4)


def test_regression_has_neither() -> None:
    one = _evaluation([1, 2], [1, 2], "regression")
    assert damage(one, one) == (None, None)


def test_ratios_are_original_over_slim_of_what_both_measured() -> None:
    original = {"flops/forward": 60.0, "params/total": 41.0, "size/bytes": 100.0}
    slim = {"flops/forward": 42.0, "params/total": 29.0, "latency/p50_ms": 2.0}
    assert ratios(original, slim) == {
        "compare/flops_ratio": 60 / 42, "compare/params_ratio": 41 / 29}


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
