"""Rows of layers and of their units against the usage and loops over the units; their marks."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgba

from tests.plots.usages import layer, many, model, words_of
from wua_mlflow.plots.style import ALARM, NO_IMPORTANCE, UNIT_COLOURS
from wua_mlflow.plots.usage import layers_data, plot_layers, plot_units, units_data
from wua_mlflow.usage.results import NullUsage


def test_rows_are_the_layers_in_their_order_and_outside_is_strict():
    usage = model([layer("a", 0.5, (0.4, 0.6), dead_units=3), layer("b", 0.9, weights=300, flops=7),
                   layer("c", 0.0, dead_units=0)], skipped=1)
    data = layers_data(usage)
    assert data.names == ("a", "b", "c")
    assert data.share == pytest.approx([0.5, 0.9, 0])
    assert data.null_low == pytest.approx([0.4, math.nan, math.nan], nan_ok=True)
    assert data.null_high == pytest.approx([0.6, math.nan, math.nan], nan_ok=True)
    assert data.dead.tolist() == [False, False, True]
    assert data.dead_units == pytest.approx([3, math.nan, 0], nan_ok=True)
    assert data.units.tolist() == [10, 10, 10]
    assert data.forward_flops == pytest.approx([math.nan, 7, math.nan], nan_ok=True)
    for data_of in (layers_data, units_data):
        with pytest.raises(ValueError, match="usage: expected at least one analysed layer"):
            data_of(model([]))
    nulls = {"below": 0.39, "low": 0.4, "high": 0.6, "above": 0.61}
    layers = [layer(name, share, (0.4, 0.6)) for name, share in nulls.items()]
    data = layers_data(model([*layers, layer("none", 0.01)]))
    assert data.outside.tolist() == [True, False, False, True, False]


@pytest.mark.parametrize("draws", [1, 5, 20])
def test_chance_is_that_of_one_more_draw_beyond_the_quantiles(draws):
    rng = np.random.default_rng(0)
    share = layer("a", 0.5, (0.4, 0.6))
    data = layers_data(model([replace(share, null=replace(share.null, draws=draws))]))
    low, high = np.quantile(rng.random((20_000, draws)), [0.025, 0.975], axis=1)
    one_more = rng.random(20_000)
    assert data.by_chance == pytest.approx(((one_more < low) | (one_more > high)).mean(), abs=0.015)
    assert math.isnan(layers_data(model([layer("a")])).by_chance)


@pytest.mark.parametrize(("plot", "data", "count", "widest"), [
    (plot_layers, layers_data, 1, 16), (plot_layers, layers_data, 5, 16),
    (plot_layers, layers_data, 200, 19), (plot_units, units_data, 1, 16),
    (plot_units, units_data, 60, 16)])
def test_the_picture_is_legible_and_no_taller_than_a_page(plot, data, count, widest, legible):
    usage = many(count)
    usage = model([replace(each, forward_flops=10 ** (i % 9) if count > 1 else None)
                   for i, each in enumerate(usage.layers.values())], skipped=2)
    figure = plot(data(usage))
    words = " ".join(" ".join(legible(figure)).split())
    assert figure.get_figheight() < 16 and figure.get_figwidth() < widest
    assert "on how the network is parametrised" in words
    if plot is plot_units:
        assert ("a cell is the mean of neighbours" in words) == (count == 60)
        return
    assert "dead units" in words and "Modules not analysed: 2." in words
    assert ("FLOPs, one sample" in words) == ("of 50,000" in words) == (count > 1)
    assert ("Layers without a range: 28." in words) == (count == 200)


def test_what_is_not_known_is_left_out_or_blank():
    words = words_of(plot_layers(layers_data(model([layer("a"), layer("b")]))))
    assert "share" in words and "dead units" not in words and "FLOPs" not in words
    layers = [layer("a", dead_units=4, flops=1234567), layer("b", dead_units=0), layer("c")]
    words = words_of(plot_layers(layers_data(model(layers))))
    assert words.count("4 of 10") == 1 and words.split().count("–") == 2 and "1.23 M" in words


def _spans(bars) -> list[tuple[float, float]]:
    return [(p.vertices[:, 0].min(), p.vertices[:, 0].max()) for p in bars.get_paths()]


def test_bars_end_at_their_values_and_a_dead_layer_is_flagged_in_its_row_and_above():
    """The share, the range of the null; dead units and FLOPs as a share of the longest."""
    layers = [layer("a", 0.5, (0.55, 0.7), dead_units=5, flops=10),
              layer("b", 1, dead_units=0, flops=30), layer("c", dead_units=10)]
    frame, drawing = plot_layers(layers_data(model(layers))).axes
    shares, outside, ranges = drawing.collections
    assert _spans(shares) == [(0.0, 1.0), (0.0, 0.5)] and _spans(outside) == [(0.0, 0.5)]
    assert _spans(ranges) == [(0.55, 0.7)]
    dead, flops = (np.diff(_spans(bars)).ravel() for bars in frame.collections)
    assert dead / dead[2] == pytest.approx([0.5, 0, 1])
    assert flops / dead[2] == pytest.approx([1 / 3, 1, 0])
    figure = plot_layers(layers_data(model([layer("a", 0.5), layer("b", 0.0)])))
    (flag,) = [text for text in figure.axes[1].texts if text.get_text() == "no importance at all"]
    assert flag.get_position()[1] == 1 and flag.get_color() == ALARM
    assert "; 1 layer has no importance at all" in words_of(figure)


def _layers(*shares: float, null: tuple[float, float] | None = (0.4, 0.6)):
    return [layer(f"fc{i}", share, null) for i, share in enumerate(shares)]


_RANGE = "the range of networks that learned nothing"


@pytest.mark.parametrize(("layers", "sentence"), [
    (_layers(0.5), f"within {_RANGE}"),
    (_layers(0.7), f"above {_RANGE}"),
    (_layers(0.7, null=None), "not compared with networks that learned nothing"),
    ([*_layers(0.3, 0.5), layer("c")], f"1 of 2 layers lie below {_RANGE}"),
    (_layers(0.3, 0.7, 0.2), f"3 of 3 layers lie outside {_RANGE} (2 below, 1 above)"),
    (_layers(0.5, 0.5), f"2 of 2 layers lie within {_RANGE}"),
    ([layer("fc1", 15.7751 / 20, (0.5, 0.8), weights=20)],
     "Effective weights 15.8 of 20, in 1 layer"),
    ([layer("fc1", 15.7751 / 20, (0.5, 0.8), weights=20)],
     "(reinitialised, 20 draws); by chance alone, about 14% of layers lie outside"),
    ([*_layers(0.5, 0.5), replace(layer("p"), null=NullUsage("permuted", 9, 0.5, 0.4, 0.6, 0.1))],
     "(1 permuted, 9 draws; 2 reinitialised, 20 draws)"),
    (_layers(*(0.0 if i in (7, 300) else 0.5 for i in range(450))),
     "No importance at all: fc7, fc300."),
])
def test_what_it_says(layers, sentence):
    assert sentence in words_of(plot_layers(layers_data(model(layers))))


def _of(*importances: object):
    layers = [layer(f"fc{i}", units=np.array(each)) for i, each in enumerate(importances)]
    return units_data(model(layers))


@pytest.mark.parametrize("units", [201, 1999])
def test_units_are_relative_to_their_layers_mean_and_sorted_or_averaged_in_their_order(units):
    data = units_data(model([layer("fc0", units=np.array([1.0, 4.0, 0.0, 3.0]), unit_share=0.25),
                             layer("fc1", units=np.array([7.0]))]))
    assert data.effective_share == pytest.approx([0.25, math.nan], nan_ok=True)
    assert [cells.tolist() for cells in data.cells] == [[2.0, 1.5, 0.5, 0.0], [1.0]]
    assert data.units.tolist() == [4, 1] and data.zero.tolist() == [1, 0]
    assert data.names == ("fc0", "fc1") and data.criterion == "output"
    importance = np.random.default_rng(0).lognormal(0, 2, units)
    (cells,) = _of(importance).cells
    ordered = sorted(importance.tolist(), reverse=True)
    mean = math.fsum(ordered) / units
    borders = [k * units // 200 for k in range(201)]
    expected = [math.fsum(ordered[a:b]) / (b - a) / mean for a, b in itertools.pairwise(borders)]
    assert cells == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("importance", [
    *np.random.default_rng(0).integers(0, 9, (3, 8)), [0.1], [0.1] * 2, [0.1] * 9])
def test_half_is_the_smallest_set_that_holds_half(importance):
    fewest = next(size for size in range(1, 9) if any(2 * sum(some) >= sum(importance) - 1e-12
                  for some in itertools.combinations(importance, size)))
    assert _of(importance).half.tolist() == [fewest]


def test_the_models_share_counts_all_units_of_layers_that_have_importance():
    data = _of([9.0, 1.0, 1.0, 1.0], [1.0] * 6, [0.0] * 50)
    assert data.half.tolist() == [1, 3, 0]
    assert data.half_share == pytest.approx(4 / 10)
    assert data.cells[2].tolist() == [0.0] * 50
    assert math.isnan(_of([0.0, 0.0]).half_share) and _of([0.1] * 1001).half.tolist() == [501]


@pytest.mark.parametrize(("importances", "phrases", "absent"), [
    ([[9.0, 1.0, 1.0, 1.0], [1.0] * 6], ["Half of the importance is held by 40% of the units",
     "the fewest that hold half of each layer's importance: 4 of 10, by layer 25% to 50%; if all "
     "were equal, about 50%"], "no importance"),
    ([[1.0, 0.0], [0.0] * 5], ["no importance at all", "no importance: 6 units"], "Every"),
    ([[0.0] * 5], ["No unit has any importance", "every importance is zero"], "left of the line"),
])
def test_what_the_units_say(importances, phrases, absent):
    words = words_of(plot_units(_of(*importances)))
    assert not [phrase for phrase in phrases if words.count(phrase) != 1] and absent not in words


def test_colours_are_the_maps_for_the_logarithm_and_the_line_stands_where_half_is_reached():
    (image,) = plot_units(_of([10.0, 1.0, 0.0], [100.0] + [1.0] * 99)).axes[1].images
    colours = image.to_rgba(image.get_array())
    width = colours.shape[1]
    viridis = matplotlib.colormaps[UNIT_COLOURS]
    at = [(math.log10(value / (11 / 3)) + 1) / 2 for value in (10.0, 1.0)]
    for k in range(2):
        assert colours[0, width * k // 3 + 9] == pytest.approx(viridis(at[k]), abs=0.02)
    assert tuple(colours[0, -1]) == to_rgba(NO_IMPORTANCE)
    assert tuple(colours[1, 0]) == viridis(1.0)
    assert (colours[1, width // 100 + 1 :] == colours[1, -1]).all()
    drawn = plot_units(_of([9.0, 1.0, 1.0, 1.0], [1.0] * 6, [0.0] * 3)).axes[1].collections[-1]
    places = [(path.vertices[0, 0], path.vertices[:, 1].mean()) for path in drawn.get_paths()]
    assert places == [(0.25, 0.0), (0.5, 1.0)]


@pytest.mark.parametrize("layers", [5, 200])
def test_gaps_lie_between_the_rows_of_a_panel_alone(layers):
    panels = [ax for ax in plot_units(units_data(many(layers))).axes if ax.images]
    gaps = [path.get_extents().intervaly.mean() for ax in panels
            for path in ax.collections[0].get_paths()]
    starts = [min(ax.get_ylim()) for ax in panels]
    assert starts[0] == -0.5
    assert gaps == pytest.approx(sorted({row - 0.5 for row in range(layers)} - set(starts)))
