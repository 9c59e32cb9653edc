"""Ratios, headlines and marks of the comparison against hand counts and the contract."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
import scipy.stats
from matplotlib.text import Text

from tests.plots.usages import words_of
from tests.report import cases
from tests.report.cases import variant
from wua_mlflow.plots.comparison import (
    QUANTITIES,
    comparison_data,
    plot_answer,
    plot_comparison,
)
from wua_mlflow.tracking.names import Metric

_BIG = {"accuracy/test": 0.8850, "flops/forward": 122.0, "params/total": 41.0, "size/bytes": 4321.0,
        "latency/p50_ms": 0.0431, "usage/effective_weights": 15.7751, "usage/entropy": 2.7584}
_SMALL = dict(zip(_BIG, (0.8730, 86.0, 29.0, 3987.0, 0.0425, 11.2361, 2.4191), strict=True))
_SEEDS = (0.885, 0.91, 0.84, 0.95, 0.80)


def verdict(low: float, high: float, outcome: str, **fields: object):
    return cases.verdict(outcome, delta=(low + high) / 2, low=low, high=high,
                         **{"kind": "recipe", **fields})


_BOTH = [verdict(-0.031, 0.007, "inconclusive", kind="artifact"),
         verdict(-0.091, 0.089, "inconclusive", kind="recipe")]


def _variant(name: str, metrics: dict[str, float], seeds=()):
    return variant(name, (10,), metrics=metrics, scores=tuple(seeds))


def _pair(big=_BIG, small=_SMALL, seeds=()):
    return [_variant("oversized", big, seeds), _variant("slim", small, seeds)]


def _labels(data) -> dict[str, list[str]]:
    return {panel.metric: list(panel.labels) for panel in data.panels}


def test_the_tutorials_figures_in_words():
    data = comparison_data(_pair())
    assert _labels(data) == {
        "flops/forward": ["122", "86 · 1.4× fewer"], "params/total": ["41", "29 · 1.4× fewer"],
        "size/bytes": ["4.32 kB", "3.99 kB · 1.08× smaller"],
        "latency/p50_ms": ["0.0431 ms", "0.0425 ms · about as fast"],
        "usage/effective_weights": ["15.8", "11.2 · 1.4× fewer"],
        "usage/entropy": ["2.758 nats", "2.419 nats · −0.34"]}
    assert data.savings == (
        "1.4× fewer FLOPs, 1.4× fewer parameters, 1.08× smaller on disk, about as fast per sample")
    timed = comparison_data(_pair(), latency=(1.04, 0.98, 1.1))
    assert "not measurably faster per sample" in timed.savings
    assert _labels(timed)["latency/p50_ms"][1] == "0.0425 ms · not measurably faster"
    contract = {value for key, value in vars(Metric).items() if not key.startswith("_")}
    assert {quantity.metric for quantity in QUANTITIES} <= contract


@pytest.mark.parametrize(("metric", "before", "after", "words"), [
    ("flops/forward", 50, 100, "2.0× more"), ("flops/forward", 1000, 81, "12× fewer"),
    ("flops/forward", 1000, 1001, "same"), ("flops/forward", 2_000_000, 1, "2,000,000× fewer"),
    ("latency/p50_ms", 1.0, 1.5, "1.5× slower"), ("usage/entropy", 2.0, 2.001, "same"),
])
def test_a_ratio_is_the_original_over_the_variant(metric, before, after, words):
    data = comparison_data(_pair({metric: before}, {metric: after}))
    assert data.panels[0].labels[1].split(" · ")[1] == words


def test_what_was_not_measured_is_said_and_the_scores_of_saved_models_and_over_seeds():
    data = comparison_data(_pair({"flops/forward": 10, "params/total": 0, "usage/entropy": 2},
                                 {"params/total": 4}))
    assert _labels(data) == {"flops/forward": ["10", "not measured"], "params/total": ["0", "4"],
                             "usage/entropy": ["2.000 nats", "not measured"]}
    assert data.savings == "" and data.scores[0].value is None
    row = comparison_data(_pair(seeds=_SEEDS)).scores[0]
    low, high = scipy.stats.t.interval(0.95, 4, row.mean, scipy.stats.sem(_SEEDS))
    assert row.half_width == pytest.approx((high - low) / 2)
    assert row.mean == pytest.approx(statistics.fmean(_SEEDS))
    assert row.words == f"0.8850\n5 seeds: {row.mean:.3f} ± {statistics.stdev(_SEEDS):.3f}"
    assert row.replicated and not comparison_data(_pair(seeds=[0.9])).scores[0].replicated
    data = comparison_data(_pair({"score/test": 0.8}, {"score/test": 0.7}))
    assert [row.value for row in data.scores] == [0.8, 0.7] and data.score_name == "score"


_YES, _OPEN = verdict(-0.01, 0.01, "non_inferior"), verdict(-0.09, 0.09, "inconclusive")


@pytest.mark.parametrize(("verdicts", "headline"), [
    ([], "slim beside oversized; no verdict"),
    ([_YES], "Yes: slim is as good as oversized, to within 2 points of accuracy"),
    ([verdict(-0.01, -0.002, "non_inferior")],
     "Worse, but within the margin: slim is behind oversized by less than 2 points of accuracy"),
    ([verdict(-0.09, -0.03, "inferior")],
     "No: slim is worse than oversized by more than 2 points of accuracy"),
    (_BOTH[:1], "Undecided: slim may be worse than oversized by more than 2 points of accuracy "
                "(these two models)"),
    ([verdict(-0.01, 0.01, "non_inferior", kind="artifact"), _OPEN],
     "Undecided: slim may be worse than oversized by more than 2 points of accuracy"),
    ([verdict(-0.01, 0.01, "non_inferior", score="R²")],
     "Yes: slim is as good as oversized, to within 0.02 of R²"),
])
def test_the_headline_answers_the_question_by_the_recipes_verdict(verdicts, headline):
    assert comparison_data(_pair(), verdicts).headline == headline


def test_wrong_figures_raise():
    for variants, message in (
            (_pair()[:1], "variants: expected at least two, but got 1"),
            (_pair(small={"flops/forward": float("nan")}), "finite figures, but slim has another"),
            (_pair(seeds=[0.5, float("inf")]), "finite figures, but oversized has another")):
        with pytest.raises(ValueError, match=message):
            comparison_data(variants)


@pytest.mark.parametrize(("variants", "verdicts", "words"), [
    (_pair(), [verdict(-0.018, -0.002, "non_inferior", kind="artifact", score="R²")],
     {"Is it as good?", "these two models:\nworse, within the margin\n−0.010 (−0.018 to −0.002)"}),
    ([_variant("a-model-with-quite-a-long-name-of-its-own", _BIG), *_pair()], _BOTH,
     {"recipe, over seeds:\ninconclusive\n−0.1 (−9.1 to +8.9)", "margin −2"}),
    (_pair({"flops/forward": 5e12}, {"flops/forward": 1e9}), [], {"What does it save?"}),
    ([*_pair(seeds=_SEEDS), _variant("slim-2", _SMALL, _SEEDS)], [_YES],
     {"recipe, over seeds:\nnon-inferior\n0.0 (−1.0 to +1.0)",
      "0.8730\n5 seeds: 0.877 ± 0.059"}),
])
def test_the_picture_is_legible(variants, verdicts, words, legible):
    data = comparison_data(variants, verdicts, latency=(1.04, 0.98, 1.1))
    figure = plot_comparison(data)
    drawn = legible(figure)
    panels = {ax: [text for text in ax.texts if text.get_text() in panel.labels]
              for ax, panel in zip(figure.axes[-len(data.panels):], data.panels, strict=True)}
    for ax, labels in panels.items():
        assert labels and max(label.get_window_extent().x1 for label in labels) <= ax.bbox.x1 + 1
    assert words | {data.headline} <= set(drawn)
    assert {label for panel in data.panels for label in panel.labels} <= set(drawn)


@pytest.mark.parametrize("verdicts", [_BOTH, _BOTH[:1]])
@pytest.mark.parametrize("names", [("oversized 10", "slim 7"), (
    "oversized 256-256-128-64", "slim-3 64-32-16-8")])
def test_the_answer_is_a_square_whose_words_are_read_when_it_is_small(verdicts, names, legible):
    pair = [_variant(name, figures, _SEEDS) for name, figures in zip(
        names, (_BIG, _SMALL), strict=True)]
    data = comparison_data(pair, verdicts, (1.04, 0.98, 1.1))
    figure = plot_answer(data)
    width, height = figure.get_size_inches()
    assert width == height
    drawn = " ".join(" ".join(legible(figure)).split())
    assert data.headline in drawn and data.savings in drawn
    assert "these two models: −1.2 (−3.1 to +0.7)" in drawn
    assert ("recipe, over seeds: −0.1 (−9.1 to +8.9)" in drawn) == (len(verdicts) == 2)
    sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text().strip()]
    assert min(sizes) * 200 / (72 * width) >= 8, "pixels of the smallest letters at 200 pixels"
    (axes,) = figure.axes
    spans = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2
             and line.get_marker() == "|"]
    assert [tuple(span) for span in spans] == [(each.low, each.high) for each in verdicts]


def test_intervals_of_several_methods_are_named_in_the_caption(legible):
    same = [replace(each, method="t") for each in _BOTH]
    assert comparison_data(_pair(), same).methods == ""
    data = comparison_data(_pair(), [same[0], replace(same[1], method="crossed")])
    words = " ".join(" ".join(legible(plot_comparison(data))).split())
    assert data.methods == ("The verdicts do not compare, as their methods differ: t (these two "
                            "models); crossed (recipe, over seeds).")
    assert data.methods in words


def test_bars_and_intervals_are_drawn_where_they_are():
    figure = plot_comparison(comparison_data(_pair({"params/total": 41}, {"params/total": 29})))
    (ax,) = figure.axes
    assert [(bar.get_x(), bar.get_width()) for bar in ax.patches] == [(0, 41), (0, 29)]
    assert ax.get_xlim()[0] == 0 and ax.get_ylim() == (1.5, -0.5)
    assert "Is it as good?" not in words_of(figure)
    figure = plot_comparison(comparison_data(_pair({}, {}), [verdict(-0.05, 0.01, "inconclusive")]))
    (ax,) = figure.axes
    *_, interval = ax.lines
    assert interval.get_xdata().tolist() == [-0.05, 0.01]
    assert ax.collections[0].get_offsets().tolist() == [[-0.02, 0]]
    assert ax.patches[0].get_x() == pytest.approx(-0.02)
