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


def test_rows_are_the_layers_in_their_order():
    usage = model([layer("a", 0.5, (0.4, 0.6)), layer("b", 0.9, None, weights=300)], skipped=1)
    data = layers_data(usage)
    assert data.names == ("a", "b")
    assert data.share == pytest.approx([0.5, 0.9])
    assert data.null_low[0] == 0.4 and data.null_high[0] == 0.6
    assert np.isnan(data.null_low[1]) and np.isnan(data.null_high[1])
    assert data.effective_weights == pytest.approx(0.5 * 100 + 0.9 * 300)
    assert data.weights == 400 and data.skipped == 1


def test_outside_is_strict_on_both_sides_and_never_without_a_null():
    nulls = {"below": 0.39, "low": 0.4, "high": 0.6, "above": 0.61}
    layers = [layer(name, share, (0.4, 0.6)) for name, share in nulls.items()]
    data = layers_data(model([*layers, layer("none", 0.01, None)]))
    assert data.outside.tolist() == [True, False, False, True, False]


def test_flops_are_the_layers():
    flops = layers_data(model([layer("a"), layer("b", flops=7)])).forward_flops
    assert math.isnan(flops[0]) and flops[1] == 7


@pytest.mark.parametrize("data", [layers_data, units_data])
def test_no_layer_raises(data):
    with pytest.raises(ValueError, match="usage: expected at least one analysed layer"):
        data(model([]))


@pytest.mark.parametrize("draws", [1, 5, 20, 100])
def test_chance_is_that_of_one_more_draw_beyond_the_quantiles(draws):
    rng = np.random.default_rng(0)
    share = layer("a", 0.5, (0.4, 0.6))
    null = replace(share.null, draws=draws)
    data = layers_data(model([replace(share, null=null)]))
    drawn = rng.random((20_000, draws))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=1)
    one_more = rng.random(20_000)
    assert data.by_chance == pytest.approx(((one_more < low) | (one_more > high)).mean(), abs=0.015)
    assert math.isnan(layers_data(model([layer("a")])).by_chance)


def test_dead_units_and_dead_layers_are_the_usages():
    layers = [layer("a", 0.5, dead_units=3), layer("b", 0.0), layer("c", 0.5, dead_units=0)]
    data = layers_data(model(layers))
    assert data.dead.tolist() == [False, True, False]
    assert data.dead_units[[0, 2]].tolist() == [3, 0] and math.isnan(data.dead_units[1])
    assert data.units.tolist() == [10, 10, 10]


@pytest.mark.parametrize(("count", "with_flops"), [(1, False), (5, True), (200, True)])
def test_the_picture_is_legible_and_no_taller_than_a_page(count, with_flops, legible):
    usage = many(count)
    if with_flops:
        usage = model([replace(each, forward_flops=10 ** (i % 9))
                       for i, each in enumerate(usage.layers.values())], skipped=2)
    figure = plot_layers(layers_data(usage))
    words = " ".join(" ".join(legible(figure)).split())
    assert figure.get_figheight() < 16 and figure.get_figwidth() < 19
    assert "depend on how the network is parametrised" in words
    assert "Modules not analysed: 2." in words
    assert ("forward FLOPs" in words) == with_flops
    assert "dead units" in words and ("of 50,000" in words) == (count >= 5)
    assert ("Layers without a range: 28." in words) == (count == 200)


def test_columns_of_what_is_not_known_are_left_out():
    words = words_of(plot_layers(layers_data(model([layer("a"), layer("b")]))))
    assert "share" in words and "dead units" not in words and "FLOPs" not in words


def test_what_is_known_of_some_layers_is_blank_or_said_for_the_others():
    layers = [layer("a", dead_units=4, flops=1234567), layer("b", dead_units=0), layer("c")]
    words = words_of(plot_layers(layers_data(model(layers)))).split()
    assert " ".join(words).count("4 of 10") == 1 and words.count("–") == 2
    assert "1.23 M" in " ".join(words)


def test_bars_end_at_the_share_and_ranges_span_the_null():
    figure = plot_layers(layers_data(model([layer("a", 0.5, (0.55, 0.7)), layer("b", 1, None)])))
    shares, ranges = figure.axes[1].collections
    assert _spans(shares) == [(0.0, 0.5), (0.0, 1.0)] and _spans(ranges) == [(0.55, 0.7)]


