"""The sentences of a verdict: these alone are asserted word by word, here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wua_mlflow.verdict.compare import Verdict
from wua_mlflow.verdict.recipe import SeedCounts
from wua_mlflow.verdict.text import (
    class_control_sentence,
    class_loss_sentence,
    latency_unlike_flops,
    looks_sentence,
    margin_words,
    other_readings,
    short_verdict,
)

BASE = Verdict(
    kind="artifact", outcome="non_inferior", delta=-0.012, low=-0.018, high=-0.006, margin=0.02,
    confidence=0.95, examples=2000, seeds=1, method="Tango score interval", score="accuracy",
    settle=None)


def of(outcome: str = "non_inferior", **fields: object) -> Verdict:
    return replace(BASE, outcome=outcome, **{"low": -0.01, "high": 0.01, **fields})


WORSE = of("inferior", low=-0.05, high=-0.03)


def test_flops_that_fall_alone():
    assert latency_unlike_flops(1.43, (1.02, 0.98, 1.05)) == (
        "FLOPs fall 1.4×, but latency at batch 1 does not: ratio 1.02 (0.98 to 1.05).")
    for flops, latency in ((1.43, None), (1.04, (1.02, 0.98, 1.05)), (1.43, (1.2, 1.1, 1.3))):
        assert latency_unlike_flops(flops, latency) == ""


def test_other_readings_of_the_same_data_and_looks_at_a_test_set():
    recipe = of(kind="recipe", seeds=5)
    assert other_readings(recipe, of("inconclusive"), 4, of("inconclusive")) == [
        "That is the recipe's verdict, over seeds; of the two saved models alone it is "
        "inconclusive (accuracy −1.2 points, interval −1.0 to +1.0).",
        "Corrected for all 4 verdicts on this test set it is inconclusive."]
    assert other_readings(recipe, of(), 1, None) == []
    assert looks_sentence(10, of("inconclusive", low=-0.024, high=-0.016, confidence=0.995)) == (
        "This test set has been used for 10 verdicts: the more there are, the likelier that one "
        "is good by chance. Corrected for 10 verdicts (Bonferroni, 99.5% interval −2.4 to −1.6): "
        "the data cannot tell whether the loss stays within the margin (inconclusive).")
    assert looks_sentence(2).endswith("by chance.")


def test_a_verdict_in_a_bracket():
    assert short_verdict(BASE) == "95% interval −1.8 to −0.6: within the margin"
    assert short_verdict(of("inferior", low=-0.08, high=-0.03)).endswith(": beyond the margin")
    assert short_verdict(of("inconclusive", low=-0.03)).endswith(": inconclusive")


def test_sentences_and_headlines():
    assert BASE.sentence == (
        "Artifact verdict (these two saved models, 2,000 test examples): the slim model's accuracy "
        "minus the original's is −1.2 points (95% interval −1.8 to −0.6), against a margin of "
        "2 points: worse, but within the margin (non-inferior).")
    recipe = of("inconclusive", kind="recipe", seeds=20, high=0.0, low=-0.02, score="R²",
                counts=SeedCounts(20, 20, 0, 0, 0.0, 0.168))
    assert recipe.sentence == (
        "Recipe verdict (both trained with 20 seeds, 2,000 test examples): on average the "
        "slim model's R² minus the original's is −0.012 (95% interval −0.020 to 0.000), against a "
        "margin of 0.02: the data cannot tell whether the loss stays within the margin "
        "(inconclusive); none of its 20 seeds collapsed, but up to 17% of seeds could.")
    assert "of 1 point:" in replace(BASE, margin=0.01).sentence
    assert margin_words(replace(BASE, margin=0.005)) == "0.5 points of accuracy"
    assert "90% interval" in replace(BASE, confidence=0.9).sentence
    assert "99.99833% interval" in replace(BASE, confidence=1 - 0.05 / 3000).sentence
    assert BASE.headline == (
        "Worse, but within the margin: accuracy −1.2 points (95% interval −1.8 to −0.6; margin 2 "
        "points; these two models)")
    assert replace(WORSE, kind="recipe", seeds=7).headline == (
        "Not as good: accuracy −1.2 points (95% interval −5.0 to −3.0; margin 2 points; 7 seeds)")


@pytest.mark.parametrize(("low", "high", "shown"), [
    (-0.01996, 0.01, "−1.200 points (95% interval −1.996 to +1.000)"),
    (-0.0199, -0.0001, "−1.20 points (95% interval −1.99 to −0.01)"),
    (-0.015, -0.0001, "−1.20 points (95% interval −1.50 to −0.01)"),
    (-0.0184, 0.0, "−1.2 points (95% interval −1.8 to 0.0)"),
])
def test_limits_are_shown_on_their_side_of_the_margin_and_of_zero(low, high, shown):
    assert shown in replace(BASE, low=low, high=high).sentence


def test_single_classes_that_lose():
    assert class_loss_sentence([]) == ""
    assert class_loss_sentence([("a", 1000, -0.025), ("b", 7, -0.5)]) == (
        "Of the two saved models alone, single classes lose more than the margin: a (1,000 test "
        "examples) −2.5 points, b (7 test examples) −50.0 points.")
    assert class_loss_sentence([("a", 1000, -0.08)], 0.1).endswith(
        " −8.0 points; that is within the 10 points that the verdict allows a single class "
        "(class_margin).")
    assert "; the verdict allows a single class 7.5 points (class_margin)." in class_loss_sentence(
        [("a", 1000, -0.07), ("b", 7, -0.5)], 0.075)


def test_what_the_original_with_the_slim_ones_budget_does_on_a_class():
    assert class_control_sentence("1", -0.139, 5, trained_on=True, of_training=True) == (
        "Of the class 1 the original, trained on for as long, finds 13.9 points fewer than before "
        "on average over 5 seeds, too: it is the training, not the size.")
    assert class_control_sentence("1", 0.004, 1, trained_on=False, of_training=False) == (
        "Of the class 1 the original, trained for as long, finds 0.4 points more than before.")
