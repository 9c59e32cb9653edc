"""The heat map's rows against loops over the units, and its ink against the rows."""

from __future__ import annotations

import itertools
import math

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure

from tests.plots.sight import SEEN, lab, linear
from tests.plots.usages import layer, many, model
from wua_mlflow.plots.style import NO_IMPORTANCE, UNIT_COLOURS
from wua_mlflow.plots.usage import plot_units, units_data


def _of(*importances: object):
    layers = [layer(f"fc{i}", units=np.array(each)) for i, each in enumerate(importances)]
    return units_data(model(layers))


def _said(words: list[str]) -> str:
    return " ".join(" ".join(words).split())


def test_units_are_sorted_and_relative_to_their_layers_mean():
    data = _of([1.0, 4.0, 0.0, 3.0], [7.0])
    assert data.cells[0].tolist() == [2.0, 1.5, 0.5, 0.0]
    assert data.cells[1].tolist() == [1.0]
    assert data.units.tolist() == [4, 1] and data.zero.tolist() == [1, 0]
    assert data.names == ("fc0", "fc1") and data.criterion == "output"


@pytest.mark.parametrize("units", [201, 399, 400, 1000, 50_000])
def test_more_units_than_cells_are_averaged_in_their_order(units):
    importance = np.random.default_rng(0).lognormal(0, 2, units)
    (cells,) = _of(importance).cells
    ordered = sorted(importance.tolist(), reverse=True)
    mean = math.fsum(ordered) / units
    borders = [k * units // 200 for k in range(201)]
    expected = [math.fsum(ordered[a:b]) / (b - a) / mean for a, b in itertools.pairwise(borders)]
    assert cells == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
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


def test_no_layer_raises():
    with pytest.raises(ValueError, match="usage: expected at least one analysed layer"):
        units_data(model([]))


@pytest.mark.parametrize("count", [1, 2, 5, 20, 60, 200])
def test_the_picture_is_legible_and_no_taller_than_a_page(count, legible):
    figure = plot_units(units_data(many(count)))
    words = _said(legible(figure))
    assert figure.get_figheight() < 16 and figure.get_figwidth() < 16
    assert "on its account alone no unit is superfluous" in words
    assert ("a cell is the mean of neighbours" in words) == (count >= 5)


def test_the_title_says_the_finding(legible):
    words = legible(plot_units(_of([9.0, 1.0, 1.0, 1.0], [1.0] * 6)))
    assert "Half of the importance is held by 40% of the units" in words
    assert ("the fewest that hold half of each layer's importance: 4 of 10, by layer 25% to 50%; "
            "if all were equal, about 50%") in words
    assert not any("no importance" in text for text in words)


def test_a_layer_without_importance_is_said_to_have_none(legible):
    words = legible(plot_units(_of([1.0, 0.0], [0.0] * 5)))
    assert words.count("no importance at all") == 1
    assert "no importance: 6 units" in words
    words = legible(plot_units(_of([0.0] * 5)))
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


@pytest.mark.parametrize("sight", [*SEEN, "trichromat"])
def test_no_importance_looks_like_no_importance_to_any_reader(sight):
    seen = np.array(SEEN.get(sight, np.eye(3)))
    scale = lab(linear(matplotlib.colormaps[UNIT_COLOURS](np.linspace(0, 1, 256))[:, :3]) @ seen.T)
    none = lab(linear(to_rgb(NO_IMPORTANCE)) @ seen.T)
    assert np.linalg.norm(scale - none, axis=1).min() > 20
    assert (np.diff(scale[:, 0]) > 0).mean() > 0.97


def test_the_line_stands_where_half_is_reached():
    drawn = plot_units(_of([9.0, 1.0, 1.0, 1.0], [1.0] * 6, [0.0] * 3)).axes[1].collections[-1]
    places = [(path.vertices[0, 0], path.vertices[:, 1].mean()) for path in drawn.get_paths()]
    assert places == [(0.25, 0.0), (0.5, 1.0)]


def test_it_draws_in_the_place_of_given_axes():
    figure = Figure(figsize=(10, 12))
    ax = figure.add_axes((0.0, 0.4, 1.0, 0.6))
    assert plot_units(units_data(many(5)), ax) is figure
    assert all(axes.get_position().y0 > 0.4 for axes in figure.axes[1:])
