"""The diagram's lines against loops over the weights, and the tutorial's rule for their looks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba

from tests.plots.usages import words_of
from wua_mlflow.plots.network import network_data, plot_network


def _weights(*units: int, names: Sequence[str] = ()) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 0.4, size=shape).astype(np.float32) for name, *shape in
            zip(names or map(str, units[1:]), units[1:], units, strict=False)}


def test_every_weight_is_one_line_between_its_two_units_also_of_a_layer_called_input():
    weights = _weights(2, 10, 3, names=["fc1", "fc2"])
    data = network_data(weights)
    lines = {tuple(edge): w for edge, w in zip(data.edges.tolist(), data.weights, strict=True)}
    expected = {}
    for j in range(10):
        for i in range(2):
            expected[i, 2 + j] = abs(float(weights["fc1"][j, i]))
        for k in range(3):
            expected[2 + j, 12 + k] = abs(float(weights["fc2"][k, j]))
    assert lines.keys() == expected.keys() and len(data.edges) == 50
    assert [lines[edge] for edge in expected] == pytest.approx(list(expected.values()), rel=1e-6)
    assert not data.aggregated
    assert [(column.name, column.units, column.circles) for column in data.columns] == [
        ("input", 2, 2), ("fc1", 10, 10), ("fc2", 3, 3)]
    data = network_data(_weights(2, 4, 1, names=["input", "out"]))
    assert [(column.name, column.units) for column in data.columns] == [
        ("input", 2), ("input", 4), ("out", 1)]
    assert len(data.edges) == 2 * 4 + 4 * 1


@pytest.mark.parametrize(("units", "circles", "size"), [
    (60, 60, 1), (61, 21, 3), (64, 16, 4), (479, 24, 20), (1000, 20, 50)])
def test_wide_layers_become_groups_of_one_size(units, circles, size):
    data = network_data(_weights(units, 3))
    column = data.columns[0]
    assert (column.units, column.circles, column.group_size) == (units, circles, size)
    assert data.aggregated == (size > 1)
    assert len(data.positions) == circles + 3


def test_a_groups_line_is_the_mean_magnitude_of_its_block():
    """79 values in groups of 4 and 61 units in groups of 3, the last ones smaller."""
    (matrix,) = _weights(79, 61).values()
    data = network_data({"fc": matrix})
    expected = [np.mean(np.abs(matrix[top : top + 3, left : left + 4].astype(float)))
                for top in range(0, 61, 3) for left in range(0, 79, 4)]
    assert data.weights == pytest.approx(expected, rel=1e-6)
    assert data.edges.tolist() == [[s, 20 + t] for t in range(21) for s in range(20)]


def test_to_or_from_a_group_a_line_is_relative_to_its_layers_mean():
    first, second = np.full((100, 4), 1.0), _weights(100, 3)["3"]
    first[:5, 0], first[5:10, 1], first[10:15, 2] = 2.0, 4.0, 0.1
    data = network_data({"a": first, "b": second, "c": np.array([[0.05, 0.2, 0.5]])})
    mean = first.mean()
    blocks = {tuple(edge): k for k, edge in enumerate(data.edges.tolist())}
    for source, target, value in ((0, 0, 2.0), (1, 1, 4.0), (2, 2, 0.1), (3, 3, 1.0)):
        line = blocks[source, 4 + target]
        assert data.weights[line] == pytest.approx(value) and data.grouped[line]
        width = min(max((value / mean) ** 2 / 3, 0.2), 3.0)
        assert data.widths_points[line] == pytest.approx(width)
        assert data.strong[line] == (value > 1.5 * mean)
    assert data.grouped.tolist() == [True] * 140 + [False] * 3
    assert data.widths_points[140:] == pytest.approx([0.2, 0.6, 1.5])
    assert data.strong[140:].tolist() == [False, True, True]
    zeros = network_data({"fc": np.zeros((100, 3))})
    assert set(zeros.widths_points) == {0.2} and not zeros.strong.any()


def test_columns_are_centred_and_stay_in_the_frame():
    data = network_data(_weights(2, 10, 1, 100))
    for number in range(4):
        y = data.positions[data.positions[:, 0] == number, 1]
        assert y.sum() == pytest.approx(0, abs=1e-9)
        assert (np.diff(y) < 0).all() and np.abs(y).max() <= 0.5 + 1e-12


def test_wrong_weights_raise():
    for weights, message in (
            ([], "weights: expected at least one layer"),
            ([np.ones(3)], r"weights\[0\]: expected shape \(out, in\), but got \(3,\)"),
            ([np.full((2, 2), np.nan)], r"weights\[0\]: expected finite numbers"),
            ([np.ones((3, 2)), np.ones((1, 4))], r"weights\[1\]: expected 3 inputs.*got 4")):
        with pytest.raises(ValueError, match=message):
            network_data(dict(enumerate(weights)))


def test_widths_and_colours_follow_the_tutorials_rule_and_the_ink_is_the_data(legible):
    data = network_data({"fc1": np.array([[0.0, 0.05, -0.1, 0.11, -0.5, 1.0, -4.0]])})
    assert data.widths_points == pytest.approx([0.2, 0.2, 0.3, 0.33, 1.5, 3.0, 3.0])
    assert data.strong.tolist() == [False, False, False, True, True, True, True]
    figure = plot_network(data)
    (lines,) = [c for c in figure.axes[0].collections if isinstance(c, LineCollection)]
    looks = sorted(zip(lines.get_linewidths(), map(tuple, lines.get_colors()), strict=True))
    red, grey = to_rgba("#d62728"), to_rgba("#b9bfc5")
    assert [width for width, _ in looks] == pytest.approx(sorted(data.widths_points))
    assert [colour for _, colour in looks] == [grey] * 3 + [red] * 4
    words = legible(figure)
    assert "fc1\n1 unit" in words and "input\n7 values" in words
    assert "One circle a unit, one line a weight." in words


@pytest.mark.parametrize(("units", "names", "words", "other"), [
    ((64, 300, 10), ["fc1", "out"], ["input 64 values groups of 4", "fc1 300 units groups of 15",
     "out 10 units", "3 times the layer's mean |w| and above", "in groups of consecutive units"],
     "|w| of 1 and above"),
    ((64, 30, 10), (), ["|w| of 1 and above", "red above 1.5 times it"], "1.5 times the"),
    ((5,) * 7, [f"encoder.block_of_the_network.{i}.linear" for i in range(6)],
     [f" {i}.linear 5 units" for i in range(6)], "encoder"),
])
def test_what_it_says(units, names, words, other):
    drawn = words_of(plot_network(network_data(_weights(*units, names=names))))
    assert not [phrase for phrase in words if phrase not in drawn] and other not in drawn


@pytest.mark.parametrize("units", [(1, 1), (8,) * 21, (300, 170, 1)])
def test_the_picture_is_legible(units, legible):
    names = [f"encoder.block.{i}.linear" for i in range(len(units) - 1)]
    assert legible(plot_network(network_data(_weights(*units, names=names))))


def test_inputs_and_classes_have_their_names_where_there_is_a_circle_for_each(legible):
    names = ["sepal length (cm)", "<b>", "a name of more than thirty characters", "$x_1$"]
    data = network_data(_weights(4, 15, 3), inputs=names, outputs=["setosa", "b", "c"])
    words = legible(plot_network(data))
    assert {"sepal length (cm)", "<b>", "$x_1$", "setosa", "b", "c"} <= set(words)
    assert not any(name in words for name in names[2:3]), "a long one is cut"
    other = network_data(_weights(4, 15, 1), inputs=names[:3], outputs=["b", "c"])
    assert (other.inputs, other.outputs) == ((), ())
    assert network_data(_weights(64, 3), inputs=list(map(str, range(64)))).inputs == ()
