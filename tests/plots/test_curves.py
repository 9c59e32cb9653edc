"""A panel a layer: its points, its width, its threshold, and whether it can be read."""

from __future__ import annotations

import numpy as np
import pytest

from wua_mlflow.plots.style import INK, MEASURED, VARIANT_COLOURS
from wua_mlflow.plots.widths import MOST_PANELS, curves_data, plot_curves
from wua_mlflow.widths.results import Curve, LayerWidth


def _width(  # noqa: PLR0913 - each by name
    layer: str, units: int, width: int, alone: int, widths: tuple[int, ...],
    scores: tuple[float, ...], threshold: float, axis: str = "accuracy"
) -> LayerWidth:
    return LayerWidth(layer, units, width, Curve(widths, scores, 0.96, threshold, axis), alone)


ONE = _width("fc1", 64, 12, 8, (1, 8, 12, 64), (0.5, 0.94, 0.95, 0.96), 0.94)


def _many(count: int) -> list[LayerWidth]:
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


def test_what_it_says(legible):
    words = legible(plot_curves(curves_data([ONE], method="ablation")))
    said = " ".join(" ".join(words).split())
    assert "The curve that each width was read from: ablation" in said
    assert "up: accuracy; across: units kept of the layer" in said
    assert "12 of 64 units (alone 8)" in said
    assert "losses together were larger than one alone may lose" in said
    assert "read from this curve alone" in said


def test_no_more_is_said_than_there_is(legible):
    alike = _width("fc1", 64, 12, 12, (12, 64), (0.95, 0.96), 0.94, "accuracy")
    said = " ".join(legible(plot_curves(curves_data([alike], method="rank"))))
    assert "alone" not in said


def test_layers_without_a_panel_are_counted(legible):
    data = curves_data(_many(MOST_PANELS + 7), method="rank")
    assert (len(data.curves), data.left_out) == (MOST_PANELS, 7)
    assert "7 further layers are in widths.json." in " ".join(
        " ".join(legible(plot_curves(data))).split())


@pytest.mark.parametrize(("curves", "message"), [
    ([], "curves: expected at least one with a point, but got none"),
    ([_width("a", 3, 1, 1, (), (), 0.5, "x")], "curves: expected at least one with a point"),
    ([_width("a", 3, 1, 1, (1,), (float("nan"),), 0.5, "x")],
     "curves: expected finite scores, but those of a are not"),
])
def test_what_cannot_be_drawn(curves, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        curves_data(curves, method="rank")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 30])
def test_every_word_can_be_read(count, legible):
    legible(plot_curves(curves_data(_many(count), method="projection")))
