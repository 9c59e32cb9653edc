"""The report's words: what it leads with, what it says where nothing is saved, its table."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from wua_mlflow.pipeline.comparison import Comparison
from wua_mlflow.pipeline.report import (
    Report,
    html_report,
    markdown_report,
    table_text,
    terminal_reports,
)
from wua_mlflow.verdict import compare

OLD = {"accuracy/test": 0.9, "accuracy/train": 0.95, "score/test": 0.9, "flops/forward": 60.0,
       "params/total": 41.0, "latency/samples_per_s": 1000.0, "usage/top90_share": 0.65}
NEW = {"accuracy/test": 0.89, "accuracy/train": 0.93, "score/test": 0.89, "flops/forward": 42.0,
       "params/total": 29.0, "latency/samples_per_s": 1500.0}


def _report(ratios: dict[str, float], looks: int = 1) -> Report:
    old = np.ones(2000)
    new = np.ones(2000)
    new[:10] = 0
    comparison = Comparison(compare(old, new, margin=0.02), None, 0.005, -0.01, looks, ratios)
    return Report("demo 10 → 7", ["old", "new"], [OLD, NEW], comparison, again="Again.")


SAVES = {"compare/flops_ratio": 60 / 42, "compare/params_ratio": 41 / 29,
         "compare/size_ratio": 1.01, "compare/latency_ratio": 1.3}


def test_what_is_saved_and_what_is_not() -> None:
    assert _report(SAVES).saved == (
        "The slim model: 1.4× fewer FLOPs, 1.4× fewer parameters.")
    same = Report("t", ["a", "b"], [OLD, OLD], _report({}).comparison)
    assert same.saved == "The slim model saves nothing."
    slower = {**NEW, "flops/forward": 70.0, "latency/p50_ms": 3.0}
    worse = Report("t", ["a", "b"], [{**OLD, "latency/p50_ms": 2.0}, slower], same.comparison)
    assert worse.saved == (
        "The slim model: 1.2× more FLOPs, 1.4× fewer parameters, 1.5× slower at batch 1.")


def test_markdown_leads_with_the_verdict_and_its_interval() -> None:
    report = _report(SAVES, looks=3)
    lines = markdown_report(report).splitlines()
    assert lines[0].startswith("**As good within the margin: accuracy −0.5 points (95% interv")
    assert lines[0].endswith("; margin 2 points; these two models)**")
    assert re.search(r"95% interval −\d\.\d+ to −\d\.\d+", lines[0])
    assert lines[2] == report.saved
    assert "looked at for 3 verdicts" in markdown_report(report)
    assert lines[-1] == "Again."


def test_markdown_table_has_as_many_cells_in_every_row() -> None:
    text = markdown_report(_report(SAVES)).replace("\N{NO-BREAK SPACE}", "")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert "| accuracy, test | 0.9000 | 0.8900 | −0.0100 |" in rows
    assert "| FLOPs, one sample | 60 | 42 | 1.43× |" in rows
    assert "| samples a second, batched | 1,000 | 1,500 | 1.50× |" in rows
    assert "| share of weights that holds 90% | 65.00% | – |  |" in rows
    assert not any("R²" in row for row in rows)


def test_terminal_table_is_aligned() -> None:
    lines = table_text(_report(SAVES)).splitlines()
    ends = {line.rindex("0.8900") + 6 for line in lines if "0.8900" in line}
    ends |= {line.rindex(" 42") + 3 for line in lines if line.startswith("FLOPs, one")}
    assert len(ends) == 1


def test_terminal_says_the_verdict_last() -> None:
    text = terminal_reports(_report(SAVES))
    assert text.index("Accuracy: 0.9500 on the training data") < text.index("Verdict: As good w")
    assert text.endswith(_report(SAVES).saved)


def test_html_is_well_formed_and_escapes() -> None:
    report = Report("<demo>", ["a&b", "new"], [OLD, NEW], _report(SAVES).comparison)
    page = html_report(report, {})
    assert "<h1>&lt;demo&gt;</h1>" in page
    assert "<th>a&amp;b</th>" in page
    open_tags: list[str] = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("meta", "img"):
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Checker().feed(page)
    assert open_tags == []


@pytest.mark.parametrize("outcome", ["inferior", "inconclusive"])
def test_headlines_of_the_other_outcomes(outcome: str) -> None:
    old = np.ones(400)
    new = np.ones(400)
    new[: 60 if outcome == "inferior" else 8] = 0
    verdict = compare(old, new, margin=0.02)
    assert verdict.outcome == outcome
    report = Report("t", ["a", "b"], [OLD, NEW], Comparison(verdict, None, 0.0, 0.0, 1, {}))
    first = {"inferior": "Not as good: ", "inconclusive": "Inconclusive: "}[outcome]
    assert report.headline.startswith(first)
    assert (verdict.settle or "never") in terminal_reports(report) or outcome == "inferior"
