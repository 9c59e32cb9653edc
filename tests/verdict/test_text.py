"""The sentences of a verdict: these alone are asserted word by word, here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wua_mlflow.verdict.compare import Verdict
from wua_mlflow.verdict.recipe import SeedCounts
from wua_mlflow.verdict.text import (
    class_loss_sentence,
    decision_sentence,
    latency_gain,
    latency_unlike_flops,
    looks_sentence,
    margin_words,
    no_realistic_n,
    other_readings,
    short_verdict,
    size_gain,
)

BASE = Verdict(
    kind="artifact", outcome="non_inferior", delta=-0.012, low=-0.018, high=-0.006, margin=0.02,
    confidence=0.95, examples=2000, seeds=1, method="Tango score interval", score="accuracy",
    settle=None)


def of(outcome: str = "non_inferior", **fields: object) -> Verdict:
    return replace(BASE, outcome=outcome, **{"low": -0.01, "high": 0.01, **fields})


WORSE = of("inferior", low=-0.05, high=-0.03)
FASTER = [("3.0× faster per sample", True), ("3.0× smaller on disk", True)]
SAME = [("about as fast per sample", False), ("no smaller on disk", False)]
SURE = "(95% confidence, these two saved models)"
GAINS, NO_GAIN = (" and ".join(words for words, _ in gains) for gains in (FASTER, SAME))
PLACE = "it can take the original's place"
LOSS = f"worse than the original, by more than 2 points of accuracy {SURE}"
UNSETTLED = "It is not settled whether the slim model answers as well as the original within 2 " \
            "points of accuracy "
RISK = "the choice is to accept that risk or to"


@pytest.mark.parametrize(("verdict", "gains", "flops", "sentence"), [
    (of(), FASTER, 1.0,
     f"The slim model answers as well as the original within 2 points of accuracy {SURE}, is "
     f"{GAINS}; {PLACE} if 2 points is the right margin."),
    (of(low=0.001), FASTER, 1.0,
     f"The slim model answers better than the original {SURE}, is {GAINS}; {PLACE}."),
    (of(high=-0.001), FASTER, 1.0,
     f"The slim model answers worse than the original, but by less than 2 points of accuracy "
     f"{SURE}, is {GAINS}; {PLACE} if 2 points is the right margin."),
    (WORSE, FASTER, 1.0,
     f"The slim model answers {LOSS}, but is {GAINS}; to use it is to accept that loss."),
    (WORSE, [FASTER[0], SAME[1]], 1.0,
     f"The slim model answers {LOSS}, but is 3.0× faster per sample though no smaller on disk; to "
     f"use it is to accept that loss."),
    (WORSE, SAME, 1.0,
     f"The slim model answers {LOSS}, and is {NO_GAIN}; by the margin set, the original stays."),
    (of("inconclusive", low=-0.05), FASTER, 1.0,
     f"{UNSETTLED}{SURE}; it is {GAINS}; {RISK} test with more test examples."),
    (of("inconclusive", low=-0.05, kind="recipe", settle=no_realistic_n(recipe=True)), SAME, 1.0,
     f"{UNSETTLED}(95% confidence, 1 seed); it is {NO_GAIN}; more data would hardly settle it, so "
     f"{RISK} keep the original."),
    (of(), SAME, 6.0,
     f"The slim model answers as well as the original within 2 points of accuracy {SURE}, needs "
     f"6.0× fewer FLOPs but is {NO_GAIN}; that is its only gain."),
    (of(), FASTER, 6.0,
     f"The slim model answers as well as the original within 2 points of accuracy {SURE}, needs "
     f"6.0× fewer FLOPs and is {GAINS}; {PLACE} if 2 points is the right margin."),
    (WORSE, SAME, 6.0,
     f"The slim model answers {LOSS}, but needs 6.0× fewer FLOPs though it is {NO_GAIN}; to use it "
     f"is to accept that loss."),
    (of(score="R²", kind="recipe", seeds=7, margin=0.05), [], 1.0,
     "The slim model predicts as well as the original within 0.05 of R² (95% confidence, 7 seeds); "
     "neither its latency nor its size was measured; there is nothing to gain by it."),
])
def test_the_sentence_for_who_decides(verdict, gains, flops, sentence):
    assert decision_sentence(verdict, gains, flops) == sentence


@pytest.mark.parametrize(("ratio", "words", "gain"), [
    ((1.08, 1.06, 1.10), "1.08× faster per sample", True),
    ((1.03, 1.01, 1.05), "about as fast per sample", False),
    ((0.999, 0.998, 0.9995), "about as fast per sample", False),
    ((1.03, 0.98, 1.07), "not measurably faster per sample", False),
    ((0.8, 0.7, 0.9), "1.2× slower per sample", False)])
def test_latency_by_its_interval(ratio, words, gain):
    assert latency_gain(2.0, 1.0, ratio) == (words, gain)


def test_gains_without_an_interval_and_flops_that_fall_alone():
    assert latency_gain(3.0, 1.0, None) == ("3.0× faster per sample", True)
    assert latency_gain(None, 1.0, None) is None
    assert size_gain(9000.0, 3000.0) == ("3.0× smaller on disk", True)
    assert size_gain(9000.0, 18_000.0) == ("2.0× larger on disk", False)
    assert size_gain(9000.0, 9001.0) == ("no smaller on disk", False)
    assert size_gain(9000.0, None) is None
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
        "Single classes lose more than the margin: a (1,000 test examples) −2.5 points, b (7 test "
        "examples) −50.0 points.")
