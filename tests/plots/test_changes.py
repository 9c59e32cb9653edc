"""Units before and after: the rows, the words, the marks, and whether they can be read."""

from __future__ import annotations

import matplotlib.colors
import numpy as np
import pytest
from matplotlib.figure import Figure

from wua_mlflow.plots.style import VARIANT_COLOURS
from wua_mlflow.plots.widths import LayerChange, changes_data, plot_changes


def _many(count: int) -> list[LayerChange]:
    return [LayerChange(f"stages.{i // 4}.{i % 4}.conv", 8 * (1 + i % 9), 1 + (3 * i) % 8)
            for i in range(count)]


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
def test_what_cannot_be_drawn(changes, message):
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


def test_what_it_says(legible):
    words = legible(plot_changes(changes_data([
        LayerChange("fc1", 1000, 40), LayerChange("fc2", 300, 300), LayerChange("fc3", 999, 998)])))
    assert "2,299 → 1,338 units in 3 layers, of which 2 changed" in words
    assert {"1,000", "40", "4%", "100%", ">99%"} <= set(words)
    assert {"original", "slim", "as many in both"} <= set(words)


@pytest.mark.parametrize("count", [1, 2, 5, 40, 200])
def test_every_word_can_be_read(count, legible):
    figure = plot_changes(changes_data(_many(count)))
    legible(figure)
    assert isinstance(figure, Figure)
    assert figure.get_size_inches()[1] < 60
