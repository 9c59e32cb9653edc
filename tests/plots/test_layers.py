"""Rows of the layers' picture against the usage they were made from, at 1 to 200 layers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from wua_mlflow.plots import layers_data, plot_layers
from wua_mlflow.usage import Histogram, LayerUsage, ModelUsage, NullUsage

_NO_HISTOGRAM = Histogram(np.array([0.0, 1.0]), np.array([1]), 0.0)


def _layer(name: str, share: float, null: tuple[float, float] | None, weights: int = 100):
    drawn = NullUsage("reinitialised", 20, sum(null) / 2, *null, 0.1) if null else None
    return LayerUsage(
        name=name,
        kind="Linear",
        weights=weights,
        units=10,
        entropy=math.log(share * weights),
        effective_weights=share * weights,
        top90_share=0.5,
        low_share=0.0,
        unit_importance=np.ones(10),
        histogram=_NO_HISTOGRAM,
        null=drawn,
    )


def _model(layers: list[LayerUsage], skipped: int = 0) -> ModelUsage:
    reasons = {f"skipped{i}": "not a matrix" for i in range(skipped)}
    return ModelUsage("output", 1000, {layer.name: layer for layer in layers}, reasons)


def _many(count: int) -> ModelUsage:
    rng = np.random.default_rng(0)
    name = "encoder.layers.{}.feed_forward.intermediate.dense" if count > 5 else "fc{}"
    layers = []
    for i in range(count):
        low = 0.1 + 0.7 * rng.random()
        null = None if i % 7 == 5 else (low, low + 0.1)
        layers.append(_layer(name.format(i), 0.1 + 0.8 * rng.random(), null))
    return _model(layers, skipped=2)


def test_rows_are_the_layers_in_their_order():
    usage = _model([_layer("a", 0.5, (0.4, 0.6)), _layer("b", 0.9, None, weights=300)], skipped=1)
    data = layers_data(usage)
    assert data.names == ("a", "b")
    assert data.share == pytest.approx([0.5, 0.9])
    assert data.null_low[0] == 0.4 and data.null_high[0] == 0.6
    assert np.isnan(data.null_low[1]) and np.isnan(data.null_high[1])
    assert data.effective_weights == pytest.approx(0.5 * 100 + 0.9 * 300)
    assert data.weights == 400 and data.skipped == 1 and data.forward_flops is None


def test_outside_is_strict_on_both_sides_and_never_without_a_null():
    nulls = {"below": 0.39, "low": 0.4, "high": 0.6, "above": 0.61}
    layers = [_layer(name, share, (0.4, 0.6)) for name, share in nulls.items()]
    data = layers_data(_model([*layers, _layer("none", 0.01, None)]))
    assert data.outside.tolist() == [True, False, False, True, False]


def test_flops_are_matched_by_name():
    usage = _model([_layer("a", 0.5, None), _layer("b", 0.5, None)])
    flops = layers_data(usage, {"b": 7, "elsewhere": 9}).forward_flops
    assert flops is not None and math.isnan(flops[0]) and flops[1] == 7


def test_no_layer_raises():
    with pytest.raises(ValueError, match="usage: expected at least one analysed layer"):
        layers_data(_model([]))


@pytest.mark.parametrize("count", [1, 5, 30, 200])
@pytest.mark.parametrize("with_flops", [False, True])
def test_the_picture_is_legible_and_no_taller_than_a_page(count, with_flops, legible):
    usage = _many(count)
    flops = {name: 10 ** (i % 9) for i, name in enumerate(usage.layers)} if with_flops else None
    figure = plot_layers(layers_data(usage, flops))
    words = " ".join(legible(figure))
    assert len(figure.axes) == 1 + with_flops
    assert figure.get_figheight() < 12.5
    assert "depend on how the network is parametrised" in words
    assert "Modules not analysed: 2." in words


def test_many_layers_are_named_in_part_and_the_caption_says_so(legible):
    data = layers_data(_many(200))
    figure = plot_layers(data)
    named = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(named) == 50
    assert "One layer in 4 is named. Layers without a range: 28." in " ".join(legible(figure))


def test_bars_end_at_the_share_and_ranges_span_the_null():
    figure = plot_layers(layers_data(_model([_layer("a", 0.5, (0.55, 0.7)), _layer("b", 1, None)])))
    shares, ranges = figure.axes[0].collections
    spans = [
        [(p.vertices[:, 0].min(), p.vertices[:, 0].max()) for p in bars.get_paths()]
        for bars in (shares, ranges)
    ]
    assert spans == [[(0.0, 0.5), (0.0, 1.0)], [(0.55, 0.7)]]


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        ([_layer("a", 0.5, (0.4, 0.6))], "within the range of networks that learned nothing"),
        ([_layer("a", 0.7, (0.4, 0.6))], "outside the range of networks that learned nothing"),
        ([_layer("a", 0.7, None)], "not compared with networks that learned nothing"),
        (
            [_layer("a", 0.7, (0.4, 0.6)), _layer("b", 0.5, (0.4, 0.6)), _layer("c", 0.5, None)],
            "1 of 2 layers lie outside the range of networks that learned nothing",
        ),
    ],
)
def test_the_subtitle_compares_with_the_null(layers, sentence, legible):
    assert sentence in legible(plot_layers(layers_data(_model(layers))))


def test_the_title_and_the_null_are_the_tutorials(legible):
    usage = _model([_layer("fc1", 15.7751 / 20, (0.5, 0.8), weights=20)])
    words = " ".join(legible(plot_layers(layers_data(usage))))
    assert "Effective weights 15.8 of 20, in 1 layer" in words
    assert "(reinitialised, 20 draws)" in words and "78.9%" in words


def test_it_draws_on_given_axes():
    figure = Figure(figsize=(9, 6))
    ax = figure.add_axes((0.3, 0.3, 0.5, 0.5))
    data = layers_data(_many(5), {"fc1": 3})
    assert plot_layers(data, ax) is figure and figure.axes == [ax]
