"""A comparison as markdown for a pull request."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from markdown_it import MarkdownIt

from wua_mlflow.config import Settings
from wua_mlflow.pipeline.compare import judge
from wua_mlflow.report.content import Report
from wua_mlflow.report.pair import pair_markdown, verdicts_record
from wua_mlflow.training.evaluation import Evaluation

TRUTH = np.arange(1000) % 2.0


def report(wrong: int, *, looks: int = 1, names: tuple[str, str] = ("main", "branch")) -> Report:
    """Of an original that errs in every tenth, and one that errs in ``wrong`` more."""
    sides = []
    for extra in (0, wrong):
        answers = np.where((np.arange(1000) % 10 < 1) | (np.arange(1000) < extra), 1 - TRUTH, TRUTH)
        sides.append(Evaluation("binary", answers, TRUTH, np.abs(answers - TRUTH), "d"))
    comparison = judge(*sides, Settings(margin=0.05), classes=("no", "yes"), looks=looks)
    return Report("", names, [{"accuracy/test": side.accuracy, "flops/forward": flops}
                              for side, flops in zip(sides, (200.0, 100.0), strict=True)],
                  replace(comparison, ratios={"compare/flops_ratio": 2.0}))


@pytest.mark.parametrize(("wrong", "outcome", "mark"), [
    (0, "non_inferior", "\u2705"), (200, "inferior", "\u274c"), (55, "inconclusive", "\u2754")])
def test_the_verdict_comes_first_then_the_sentence_and_the_figures(wrong, outcome, mark):
    made = report(wrong)
    text = pair_markdown(made, "Rows were matched by position.")
    head, sentence, table, *rest = text.strip().split("\n\n")
    assert head == f"### {mark} `{outcome}`: {made.headline}"
    assert sentence.startswith("Is branch as good as main, to within 5 points of accuracy")
    assert made.in_short in sentence
    rows = [[cell.strip(" \u00a0") for cell in line.strip("|").split("|")]
            for line in table.splitlines()]
    assert rows[0] == ["", "main", "branch", "change"]
    assert ["FLOPs, one sample", "200", "100", "2.00\u00d7"] in rows
    assert rest[-1] == "Rows were matched by position."
    assert (made.comparison.artifact.settle in text) == (outcome == "inconclusive") \
        if made.comparison.artifact.settle else outcome != "inconclusive"


def test_looks_are_read_out():
    assert "used for 7 verdicts" in pair_markdown(report(0, looks=7))


def test_names_are_words_and_nothing_else():
    """A model may be called anything."""
    page = MarkdownIt("commonmark").enable("table").render(
        pair_markdown(report(0, names=("<img src=x>", "a|[b](http://c)"))))
    assert not re.search(r"<(img|a)\b", page)


def test_the_record_has_what_machines_read():
    record = verdicts_record(report(0).comparison)
    assert (record["verdict"], record["artifact"]["examples"], record["recipe"]) == (
        "non_inferior", 1000, None)
