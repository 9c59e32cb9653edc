"""Figures to explore: their points are the data's, and no name becomes HTML."""

from __future__ import annotations

import pytest

from tests.plots.test_widths import ORIGINAL
from tests.plots.usages import layer, model
from tests.report.cases import variant
from wua_mlflow.plots.interactive import (
    explore_layers,
    explore_pareto,
    explore_trials,
    html_page,
)
from wua_mlflow.plots.pareto import pareto_data
from wua_mlflow.plots.usage import layers_data
from wua_mlflow.plots.widths import trials_data
from wua_mlflow.widths.results import Trial

HOSTILE = "<script>alert(1)</script>%{y}&"


def test_every_variant_is_a_point_with_its_interval():
    data = pareto_data([
        variant("old", (10,), metrics={"flops/forward": 60, "accuracy/test": 0.9},
                scores=(0.9, 0.8, 0.7)),
        variant(HOSTILE, (7,), metrics={"flops/forward": 42, "accuracy/test": 0.85})], margin=0.02)
    figure = explore_pareto(data)
    assert [(trace.x[0], trace.y[0]) for trace in figure.data] == [
        (60, pytest.approx(0.8)), (42, 0.85)]
    assert figure.data[0].error_y.array[0] == data.points[0].half_width
    assert figure.data[1].error_y.array is None
    assert figure.layout.xaxis.type == "log"
    (band,) = figure.layout.shapes
    assert (band.y0, band.y1) == data.band
    assert_no_html(figure)


def test_every_trial_says_its_widths_and_whether_it_holds():
    trials = [ORIGINAL, Trial((8, 4), 1_000, "fails", -0.07, -0.08, -0.06, 0.90, seeds=3),
              Trial((32, 16), 6_000, "holds", -0.001, -0.004, 0.002, 0.969)]
    figure = explore_trials(trials_data(trials, chosen=(32, 16), margin=0.02))
    holds, fails = figure.data
    assert (holds.name, list(holds.x), list(holds.text)) == ("holds", [6_000], ["32-16"])
    assert (fails.name, list(fails.y), list(fails.customdata)) == ("fails", [-0.07], [3])
    assert fails.error_y.array == pytest.approx([0.01])
    assert fails.error_y.arrayminus == pytest.approx([0.01])
    assert figure.layout.shapes[0].y0 == -0.02


@pytest.mark.parametrize("null", [(0.4, 0.6), None])
def test_every_layer_of_a_deep_model_is_a_point_beside_its_null(null):
    names = [*(f"blocks.{i}" for i in range(199)), HOSTILE]
    figure = explore_layers(layers_data(model([layer(name, 0.5, null) for name in names])))
    *ranges, points = figure.data
    assert len(points.x) == len(points.text) == 200 and set(points.y) == {0.5}
    assert points.text[0] == "blocks.0" and list(points.customdata[0])[0] == 100
    assert len(ranges) == (2 if null else 0)
    if null:
        assert [set(trace.y) for trace in ranges] == [{0.6}, {0.4}]
    assert_no_html(figure)


def test_a_page_is_small_as_plotly_s_script_is_fetched():
    page = html_page(explore_layers(layers_data(model([layer("fc1")]))))
    assert len(page) < 50_000 and page.startswith("<!doctype html>")
    assert "https://cdn.plot.ly/" in page


def assert_no_html(figure):
    words = figure.to_json()
    assert "\\u003cscript" not in words and "<script" not in words
    assert "alert(1)%{y}" not in words and "script&gt;%{y}" not in words
