"""Ratios, headlines and marks of the comparison against hand counts and the contract."""

from __future__ import annotations

import statistics

import pytest

from tests.plots.usages import verdict, words_of
from tests.report.cases import variant
from wua_mlflow.plots.comparison import QUANTITIES, comparison_data, plot_comparison
from wua_mlflow.results import VariantResult
from wua_mlflow.tracking.names import Metric
from wua_mlflow.verdict.text import interval_words, outcome_words

_BIG = {
    "accuracy/test": 0.8850,
    "flops/forward": 122.0,
    "params/total": 41.0,
    "size/bytes": 4321.0,
    "latency/p50_ms": 0.0431,
    "usage/effective_weights": 15.7751,
    "usage/entropy": 2.7584,
}
_SMALL = {
    "accuracy/test": 0.8730,
    "flops/forward": 86.0,
    "params/total": 29.0,
    "size/bytes": 3987.0,
    "latency/p50_ms": 0.0425,
    "usage/effective_weights": 11.2361,
    "usage/entropy": 2.4191,
}
_SEEDS = (0.885, 0.91, 0.84, 0.95, 0.80)


def _variant(name: str, metrics: dict[str, float], seeds=()) -> VariantResult:
    return variant(name, (10,), metrics=metrics, scores=tuple(seeds))


def _pair(big=_BIG, small=_SMALL, seeds=()) -> list[VariantResult]:
    return [_variant("oversized", big, seeds), _variant("slim", small, seeds)]


def _labels(data) -> dict[str, list[str]]:
    return {panel.metric: list(panel.labels) for panel in data.panels}


def test_the_tutorials_figures_in_words():
    labels = _labels(comparison_data(_pair()))
    assert labels == {
        "flops/forward": ["122", "86 · 1.4× fewer"],
        "params/total": ["41", "29 · 1.4× fewer"],
        "size/bytes": ["4.32 kB", "3.99 kB · 1.08× smaller"],
        "latency/p50_ms": ["0.0431 ms", "0.0425 ms · about as fast"],
        "usage/effective_weights": ["15.8", "11.2 · 1.4× fewer"],
        "usage/entropy": ["2.758 nats", "2.419 nats · −0.34"],
    }


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (100, 50, "2.0× fewer"),
        (50, 100, "2.0× more"),
        (1000, 81, "12× fewer"),
        (104, 100, "1.04× fewer"),
        (1000, 1001, "same"),
        (2_000_000, 1, "2,000,000× fewer"),
    ],
)
def test_a_ratio_is_the_original_over_the_variant(before, after, words):
    data = comparison_data(_pair({"flops/forward": before}, {"flops/forward": after}))
    assert data.panels[0].labels[1].split(" · ")[1] == words


def test_a_slower_model_is_called_slower_and_a_near_one_as_fast():
    slower = comparison_data(_pair({"latency/p50_ms": 1.0}, {"latency/p50_ms": 1.5}))
    assert slower.savings == "1.5× slower at batch 1"
    near = comparison_data(_pair({"latency/p50_ms": 1.0}, {"latency/p50_ms": 0.97}))
    assert near.savings == "about as fast at batch 1"


def test_what_was_not_measured_is_said_and_what_nobody_measured_left_out():
    data = comparison_data(_pair({"flops/forward": 10, "params/total": 0}, {"params/total": 4}))
    assert _labels(data) == {
        "flops/forward": ["10", "not measured"],
        "params/total": ["0", "4"],
    }
    assert data.savings == "" and data.scores[0].value is None


def test_savings_name_everything_that_differs():
    data = comparison_data(_pair())
    assert data.savings == (
        "1.4× fewer FLOPs, 1.4× fewer parameters, 1.08× smaller on disk, about as fast at batch 1"
    )


def test_every_metric_name_is_the_contracts():
    contract = {value for key, value in vars(Metric).items() if not key.startswith("_")}
    assert {quantity.metric for quantity in QUANTITIES} <= contract
    assert {"accuracy/test", "score/test"} <= contract


def test_replicates_have_the_mean_and_the_spread_of_the_statistics_module():
    row = comparison_data(_pair(seeds=_SEEDS)).scores[0]
    assert row.mean == pytest.approx(statistics.fmean(_SEEDS))
    assert row.std == pytest.approx(statistics.stdev(_SEEDS))
    assert row.replicated and not comparison_data(_pair(seeds=[0.9])).scores[0].replicated


def test_a_regression_is_compared_by_its_score():
    data = comparison_data(_pair({"score/test": 0.8}, {"score/test": 0.7}))
    assert [row.value for row in data.scores] == [0.8, 0.7] and data.score_name == "score"