def test_bars_of_dead_units_and_flops_are_as_long_as_their_share_of_the_longest():
    layers = [layer("a", dead_units=5, flops=10), layer("b", dead_units=0, flops=30),
              layer("c", dead_units=10)]
    figure = plot_layers(layers_data(model(layers)))
    dead, flops = figure.axes[0].collections
    longest = [np.diff(span).item() for span in _spans(dead)][2]
    assert [np.diff(s).item() / longest for s in _spans(dead)] == pytest.approx([0.5, 0, 1])
    assert [np.diff(s).item() / longest for s in _spans(flops)] == pytest.approx([1 / 3, 1, 0])


def _spans(bars) -> list[tuple[float, float]]:
    return [(p.vertices[:, 0].min(), p.vertices[:, 0].max()) for p in bars.get_paths()]


def test_a_dead_layer_is_flagged_in_its_row_and_above():
    figure = plot_layers(layers_data(model([layer("a", 0.5), layer("b", 0.0)])))
    (flag,) = [text for text in figure.axes[1].texts if text.get_text() == "no importance at all"]
    assert flag.get_position()[1] == 1 and flag.get_color() == ALARM
    assert "; 1 layer has no importance at all" in words_of(figure)


def test_among_too_many_rows_for_words_dead_layers_are_named_below():
    layers = [layer(f"fc{i}", 0.0 if i in (7, 300) else 0.5) for i in range(450)]
    words = words_of(plot_layers(layers_data(model(layers))))
    assert "No importance at all: fc7, fc300." in words


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        ([layer("a", 0.5, (0.4, 0.6))], "within the range of networks that learned nothing"),
        ([layer("a", 0.7, (0.4, 0.6))], "above the range of networks that learned nothing"),
        ([layer("a", 0.7, None)], "not compared with networks that learned nothing"),
        (
            [layer("a", 0.3, (0.4, 0.6)), layer("b", 0.5, (0.4, 0.6)), layer("c", 0.5, None)],
            "1 of 2 layers lie below the range of networks that learned nothing",
        ),
        (
            [layer("a", 0.3, (0.4, 0.6)), layer("b", 0.7, (0.4, 0.6)),
             layer("c", 0.2, (0.4, 0.6))],
            "3 of 3 layers lie outside the range of networks that learned nothing "
            "(2 below, 1 above)",
        ),
        (
            [layer("a", 0.5, (0.4, 0.6)), layer("b", 0.5, (0.4, 0.6))],
            "2 of 2 layers lie within the range of networks that learned nothing",
        ),
    ],
)
def test_the_subtitle_compares_with_the_null(layers, sentence):
    assert sentence in words_of(plot_layers(layers_data(model(layers))))


def test_the_title_and_the_null_are_the_tutorials():
    usage = model([layer("fc1", 15.7751 / 20, (0.5, 0.8), weights=20)])
    words = words_of(plot_layers(layers_data(usage)))
    assert "Effective weights 15.8 of 20, in 1 layer" in words
    assert "(reinitialised, 20 draws)" in words and "78.9%" in words
    assert "by chance alone, about 14% of layers lie outside" in words


def test_the_nulls_of_both_kinds_are_counted():
    layers = [layer(name, 0.5, (0.4, 0.6)) for name in "abc"]
    layers[1] = replace(layers[1], null=replace(layers[1].null, kind="permuted"))
    words = words_of(plot_layers(layers_data(model(layers))))
    assert "(1 permuted, 20 draws; 2 reinitialised, 20 draws)" in words


def _of(*importances: object):
    layers = [layer(f"fc{i}", units=np.array(each)) for i, each in enumerate(importances)]
    return units_data(model(layers))


def test_units_are_sorted_and_relative_to_their_layers_mean():
    data = _of([1.0, 4.0, 0.0, 3.0], [7.0])
    assert data.cells[0].tolist() == [2.0, 1.5, 0.5, 0.0]
    assert data.cells[1].tolist() == [1.0]
    assert data.units.tolist() == [4, 1] and data.zero.tolist() == [1, 0]
    assert data.names == ("fc0", "fc1") and data.criterion == "output"


