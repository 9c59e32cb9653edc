"""The report's words beyond those of the golden report: rounds, savings, room, HTML."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from tests.report.cases import NEW, OLD, SAVES, report_with, round_of, verdict, widths_of_a_search
from wua_mlflow.report.answer import answer_text
from wua_mlflow.report.render import description, html_report, markdown_report
from wua_mlflow.results import TargetWidths
from wua_mlflow.widths.results import LayerChange

REPORT = report_with(SAVES)
SMALLER = "1.4× fewer parameters"


def _lines(report) -> list[str]:
    return markdown_report(report).replace("\N{NO-BREAK SPACE}", "").splitlines()


@pytest.mark.parametrize(("old", "new", "interval", "words"), [
    ({}, NEW, None, f"The slim model: 1.4× fewer FLOPs, {SMALLER}."),
    ({}, OLD, None, "The slim model saves nothing."),
    ({"latency/p50_ms": 2.0}, {**NEW, "flops/forward": 70.0, "latency/p50_ms": 3.0}, None,
     f"The slim model: 1.2× more FLOPs, {SMALLER}, 1.5× slower per sample."),
    ({"latency/p50_ms": 3.0}, {**NEW, "latency/p50_ms": 1.0}, (1.03, 0.98, 1.07),
     f"The slim model: 1.4× fewer FLOPs, {SMALLER}, not measurably faster per sample."),
])
def test_what_is_saved_and_what_is_not(old, new, interval, words):
    timed = replace(REPORT.comparison, latency_ratio=interval)
    report = replace(REPORT, metrics=[{**OLD, **old}, new], comparison=timed)
    assert report.saved == words
    assert ("not measurably faster per sample" in report.in_short) == (interval is not None)


def test_the_table_of_figures_and_what_would_settle_it():
    rows = [line for line in _lines(REPORT) if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert {"| FLOPs, one sample | 60 | 42 | 1.43× |",
            "| accuracy, test | 0.9000 | 0.8900 | −0.0100 |",
            "| samples a second, batched | 1,000 | 1,500 | 1.50× |",
            "| share of weights that holds 90% | 65.00% | – |  |"} <= set(rows)
    assert not any("R²" in row for row in rows)
    judged = verdict("inconclusive", settle="About 9 more.")
    report = replace(REPORT, comparison=replace(REPORT.comparison, artifact=judged))
    assert report.headline.startswith("Inconclusive: ")


def test_a_search_that_was_cut_short_says_so_on_the_console_in_the_report_and_its_picture():
    note = "stopped after 1 of 11 widths; smaller ones were not tried"
    whole = replace(report_with(SAVES), widths=widths_of_a_search())
    searched = replace(whole.widths.searched, stopped="budget", note=note)
    cut = replace(whole, widths=replace(whole.widths, searched=searched))
    sentence = f"The search of widths: {note}."
    assert sentence in " ".join(answer_text(cut).split())
    assert "The search of widths" not in answer_text(whole)
    assert f"- {note}" in _lines(cut)
    assert sentence in html_report(cut, {"trials": b""})
    assert TargetWidths.from_json(cut.widths.to_json()).searched.note == note


def test_what_there_is_to_tell_of_a_cut_in_rounds():
    """Each section, by words written down here."""
    good = verdict(delta=-0.001, low=-0.006, high=0.004)
    bad = verdict("inferior", delta=-0.03, low=-0.04, high=-0.021)
    report = replace(
        report_with(SAVES, looks=3), names=["old", "slim 16"],
        layers=[LayerChange("fc1", 64, 16), LayerChange("fc|2", 10, 10)],
        uncut={"fc3": "its units are the network's outputs", "fc4": "its units are the network's "
               "outputs", "norm": "it normalises"},
        rounds=[round_of("slim 16", (16,), good, 3.1), round_of("slim-2 4", (4,), bad, 12.0)],
        widths=widths_of_a_search(), slimmed_by="By a knife.", ended="There was nothing left.")
    lines = _lines(report)
    assert [line[3:] for line in lines if line.startswith("## ")] == [
        "What the verdict rests on", "Rounds", "Layers before and after",
        "How the widths were found", "How it was slimmed", "Run it again"]
    for line in (
        "| fc1 | 64 | 16 | 25% |", "| fc\\|2 | 10 | 10 | as many |",
        "- fc3, fc4: its units are the network's outputs.", "- norm: it normalises.",
        "| **slim 16** | **as good within the margin** | **−0.1 (−0.6 to +0.4) points** "
        "| **3.10×** | **the result** |",
        "| slim-2 4 | not as good | −3.0 (−4.0 to −2.1) points | 12.00× |  |",
        "There was no further round: There was nothing left.",
        "| **16** | **2,000** | **0.9600** | **−0.0100 (−0.0150 to −0.0050)** "
        "| **1** | **holds** |",
        "| 64 | 8,000 | 0.9700 | – | 1 | original |", "- It took long.",
        "- No width for fc9: it is never called.", "By a knife.",
    ):
        assert line in lines, line
    assert any("used for 3 verdicts" in line for line in lines)


@pytest.mark.parametrize("layers", [5, 400])
def test_a_description_is_no_longer_than_mlflow_keeps(layers):
    report = replace(
        REPORT, layers=[LayerChange(f"stages.{i}.conv", 64, 16) for i in range(layers)],
        uncut={f"stages.{i}.norm": f"reason {i}" for i in range(layers)})
    shown, whole = description(report), markdown_report(report)
    assert len(shown) <= 8000 and shown.startswith(whole[:1500])
    if layers == 5:
        assert shown == whole
    else:
        assert "and 388 more" in shown or "and 396 more" in shown
        assert shown.endswith("in this run's artifacts `report.md` and `report.html`.\n")


@pytest.mark.parametrize(("fields", "end"), [
    ({"slimmed_by": "x" * 9000}, "points of accuracy."), ({"names": ["a" * 9000, "b"]}, "aaa …")])
def test_a_description_loses_sections_then_words(fields, end):
    shown, more = description(replace(REPORT, **fields)).rsplit("\n\n", 1)
    assert len(shown) < 7800 and shown.endswith(end) and more.startswith("The rest is in")


def test_html_is_well_formed_and_escapes():
    """Pictures stand in their places, those without a place at the end."""
    report = replace(REPORT, title="<demo>", names=["a&b", "new"],
                     again="Run `wua run` & <b>wait</b>.", layers=[LayerChange("fc1", 64, 16)])
    assert "<img" not in html_report(report, {})
    page = html_report(report, {"comparison": b"one", "changes": b"two", "else": b"three"})
    places = [page.index(b64encode(png).decode()) for png in (b"one", b"two", b"three")]
    assert places == sorted(places)
    assert page.index("Layers before and after") < places[1]
    assert "<h1>&lt;demo&gt;</h1>" in page and "<th>a&amp;b</th>" in page
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