@pytest.mark.parametrize(
    ("found", "headline"),
    [
        (None, "slim beside oversized; no verdict"),
        (
            verdict(-0.01, 0.01, "non_inferior"),
            "Yes: slim is as good as oversized, to within 2 points of accuracy",
        ),
        (
            verdict(-0.01, -0.002, "non_inferior"),
            "Worse, but within the margin: slim is behind oversized by less than 2 points of "
            "accuracy",
        ),
        (
            verdict(-0.09, -0.03, "inferior"),
            "No: slim is worse than oversized by more than 2 points of accuracy",
        ),
        (
            verdict(-0.09, 0.09, "inconclusive", kind="artifact"),
            "Undecided: slim may be worse than oversized by more than 2 points of accuracy "
            "(these two models)",
        ),
        (
            verdict(-0.01, 0.01, "non_inferior", score="R²"),
            "Yes: slim is as good as oversized, to within 0.02 of R²",
        ),
    ],
)
def test_the_headline_answers_the_question(found, headline):
    assert comparison_data(_pair(), [found] if found else []).headline == headline


def test_the_recipes_verdict_decides_over_the_artifacts():
    both = [
        verdict(-0.01, 0.01, "non_inferior", kind="artifact"),
        verdict(-0.09, 0.09, "inconclusive", kind="recipe"),
    ]
    assert comparison_data(_pair(), both).headline.startswith("Undecided")
    assert comparison_data(_pair(), both[:1]).headline.startswith("Yes")


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-0.0310, 0.0070, "−1.2 (−3.1 to +0.7)"),
        (-0.0199, 0.0041, "−0.79 (−1.99 to +0.41)"),
        (-0.0202, -0.0004, "−1.03 (−2.02 to −0.04)"),
        (0.0, 0.0, "0.0 (0.0 to 0.0)"),
        (-0.02, 0.02, "0.0 (−2.0 to +2.0)"),
    ],
)
def test_an_interval_is_written_so_that_each_limit_stays_on_its_side(low, high, words):
    assert interval_words(verdict(low, high, "inconclusive")) == words


def test_outcomes_in_words():
    assert outcome_words(verdict(-0.01, 0.01, "non_inferior")) == "non-inferior"
    assert outcome_words(verdict(-0.01, -0.001, "non_inferior")) == "worse, within the margin"
    assert outcome_words(verdict(-0.1, 0.1, "inconclusive")) == "inconclusive"


def test_wrong_figures_raise():
    with pytest.raises(ValueError, match="variants: expected at least two, but got 1"):
        comparison_data(_pair()[:1])
    with pytest.raises(ValueError, match="expected finite figures, but slim has another"):
        comparison_data(_pair(small={"flops/forward": float("nan")}))
    with pytest.raises(ValueError, match="expected finite figures, but oversized has another"):
        comparison_data(_pair(seeds=[0.5, float("inf")]))


_THREE = [
    _variant("oversized", _BIG, _SEEDS),
    _variant("oversized-same-budget", _BIG, _SEEDS),
    _variant("slim", _SMALL, _SEEDS),
]
_BOTH = [
    verdict(-0.031, 0.007, "inconclusive", kind="artifact"),
    verdict(-0.091, 0.089, "inconclusive", kind="recipe"),
]
_LONG = [_variant("a-model-with-quite-a-long-name-of-its-own", _BIG), *_pair()]


@pytest.mark.parametrize(
    ("variants", "verdicts"),
    [
        (_pair(), [verdict(-0.018, -0.002, "non_inferior", kind="artifact", score="R²")]),
        (_LONG, _BOTH),
        (_pair({"accuracy/test": 0.5}, {"accuracy/test": 0.5}), _BOTH[:1]),
        (_pair({"flops/forward": 5e12}, {"flops/forward": 1e9}), []),
        ([*_THREE, _variant("slim-2", _SMALL, _SEEDS)], _BOTH),
    ],
)
def test_the_picture_is_legible(variants, verdicts, legible):
    data = comparison_data(variants, verdicts)
    words = legible(plot_comparison(data))
    assert data.headline in words
    assert {label for panel in data.panels for label in panel.labels} <= set(words)


def test_bars_start_at_zero_and_are_as_long_as_their_values():
    figure = plot_comparison(comparison_data(_pair({"params/total": 41}, {"params/total": 29})))
    (ax,) = figure.axes
    ends = [(p.vertices[:, 0].min(), p.vertices[:, 0].max()) for p in ax.collections[0].get_paths()]
    assert ends == [(0.0, 41.0), (0.0, 29.0)] and ax.get_xlim()[0] == 0


def test_without_scores_and_verdict_nothing_is_asked_of_quality():
    words = words_of(plot_comparison(comparison_data(_pair({"params/total": 4}, {}))))
    assert "Is it as good?" not in words and "What does it save?" in words
    assert "Is it as good?" in words_of(plot_comparison(comparison_data(_pair())))


def test_intervals_are_drawn_where_they_are():
    figure = plot_comparison(comparison_data(_pair({}, {}), [verdict(-0.05, 0.01, "inconclusive")]))
    (ax,) = figure.axes
    *_, interval = ax.lines
    assert interval.get_xdata().tolist() == [-0.05, 0.01]
    assert ax.collections[0].get_offsets().tolist() == [[-0.02, 0]]
    assert ax.patches[0].get_x() == pytest.approx(-0.02)
