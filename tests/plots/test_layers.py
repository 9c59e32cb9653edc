"""Rows of the layers' picture against the usage they were made from, at 1 to 200 layers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.plots.usages import layer as _layer
from tests.plots.usages import many as _many
from tests.plots.usages import model as _model
from wua_mlflow.plots.style import ALARM
from wua_mlflow.plots.usage import layers_data, plot_layers


def test_rows_are_the_layers_in_their_order():
    usage = _model([_layer("a", 0.5, (0.4, 0.6)), _layer("b", 0.9, None, weights=300)], skipped=1)
    data = layers_data(usage)
    assert data.names == ("a", "b")
    assert data.share == pytest.approx([0.5, 0.9])
    assert data.null_low[0] == 0.4 and data.null_high[0] == 0.6
    assert np.isnan(data.null_low[1]) and np.isnan(data.null_high[1])
    assert data.effective_weights == pytest.approx(0.5 * 100 + 0.9 * 300)
    assert data.weights == 400 and data.skipped == 1


def test_outside_is_strict_on_both_sides_and_never_without_a_null():
    nulls = {"below": 0.39, "low": 0.4, "high": 0.6, "above": 0.61}
    layers = [_layer(name, share, (0.4, 0.6)) for name, share in nulls.items()]
    data = layers_data(_model([*layers, _layer("none", 0.01, None)]))
    assert data.outside.tolist() == [True, False, False, True, False]


def test_flops_are_the_layers():
    flops = layers_data(_model([_layer("a"), _layer("b", flops=7)])).forward_flops
    assert math.isnan(flops[0]) and flops[1] == 7


def test_no_layer_raises():
    with pytest.raises(ValueError, match="usage: expected at least one analysed layer"):
        layers_data(_model([]))


@pytest.mark.parametrize("draws", [1, 5, 20, 100])
def test_chance_is_that_of_one_more_draw_beyond_the_quantiles(draws):
    rng = np.random.default_rng(0)
    share = _layer("a", 0.5, (0.4, 0.6))
    null = replace(share.null, draws=draws)
    data = layers_data(_model([replace(share, null=null)]))
    drawn = rng.random((40_000, draws))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=1)
    one_more = rng.random(40_000)
    assert data.by_chance == pytest.approx(((one_more < low) | (one_more > high)).mean(), abs=0.01)
    assert math.isnan(layers_data(_model([_layer("a")])).by_chance)


def test_dead_units_and_dead_layers_are_the_usages():
    layers = [_layer("a", 0.5, dead_units=3), _layer("b", 0.0), _layer("c", 0.5, dead_units=0)]
    data = layers_data(_model(layers))
    assert data.dead.tolist() == [False, True, False]
    assert data.dead_units[[0, 2]].tolist() == [3, 0] and math.isnan(data.dead_units[1])
    assert data.units.tolist() == [10, 10, 10]


@pytest.mark.parametrize("count", [1, 2, 5, 20, 60, 200])
@pytest.mark.parametrize("with_flops", [False, True])
def test_the_picture_is_legible_and_no_taller_than_a_page(count, with_flops, legible):
    usage = _many(count)
    if with_flops:
        usage = _model([replace(one, forward_flops=10 ** (i % 9))
                        for i, one in enumerate(usage.layers.values())], skipped=2)
    figure = plot_layers(layers_data(usage))
    words = " ".join(" ".join(legible(figure)).split())
    assert figure.get_figheight() < 16 and figure.get_figwidth() < 19
    assert "depend on how the network is parametrised" in words
    assert "Modules not analysed: 2." in words
    assert ("forward FLOPs" in words) == with_flops
    assert "dead units" in words and ("of 50,000" in words) == (count >= 5)


def test_columns_of_what_is_not_known_are_left_out(legible):
    words = legible(plot_layers(layers_data(_model([_layer("a"), _layer("b")]))))
    assert "share" in words and not {"dead units", "forward FLOPs\nof one sample"} & set(words)


def test_what_is_known_of_some_layers_is_blank_or_said_for_the_others(legible):
    layers = [_layer("a", dead_units=4, flops=1234567), _layer("b", dead_units=0), _layer("c")]
    words = legible(plot_layers(layers_data(_model(layers))))
    assert words.count("4 of 10") == 1 and words.count("–") == 2
    assert "1.23 M" in words


def test_bars_end_at_the_share_and_ranges_span_the_null():
    figure = plot_layers(layers_data(_model([_layer("a", 0.5, (0.55, 0.7)), _layer("b", 1, None)])))
    shares, ranges = figure.axes[1].collections
    assert _spans(shares) == [(0.0, 0.5), (0.0, 1.0)] and _spans(ranges) == [(0.55, 0.7)]


def test_bars_of_dead_units_and_flops_are_as_long_as_their_share_of_the_longest():
    layers = [_layer("a", dead_units=5, flops=10), _layer("b", dead_units=0, flops=30),
              _layer("c", dead_units=10)]
    figure = plot_layers(layers_data(_model(layers)))
    dead, flops = figure.axes[0].collections
    longest = [np.diff(span).item() for span in _spans(dead)][2]
    assert [np.diff(s).item() / longest for s in _spans(dead)] == pytest.approx([0.5, 0, 1])
    assert [np.diff(s).item() / longest for s in _spans(flops)] == pytest.approx([1 / 3, 1, 0])


def _spans(bars) -> list[tuple[float, float]]:
    return [(p.vertices[:, 0].min(), p.vertices[:, 0].max()) for p in bars.get_paths()]


def test_a_dead_layer_is_flagged_in_its_row_and_above(legible):
    figure = plot_layers(layers_data(_model([_layer("a", 0.5), _layer("b", 0.0)])))
    words = legible(figure)
    (flag,) = [text for text in figure.axes[1].texts if text.get_text() == "no importance at all"]
    assert flag.get_position()[1] == 1 and flag.get_color() == ALARM
    assert any(text.endswith("; 1 layer has no importance at all") for text in words)


def test_among_too_many_rows_for_words_dead_layers_are_named_below(legible):
    layers = [_layer(f"fc{i}", 0.0 if i in (7, 300) else 0.5) for i in range(450)]
    assert "No importance at all: fc7, fc300." in " ".join(
        " ".join(legible(plot_layers(layers_data(_model(layers))))).split())


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        ([_layer("a", 0.5, (0.4, 0.6))], "within the range of networks that learned nothing"),
        ([_layer("a", 0.7, (0.4, 0.6))], "above the range of networks that learned nothing"),
        ([_layer("a", 0.7, None)], "not compared with networks that learned nothing"),
        (
            [_layer("a", 0.3, (0.4, 0.6)), _layer("b", 0.5, (0.4, 0.6)), _layer("c", 0.5, None)],
            "1 of 2 layers lie below the range of networks that learned nothing",
        ),
        (
            [_layer("a", 0.3, (0.4, 0.6)), _layer("b", 0.7, (0.4, 0.6)),
             _layer("c", 0.2, (0.4, 0.6))],
            "3 of 3 layers lie outside the range of networks that learned nothing "
            "(2 below, 1 above)",
        ),
        (
            [_layer("a", 0.5, (0.4, 0.6)), _layer("b", 0.5, (0.4, 0.6))],
            "2 of 2 layers lie within the range of networks that learned nothing",
        ),
    ],
)
def test_the_subtitle_compares_with_the_null(layers, sentence, legible):
    assert sentence in legible(plot_layers(layers_data(_model(layers))))


def test_the_title_and_the_null_are_the_tutorials(legible):
    usage = _model([_layer("fc1", 15.7751 / 20, (0.5, 0.8), weights=20)])
    words = " ".join(" ".join(legible(plot_layers(layers_data(usage)))).split())
    assert "Effective weights 15.8 of 20, in 1 layer" in words
    assert "(reinitialised, 20 draws)" in words and "78.9%" in words
    assert "by chance alone, about 14% of layers lie outside" in words


def test_the_nulls_of_both_kinds_are_counted(legible):
    layers = [_layer(name, 0.5, (0.4, 0.6)) for name in "abc"]
    layers[1] = replace(layers[1], null=replace(layers[1].null, kind="permuted"))
    words = " ".join(" ".join(legible(plot_layers(layers_data(_model(layers))))).split())
    assert "(1 permuted, 20 draws; 2 reinitialised, 20 draws)" in words


def test_layers_without_a_range_are_counted(legible):
    words = " ".join(legible(plot_layers(layers_data(_many(200)))))
    assert "Layers without a range: 28." in " ".join(words.split())


def test_it_draws_in_the_place_of_given_axes():
    figure = Figure(figsize=(10, 12))
    ax = figure.add_axes((0.0, 0.4, 1.0, 0.6))
    assert plot_layers(layers_data(_many(5)), ax) is figure
    assert all(axes.get_position().y0 > 0.4 for axes in figure.axes[1:])
