"""Widths: units before and after, the curves they were read from, the networks tried."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex

from tests.plots.usages import words_of
from wua_mlflow.plots import widths
from wua_mlflow.plots.style import INK, MEASURED, MUTED, VARIANT_COLOURS
from wua_mlflow.plots.widths import curves_data, plot_curves, plot_trials, trials_data
from wua_mlflow.widths.results import Curve, LayerChange, LayerWidth, Trial

OLD, SLIM = VARIANT_COLOURS["oversized"], VARIANT_COLOURS["slim"]


def test_rows_are_the_layers_in_their_order_and_the_marks_their_units():
    changes = [LayerChange("b", 64, 16), LayerChange("a", 10, 10)]
    data = widths.changes_data(changes)
    assert data.names == ("b", "a")
    assert data.before.tolist() == [64, 10] and data.after.tolist() == [16, 10]
    assert data.changed.tolist() == [True, False] and changes[0].share == 0.25
    marks = {to_hex(mark.get_facecolor()[0]): np.asarray(mark.get_offsets()).tolist()
             for axes in widths.plot_changes(data).axes for mark in axes.collections
             if hasattr(mark, "get_sizes") and len(mark.get_offsets())}
    assert marks == {OLD: [[64, 0]], SLIM: [[16, 0]], MUTED: [[10, 1]]}


@pytest.mark.parametrize(("count", "title"), [
    (1, "1,000 → 40 units in 1 layer"),
    (3, "2,299 → 1,338 units in 3 layers, of which 2 changed"),
    (120, "6,979 → 1,861 units in 120 layers, of which 118 changed"),
])
def test_changes_can_be_read(count, title, legible):
    changes = [LayerChange("fc1", 1000, 40), LayerChange("fc2", 300, 300),
               LayerChange("fc3", 999, 998)][:count]
    changes += [LayerChange(f"stages.{i // 4}.{i % 4}.conv", 8 * (1 + i % 9), 1 + (3 * i) % 8)
                for i in range(count - 3)]
    words = set(legible(widths.plot_changes(widths.changes_data(changes))))
    assert {title, "1,000", "40", "4%", "slim"} <= words
    assert ({"100%", ">99%", "as many in both"} <= words) == (count > 1)


def _width(units: int, width: int, alone: int, points: dict[int, float]) -> LayerWidth:
    curve = Curve(tuple(points), tuple(points.values()), 0.96, 0.94, "accuracy")
    return LayerWidth("fc1", units, width, curve, alone)


ONE = _width(64, 12, 8, {1: 0.5, 8: 0.94, 12: 0.95, 64: 0.96})


def _curves(count: int) -> list[LayerWidth]:
    scores = np.sort(np.random.default_rng(0).random((count, 4)))
    return [replace(_width(32, 9, 9, dict(zip((1, 4, 9, 32), row, strict=True))),
                    layer=f"stages.{i // 4}.{i % 4}.conv") for i, row in enumerate(scores)]


def test_points_width_and_threshold_of_the_curves_and_what_they_say():
    (axes,) = plot_curves(curves_data([ONE], method="ablation")).axes
    lines = {line.get_color(): np.asarray(line.get_xydata()).tolist() for line in axes.lines}
    assert lines == {MEASURED: [[1, 0.5], [8, 0.94], [12, 0.95], [64, 0.96]],
                     INK: [[0, 0.94], [1, 0.94]], SLIM: [[12, 0], [12, 1]]}
    (ring,) = axes.collections
    assert np.asarray(ring.get_offsets()).tolist() == [[8, 0.94]]
    words = words_of(axes.figure)
    for phrase in ("The curve that each width was read from: ablation", "12 of 64 units (alone 8)",
                   "up: accuracy; across: units kept of the layer", "read from this curve alone",
                   "losses together were larger than one alone may lose"):
        assert phrase in words
    alike = _width(64, 12, 12, {12: 0.95, 64: 0.96})
    assert "alone" not in words_of(plot_curves(curves_data([alike], method="rank")))
    data = curves_data(_curves(widths.MOST_PANELS + 7), method="rank")
    assert (len(data.curves), data.left_out) == (widths.MOST_PANELS, 7)
    words = words_of(plot_curves(replace(data, curves=data.curves[:1])))
    assert "7 further layers are in widths.json." in words


ORIGINAL = Trial((128, 64), 35_000, "original", 0.0, 0.0, 0.0, 0.97)
TRIED = [
    Trial((8, 4), 1_000, "fails", -0.07, -0.08, -0.06, 0.90),
    Trial((32, 16), 6_000, "holds", -0.001, -0.004, 0.002, 0.969),
    Trial((16, 8), 2_500, "fails", -0.018, -0.03, -0.006, 0.95),
]


def test_trials_dearest_first_without_the_original():
    data = trials_data([ORIGINAL, *TRIED], chosen=(32, 16), margin=0.02)
    assert [trial.widths for trial in data.trials] == [(32, 16), (16, 8), (8, 4)]
    assert data.chosen == 0
    assert trials_data(TRIED, chosen=(128, 64), margin=0.02).chosen is None
    figure = plot_trials(data)
    intervals = [line for line in figure.axes[1].lines if len(line.get_xdata()) == 3]
    assert [(line.get_color(), line.get_xydata().tolist()) for line in intervals] == [
        (SLIM, [[-0.004, 0], [-0.001, 0], [0.002, 0]]),
        (MUTED, [[-0.03, 1], [-0.018, 1], [-0.006, 1]]),
        (MUTED, [[-0.08, 2], [-0.07, 2], [-0.06, 2]])]
    assert {line.get_solid_capstyle() for line in intervals} == {"butt"}  # they end at the limits
    legend, = figure.legends
    assert [text.get_text() for text in legend.texts] == ["chosen", "tried", "minus the margin"]


def test_a_trial_that_lies_far_off_is_at_the_edge():
    far = replace(TRIED[0], widths=(1, 1), cost=1.0, delta=-0.5, low=-0.6, high=-0.4)
    figure = plot_trials(trials_data([*TRIED, far], chosen=(32, 16), margin=0.02))
    *_, mark = (line for line in figure.axes[1].lines if line.get_marker() == "<")
    assert mark.get_xydata().tolist() == [[-0.08, 3]] and figure.axes[1].get_xlim()[0] > -0.1


@pytest.mark.parametrize(("trials", "options", "phrases", "absent"), [
    ([ORIGINAL, *TRIED], {"chosen": (32, 16), "margin": 0.02}, ["3 widths tried, 32-16 chosen",
     "holds", "fails", "seeds", "96.9%", "90.0%", "margin of 2 points"], "none of them"),
    (TRIED[:1], {"chosen": (1, 1), "margin": 0.05, "score": "R²"},
     ["1 width tried, none of them chosen", "difference of R²", "margin of 0.05 of R²"], "%"),
])
def test_what_the_trials_say(trials, options, phrases, absent):
    words = words_of(plot_trials(trials_data(trials, **options)))
    assert not [phrase for phrase in phrases if phrase not in words] and absent not in words


@pytest.mark.parametrize("count", [1, 2, 9, 30])
def test_curves_and_trials_can_be_read(count, legible):
    legible(plot_curves(curves_data(_curves(count), method="projection")))
    trials = [Trial((10 + i, 5 + i), 1_000.0 + i, "fails", -0.01, -0.02 - i / 1000, 0.0, 0.9)
              for i in range(count)]
    legible(plot_trials(trials_data(trials, chosen=(10, 5), margin=0.02)))


@pytest.mark.parametrize(("data", "rows", "options", "message"), [
    (widths.changes_data, [], {}, "changes: expected at least one layer, but got none"),
    (widths.changes_data, [LayerChange("a", 3, 0)], {},
     "changes: expected at least one unit a layer, but a has none"),
    (curves_data, [_width(3, 1, 1, {})], {"method": "rank"},
     "curves: expected at least one with a point, but got none"),
    (curves_data, [_width(3, 1, 1, {1: float("nan")})], {"method": "rank"},
     "curves: expected finite scores, but those of fc1 are not"),
    (trials_data, [ORIGINAL], {"chosen": (1,), "margin": 0.02},
     "trials: expected at least one besides the original, but got none"),
    (trials_data, [replace(TRIED[0], cost=float("inf"))], {"chosen": (1,), "margin": 0.02},
     "trials: expected finite figures"),
])
def test_what_cannot_be_drawn(data, rows, options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        data(rows, **options)
