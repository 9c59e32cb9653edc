"""Widths: units before and after, the curves they were read from, the networks tried."""

from __future__ import annotations

from dataclasses import replace

import matplotlib.colors
import numpy as np
import pytest

from tests.plots.usages import words_of
from wua_mlflow.plots.style import INK, MEASURED, VARIANT_COLOURS
from wua_mlflow.plots.widths import (
    MOST_PANELS,
    changes_data,
    curves_data,
    plot_changes,
    plot_curves,
    plot_trials,
    trials_data,
)
from wua_mlflow.results import LayerChange
from wua_mlflow.widths.results import Curve, LayerWidth, Trial


def test_rows_are_the_layers_in_their_order():
    data = changes_data([LayerChange("b", 64, 16), LayerChange("a", 10, 10)])
    assert data.names == ("b", "a")
    assert data.before.tolist() == [64, 10]
    assert data.after.tolist() == [16, 10]
    assert data.changed.tolist() == [True, False]
    assert LayerChange("b", 64, 16).share == 0.25


@pytest.mark.parametrize(("changes", "message"), [
    ([], "changes: expected at least one layer, but got none"),
    ([LayerChange("a", 3, 0)], "changes: expected at least one unit a layer, but a has none"),
])
def test_changes_that_cannot_be_drawn(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        changes_data(changes)


def test_the_marks_stand_where_the_units_are():
    figure = plot_changes(changes_data([LayerChange("a", 64, 16), LayerChange("b", 10, 10)]))
    by_colour = {}
    for axes in figure.axes:
        for mark in axes.collections:
            if hasattr(mark, "get_sizes") and len(mark.get_offsets()):
                colour = matplotlib.colors.to_hex(mark.get_facecolor()[0])
                by_colour[colour] = np.asarray(mark.get_offsets()).tolist()
    assert by_colour[VARIANT_COLOURS["oversized"]] == [[64, 0]]
    assert by_colour[VARIANT_COLOURS["slim"]] == [[16, 0]]
    (same,) = (at for colour, at in by_colour.items()
               if colour not in (VARIANT_COLOURS["oversized"], VARIANT_COLOURS["slim"]))
    assert same == [[10, 1]]


@pytest.mark.parametrize("count", [3, 120])
def test_changes_can_be_read(count, legible):
    changes = [LayerChange("fc1", 1000, 40), LayerChange("fc2", 300, 300),
               LayerChange("fc3", 999, 998)]
    changes += [LayerChange(f"stages.{i // 4}.{i % 4}.conv", 8 * (1 + i % 9), 1 + (3 * i) % 8)
                for i in range(count - 3)]
    words = legible(plot_changes(changes_data(changes)))
    assert {"1,000", "40", "4%", "100%", ">99%", "slim", "as many in both"} <= set(words)
    if count == 3:
        assert "2,299 → 1,338 units in 3 layers, of which 2 changed" in words


def _width(  # noqa: PLR0913 - each by name
    layer: str, units: int, width: int, alone: int, widths: tuple[int, ...],
    scores: tuple[float, ...], threshold: float, axis: str = "accuracy"
) -> LayerWidth:
    return LayerWidth(layer, units, width, Curve(widths, scores, 0.96, threshold, axis), alone)


ONE = _width("fc1", 64, 12, 8, (1, 8, 12, 64), (0.5, 0.94, 0.95, 0.96), 0.94)


def _curves(count: int) -> list[LayerWidth]:
    draw = np.random.default_rng(0)
    return [_width(f"stages.{i // 4}.{i % 4}.conv", 32, 9, 9, (1, 4, 9, 32),
                       tuple(np.sort(draw.random(4)).tolist()), 0.5, "accuracy")
            for i in range(count)]


def _lines(figure, colour):
    return [np.asarray(line.get_xydata()).tolist() for axes in figure.axes for line in axes.lines
            if line.get_color() == colour]


def test_points_width_and_threshold_are_drawn_where_they_are():
    figure = plot_curves(curves_data([ONE], method="ablation"))
    assert _lines(figure, MEASURED) == [[[1, 0.5], [8, 0.94], [12, 0.95], [64, 0.96]]]
    assert _lines(figure, INK) == [[[0, 0.94], [1, 0.94]]]
    assert _lines(figure, VARIANT_COLOURS["slim"]) == [[[12, 0], [12, 1]]]
    rings = [np.asarray(mark.get_offsets()).tolist() for axes in figure.axes
             for mark in axes.collections]
    assert rings == [[[8, 0.94]]]


def test_what_the_curves_say():
    said = words_of(plot_curves(curves_data([ONE], method="ablation")))
    assert "The curve that each width was read from: ablation" in said
    assert "up: accuracy; across: units kept of the layer" in said
    assert "12 of 64 units (alone 8)" in said
    assert "losses together were larger than one alone may lose" in said
    assert "read from this curve alone" in said


def test_no_more_is_said_of_curves_than_there_is():
    alike = _width("fc1", 64, 12, 12, (12, 64), (0.95, 0.96), 0.94, "accuracy")
    said = words_of(plot_curves(curves_data([alike], method="rank")))
    assert "alone" not in said


def test_layers_without_a_panel_are_counted():
    data = curves_data(_curves(MOST_PANELS + 7), method="rank")
    assert (len(data.curves), data.left_out) == (MOST_PANELS, 7)
    words = words_of(plot_curves(replace(data, curves=data.curves[:1])))
    assert "7 further layers are in widths.json." in words


@pytest.mark.parametrize(("curves", "message"), [
    ([], "curves: expected at least one with a point, but got none"),
    ([_width("a", 3, 1, 1, (), (), 0.5, "x")], "curves: expected at least one with a point"),
    ([_width("a", 3, 1, 1, (1,), (float("nan"),), 0.5, "x")],
     "curves: expected finite scores, but those of a are not"),
])
def test_curves_that_cannot_be_drawn(curves, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        curves_data(curves, method="rank")


@pytest.mark.parametrize("count", [1, 2, 9])
def test_curves_can_be_read(count, legible):
    legible(plot_curves(curves_data(_curves(count), method="projection")))


ORIGINAL = Trial((128, 64), 35_000, "original", 0.0, 0.0, 0.0, 0.97)
TRIED = [
    Trial((8, 4), 1_000, "inferior", -0.07, -0.08, -0.06, 0.90),
    Trial((32, 16), 6_000, "non_inferior", -0.001, -0.004, 0.002, 0.969),
    Trial((16, 8), 2_500, "inconclusive", -0.018, -0.03, -0.006, 0.95),
]


def test_trials_dearest_first_without_the_original():
    data = trials_data([ORIGINAL, *TRIED], chosen=(32, 16), margin=0.02)
    assert [trial.widths for trial in data.trials] == [(32, 16), (16, 8), (8, 4)]
    assert data.chosen == 0
    assert trials_data(TRIED, chosen=(128, 64), margin=0.02).chosen is None


def test_intervals_of_trials_are_drawn_where_they_are():
    figure = plot_trials(trials_data([ORIGINAL, *TRIED], chosen=(32, 16), margin=0.02))
    lines = [lines for axes in figure.axes for lines in axes.collections
             if hasattr(lines, "get_segments")]
    segments = [segment.tolist() for line in lines for segment in line.get_segments()]
    colours = [matplotlib.colors.to_hex(colour) for line in lines for colour in line.get_colors()]
    assert segments == [[[-0.004, 0], [0.002, 0]], [[-0.03, 1], [-0.006, 1]],
                        [[-0.08, 2], [-0.06, 2]]]
    assert colours[0] == VARIANT_COLOURS["slim"] not in colours[1:]


def test_what_the_trials_say():
    said = words_of(plot_trials(trials_data([ORIGINAL, *TRIED], chosen=(32, 16), margin=0.02)))
    for words in ("3 widths tried, 32-16 chosen", "as good", "worse", "open", "96.9%", "90.0%",
                  "margin of 2 points"):
        assert words in said


def test_trials_of_another_score():
    said = words_of(plot_trials(trials_data(TRIED[:1], chosen=(1, 1), margin=0.05, score="R²")))
    assert "1 width tried, none of them chosen" in said
    assert "difference of R²" in said and "margin of 0.05 of R²" in said
    assert "%" not in said


@pytest.mark.parametrize(("trials", "message"), [
    ([], "trials: expected at least one besides the original, but got none"),
    ([ORIGINAL], "trials: expected at least one besides the original, but got none"),
    ([Trial((1,), float("inf"), "inferior", 0, 0, 0, 0)], "trials: expected finite figures"),
])
def test_trials_that_cannot_be_drawn(trials, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        trials_data(trials, chosen=(1,), margin=0.02)


@pytest.mark.parametrize("count", [1, 2, 30])
def test_trials_can_be_read(count, legible):
    trials = [Trial((10 + i, 5 + i), 1_000.0 + i, "inconclusive", -0.01, -0.02 - i / 1000, 0.0, 0.9)
              for i in range(count)]
    legible(plot_trials(trials_data(trials, chosen=(10, 5), margin=0.02)))
