"""The report's words: what it leads with, what it says where nothing is saved, its table."""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.report.cases import NEW, OLD, SAVES, report_with, round_of, verdict, widths_of_a_search
from wua_mlflow.cli.output import pipeline_text
from wua_mlflow.report.content import Report
from wua_mlflow.report.render import description, html_report, markdown_report
from wua_mlflow.results import Comparison, LayerChange
from wua_mlflow.verdict.compare import compare


def test_what_is_saved_and_what_is_not() -> None:
    assert report_with(SAVES).saved == (
        "The slim model: 1.4× fewer FLOPs, 1.4× fewer parameters.")
    same = Report("t", ["a", "b"], [OLD, OLD], report_with({}).comparison)
    assert same.saved == "The slim model saves nothing."
    slower = {**NEW, "flops/forward": 70.0, "latency/p50_ms": 3.0}
    worse = Report("t", ["a", "b"], [{**OLD, "latency/p50_ms": 2.0}, slower], same.comparison)
    assert worse.saved == (
        "The slim model: 1.2× more FLOPs, 1.4× fewer parameters, 1.5× slower at batch 1.")


def test_both_sentences_say_the_same_of_latency() -> None:
    """By the interval of the ratio, not by the two medians."""
    report = report_with(SAVES)
    timed = replace(report.comparison, latency_ratio=(1.03, 0.98, 1.07))
    metrics = [{**OLD, "latency/p50_ms": 3.0}, {**NEW, "latency/p50_ms": 1.0}]
    report = replace(report, comparison=timed, metrics=metrics)
    assert report.saved.endswith("fewer parameters, not measurably faster per sample.")
    assert "not measurably faster per sample" in report.in_short


def test_markdown_leads_with_the_sentence_its_figures_and_the_question() -> None:
    report = report_with(SAVES, looks=3)
    first, second, third = markdown_report(report).split("\n\n")[:3]
    assert first == f"**{report.in_short}**"
    assert "1.4× fewer FLOPs" in first
    assert re.match(r"As good within the margin: accuracy −0\.5 points \(95% interval −\d\.\d+ to "
                    r"−\d\.\d+; margin 2 points; these two models\)\. The slim model: 1\.4× fewer "
                    r"FLOPs, 1\.4× fewer parameters\.$", second)
    assert third == ("The question: Is new as good as old, to within 2 points of accuracy, and "
                     "what does it save?")
    text = markdown_report(report)
    assert "used for 3 verdicts" in text
    assert text.endswith("## Run it again\n\nAgain.\n")


def test_markdown_table_has_as_many_cells_in_every_row() -> None:
    text = markdown_report(report_with(SAVES)).replace("\N{NO-BREAK SPACE}", "")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert "| accuracy, test | 0.9000 | 0.8900 | −0.0100 |" in rows
    assert "| FLOPs, one sample | 60 | 42 | 1.43× |" in rows
    assert "| samples a second, batched | 1,000 | 1,500 | 1.50× |" in rows
    assert "| share of weights that holds 90% | 65.00% | – |  |" in rows
    assert not any("R²" in row for row in rows)


def test_what_there_is_to_tell_of_a_cut_in_rounds() -> None:
    """Each section, by words written down here."""
    good = verdict(delta=-0.001, low=-0.006, high=0.004)
    bad = verdict("inferior", delta=-0.03, low=-0.04, high=-0.021)
    report = replace(
        report_with(SAVES), names=["old", "slim 16"],
        layers=[LayerChange("fc1", 64, 16), LayerChange("fc|2", 10, 10)],
        uncut={"fc3": "its units are the network's outputs", "fc4": "its units are the network's "
               "outputs", "norm": "it normalises"},
        rounds=[round_of("slim 16", (16,), good, 3.1), round_of("slim-2 4", (4,), bad, 12.0)],
        widths=widths_of_a_search(), slimmed_by="By a knife.", ended="There was nothing left.")
    text = markdown_report(report).replace("\N{NO-BREAK SPACE}", "")
    titles = re.findall("^## (.*)$", text, re.M)
    assert titles == ["What the verdict rests on", "Rounds", "Layers before and after",
                      "How the widths were found", "How it was slimmed", "Run it again"]
    for line in (
        "| fc1 | 64 | 16 | 25% |", "| fc\\|2 | 10 | 10 | as many |",
        "- fc3, fc4: its units are the network's outputs.", "- norm: it normalises.",
        "| **slim 16** | **as good within the margin** | **−0.1 (−0.6 to +0.4) points** "
        "| **3.10×** | **the result** |",
        "| slim-2 4 | not as good | −3.0 (−4.0 to −2.1) points | 12.00× |  |",
        "There was no further round: There was nothing left.",
        "| **16** | **2,000** | **0.9600** | **−0.0100 (−0.0150 to −0.0050)** "
        "| **as good within the margin** |",
        "| 64 | 8,000 | 0.9700 | – | original |", "- It took long.",
        "- No width for fc9: it is never called.", "By a knife.",
    ):
        assert line in text.splitlines(), line


def test_pictures_stand_in_their_places() -> None:
    report = replace(report_with(SAVES), layers=[LayerChange("fc1", 64, 16)])
    page = html_report(report, {"comparison": b"one", "changes": b"two", "else": b"three"})
    places = [page.index(b64encode(png).decode()) for png in (b"one", b"two", b"three")]
    assert places == sorted(places)
    assert page.index("Layers before and after") < places[1]
    assert "<img" not in html_report(report, {})


@pytest.mark.parametrize("layers", [5, 400])
def test_a_description_is_no_longer_than_mlflow_keeps(layers: int) -> None:
    report = replace(
        report_with(SAVES), layers=[LayerChange(f"stages.{i}.conv", 64, 16) for i in range(layers)],
        uncut={f"stages.{i}.norm": f"reason {i}" for i in range(layers)})
    said = description(report)
    assert len(said) <= 8000
    whole = markdown_report(report)
    assert said.startswith(whole[:1500])
    if layers == 5:
        assert said == whole
    else:
        assert "and 388 more" in said or "and 396 more" in said
        assert said.endswith("The rest is in this run's artifacts `report.md` and `report.html`.\n")


def test_latency_is_told_with_its_interval() -> None:
    comparison = replace(report_with(SAVES).comparison, latency_ratio=(1.02, 0.98, 1.05))
    text = markdown_report(replace(report_with(SAVES), comparison=comparison, measured_on="a CPU"))
    assert "original ÷ slim 1.02 (95% interval 0.98 to 1.05)." in text


def test_html_is_well_formed_and_escapes() -> None:
    report = Report("<demo>", ["a&b", "new"], [OLD, NEW], report_with(SAVES).comparison,
                    again="Run `wua run` & <b>wait</b>.")
    page = html_report(report, {})
    assert "<h1>&lt;demo&gt;</h1>" in page
    assert "<th>a&amp;b</th>" in page
    assert "<p>Run <code>wua run</code> &amp; &lt;b&gt;wait&lt;/b&gt;.</p>" in page
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
    judged = compare(old, new, margin=0.02)
    assert judged.outcome == outcome
    report = Report("t", ["a", "b"], [OLD, NEW], Comparison(judged, None, 0.0, 0.0, 1, {}))
    first = {"inferior": "Not as good: ", "inconclusive": "Inconclusive: "}[outcome]
    assert report.headline.startswith(first)
    assert (judged.settle or "never") in pipeline_text(report) or outcome == "inferior"
