"""The sentence for who has to decide, and the gains in it, word by word."""

from __future__ import annotations

import pytest

from tests.verdict.test_text import WORSE, of
from wua_mlflow.verdict.decision import decision_sentence, latency_gain, size_gain
from wua_mlflow.verdict.text import no_realistic_n

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


def test_gains_without_an_interval():
    assert latency_gain(3.0, 1.0, None) == ("3.0× faster per sample", True)
    assert latency_gain(None, 1.0, None) is None
    assert size_gain(9000.0, 3000.0) == ("3.0× smaller on disk", True)
    assert size_gain(9000.0, 18_000.0) == ("2.0× larger on disk", False)
    assert size_gain(9000.0, 9001.0) == ("no smaller on disk", False)
    assert size_gain(9000.0, None) is None


@pytest.mark.parametrize(("artifact", "equal", "decision"), [
    (of(), "", "it can take the original's place if 2 points is the right margin."),
    (of(), "non_inferior", "it can take the original's place if 2 points is the right margin."),
    (of(), "inferior", "it can take the place of the original as it was trained if 2 points is the "
     "right margin."),
    (of("inconclusive"), "", "networks of its recipe can take the original's place if 2 points is "
     "the right margin; of the one that was saved alone this is not shown."),
    (of("inferior"), "inconclusive", "networks of its recipe can take the place of the original as "
     "it was trained if 2 points is the right margin; of the one that was saved alone this is not "
     "shown.")])
def test_whose_place_which_network_can_take(artifact, equal, decision):
    sentence = decision_sentence(of(kind="recipe", seeds=5), FASTER, 6.0, artifact=artifact,
                                 equal_budget=equal)
    assert sentence.partition("; ")[2] == decision