@pytest.mark.parametrize("units", [201, 400, 1999])
def test_more_units_than_cells_are_averaged_in_their_order(units):
    importance = np.random.default_rng(0).lognormal(0, 2, units)
    (cells,) = _of(importance).cells
    ordered = sorted(importance.tolist(), reverse=True)
    mean = math.fsum(ordered) / units
    borders = [k * units // 200 for k in range(201)]
    expected = [math.fsum(ordered[a:b]) / (b - a) / mean for a, b in itertools.pairwise(borders)]
    assert cells == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_half_is_the_smallest_set_that_holds_half(seed):
    importance = np.random.default_rng(seed).integers(0, 9, 8).astype(float)
    fewest = next(size for size in range(1, 9)
                  if any(sum(some) >= importance.sum() / 2
                         for some in itertools.combinations(importance, size)))
    assert _of(importance).half.tolist() == [fewest]


@pytest.mark.parametrize("units", [1, 2, 3, 10, 1001])
def test_half_of_equal_units_is_half_of_them(units):
    assert _of(np.full(units, 0.1)).half.tolist() == [math.ceil(units / 2)]


def test_the_models_share_counts_all_units_of_layers_that_have_importance():
    data = _of([9.0, 1.0, 1.0, 1.0], [1.0] * 6, [0.0] * 50)
    assert data.half.tolist() == [1, 3, 0]
    assert data.half_share == pytest.approx(4 / 10)
    assert data.cells[2].tolist() == [0.0] * 50
    assert math.isnan(_of([0.0, 0.0]).half_share)


def test_effective_units_are_the_usages():
    data = units_data(model([layer("a", units=np.ones(4), unit_share=0.25), layer("b")]))
    assert data.effective_share[0] == 0.25 and math.isnan(data.effective_share[1])


@pytest.mark.parametrize("count", [1, 5, 60])
def test_the_units_are_legible_and_no_taller_than_a_page(count, legible):
    figure = plot_units(units_data(many(count)))
    words = " ".join(" ".join(legible(figure)).split())
    assert figure.get_figheight() < 16 and figure.get_figwidth() < 16
    assert "on its account alone no unit is superfluous" in words
    assert ("a cell is the mean of neighbours" in words) == (count >= 5)


def test_the_title_says_the_finding():
    words = words_of(plot_units(_of([9.0, 1.0, 1.0, 1.0], [1.0] * 6)))
    assert "Half of the importance is held by 40% of the units" in words
    assert ("the fewest that hold half of each layer's importance: 4 of 10, by layer 25% to 50%; "
            "if all were equal, about 50%") in words
    assert "no importance" not in words


def test_a_layer_without_importance_is_said_to_have_none():
    words = words_of(plot_units(_of([1.0, 0.0], [0.0] * 5)))
    assert words.count("no importance at all") == 1
    assert "no importance: 6 units" in words
    words = words_of(plot_units(_of([0.0] * 5)))
    assert "No unit has any importance" in words and "every importance is zero" in words


def _pixels(data) -> np.ndarray:
    (image,) = plot_units(data).axes[1].images
    return image.to_rgba(image.get_array())


def test_colours_are_the_maps_for_the_logarithm_and_another_where_there_is_none():
    colours = _pixels(_of([10.0, 1.0, 0.0], [100.0] + [1.0] * 99))
    width = colours.shape[1]
    viridis = matplotlib.colormaps[UNIT_COLOURS]
    mean = 11 / 3
    at = [(math.log10(value / mean) + 1) / 2 for value in (10.0, 1.0)]
    for k in range(2):
        assert colours[0, width * k // 3 + 9] == pytest.approx(viridis(at[k]), abs=0.02)
    assert tuple(colours[0, -1]) == to_rgba(NO_IMPORTANCE)
    assert tuple(colours[1, 0]) == viridis(1.0)
    assert (colours[1, width // 100 + 1 :] == colours[1, -1]).all()


def test_the_line_stands_where_half_is_reached():
    drawn = plot_units(_of([9.0, 1.0, 1.0, 1.0], [1.0] * 6, [0.0] * 3)).axes[1].collections[-1]
    places = [(path.vertices[0, 0], path.vertices[:, 1].mean()) for path in drawn.get_paths()]
    assert places == [(0.25, 0.0), (0.5, 1.0)]
