"""The sentence for who decides: quality, latency, bytes, and what is to be decided."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from wua_mlflow.report.summary import caveats, in_short
from wua_mlflow.results import Comparison
from wua_mlflow.verdict.compare import compare
from wua_mlflow.verdict.text import margin_words

BASE = compare(np.ones(2000), np.ones(2000), margin=0.02)
OLD = {"latency/p50_ms": 3.0, "size/bytes": 9000.0}
SLIM = {"latency/p50_ms": 1.0, "size/bytes": 3000.0}
SAME = {"latency/p50_ms": 3.0, "size/bytes": 9000.0}


def comparison(outcome="non_inferior", *, low=-0.01, high=0.01, latency=None, ratios=None, **more):
    verdict = replace(BASE, outcome=outcome, low=low, high=high, **more)
    return Comparison(verdict, None, None, None, 1, ratios or {}, latency_ratio=latency)


@pytest.mark.parametrize(("found", "old", "new", "said"), [
    (comparison(), OLD, SLIM,
     "The slim model answers as well as the original within 2 points of accuracy (95% confidence, "
     "these two saved models), is 3.0× faster per sample and 3.0× smaller on disk; whoever owns "
     "the product decides whether 2 points is the right margin."),
    (comparison(low=0.001), OLD, SLIM,
     "The slim model answers better than the original (95% confidence, these two saved models), is "
     "3.0× faster per sample and 3.0× smaller on disk; whoever owns the product decides whether it "
     "takes the original's place."),
    (comparison(high=-0.001), OLD, SLIM,
     "The slim model answers worse than the original, but by less than 2 points of accuracy (95% "
     "confidence, these two saved models), is 3.0× faster per sample and 3.0× smaller on disk; "
     "whoever owns the product decides whether 2 points is the right margin."),
    (comparison("inferior", low=-0.05, high=-0.03), OLD, SLIM,
     "The slim model answers worse than the original, by more than 2 points of accuracy (95% "
     "confidence, these two saved models), but is 3.0× faster per sample and 3.0× smaller on disk; "
     "to use it, whoever owns the product would have to accept that loss."),
    (comparison("inferior", low=-0.05, high=-0.03), OLD, SAME,
     "The slim model answers worse than the original, by more than 2 points of accuracy (95% "
     "confidence, these two saved models), and is about as fast per sample and no smaller on disk; "
     "by the margin set, the original stays."),
    (comparison("inconclusive", low=-0.05), OLD, SLIM,
     "It is open whether the slim model answers as well as the original within 2 points of "
     "accuracy (95% confidence, these two saved models); it is 3.0× faster per sample and 3.0× "
     "smaller on disk; whoever owns the product decides whether to take the risk or to pay for "
     "more test examples."),
    (comparison(latency=(1.01, 0.97, 1.05), ratios={"compare/flops_ratio": 6.0}), OLD, SAME,
     "The slim model answers as well as the original within 2 points of accuracy (95% confidence, "
     "these two saved models), but is not measurably faster per sample and no smaller on disk; "
     "whoever owns the product decides whether 6.0× fewer FLOPs alone are worth the change."),
    (comparison(latency=(0.5, 0.4, 0.6)), OLD, {**SLIM, "size/bytes": 18_000.0},
     "The slim model answers as well as the original within 2 points of accuracy (95% confidence, "
     "these two saved models), but is 2.0× slower per sample and 2.0× larger on disk; there is "
     "nothing to gain by it."),
    (comparison(score="R²", kind="recipe", seeds=7, margin=0.05), {}, {},
     "The slim model predicts as well as the original within 0.05 of R² (95% confidence, 7 seeds); "
     "neither its latency nor its size was measured; there is nothing to gain by it."),
])
def test_what_is_said(found, old, new, said):
    assert in_short(found, old, new) == said


@pytest.mark.parametrize(("margin", "score", "words"), [
    (0.02, "accuracy", "2 points of accuracy"), (0.01, "accuracy", "1 point of accuracy"),
    (0.005, "accuracy", "0.5 points of accuracy"), (0.05, "R²", "0.05 of R²")])
def test_the_margins_unit(margin, score, words):
    assert margin_words(replace(BASE, margin=margin, score=score)) == words


def test_another_reading_of_the_same_data():
    recipe = replace(BASE, kind="recipe", seeds=5, outcome="non_inferior")
    found = replace(comparison("inconclusive"), recipe=recipe, looks=4,
                    bonferroni=replace(recipe, outcome="inconclusive"))
    assert caveats(found) == [
        "That is the recipe's verdict, over seeds; of the two saved models alone it is "
        "inconclusive.",
        "Read for all 4 looks at this test set it is inconclusive."]
    assert caveats(comparison()) == []
