"""What a search tried: the order, the intervals where they are, the words."""

from __future__ import annotations

import matplotlib.colors
import numpy as np
import pytest

from wua_mlflow.plots.style import VARIANT_COLOURS
from wua_mlflow.plots.widths import plot_trials, trials_data
from wua_mlflow.widths.results import Trial

ORIGINAL = Trial((128, 64), 35_000, "original", 0.0, 0.0, 0.0, 0.97)
TRIED = [
    Trial((8, 4), 1_000, "inferior", -0.07, -0.08, -0.06, 0.90),
    Trial((32, 16), 6_000, "non_inferior", -0.001, -0.004, 0.002, 0.969),
    Trial((16, 8), 2_500, "inconclusive", -0.018, -0.03, -0.006, 0.95),
]


def _many(count: int) -> list[Trial]:
    return [Trial((10 + i, 5 + i), 1_000.0 + i, "inconclusive", -0.01, -0.02 - i / 1000, 0.0, 0.9)
            for i in range(count)]


def test_dearest_first_without_the_original():
    data = trials_data([ORIGINAL, *TRIED], chosen=(32, 16), margin=0.02)
    assert [one.widths for one in data.trials] == [(32, 16), (16, 8), (8, 4)]
    assert data.chosen == 0
    assert trials_data(TRIED, chosen=(128, 64), margin=0.02).chosen is None


def test_intervals_are_drawn_where_they_are():
    figure = plot_trials(trials_data([ORIGINAL, *TRIED], chosen=(32, 16), margin=0.02))
    found, colours = [], []
    for axes in figure.axes:
        for lines in axes.collections:
            if hasattr(lines, "get_segments"):
                found += [np.asarray(one).tolist() for one in lines.get_segments()]
                colours += [matplotlib.colors.to_hex(one) for one in lines.get_colors()]
    assert found == [[[-0.004, 0], [0.002, 0]], [[-0.03, 1], [-0.006, 1]], [[-0.08, 2], [-0.06, 2]]]
    assert colours[0] == VARIANT_COLOURS["slim"]
    assert VARIANT_COLOURS["slim"] not in colours[1:]


def test_what_it_says(legible):
    said = " ".join(" ".join(legible(plot_trials(trials_data(
        [ORIGINAL, *TRIED], chosen=(32, 16), margin=0.02)))).split())
    assert "3 widths tried, 32-16 chosen" in said
    for word in ("as good", "worse", "open", "96.9%", "90.0%", "margin of 2 points"):
        assert word in said


def test_of_another_score(legible):
    said = " ".join(" ".join(legible(plot_trials(trials_data(
        TRIED[:1], chosen=(1, 1), margin=0.05, score="R²")))).split())
    assert "1 width tried, none of them chosen" in said
    assert "difference of R²" in said
    assert "%" not in said
    assert "margin of 0.05" in said


@pytest.mark.parametrize(("trials", "message"), [
    ([], "trials: expected at least one besides the original, but got none"),
    ([ORIGINAL], "trials: expected at least one besides the original, but got none"),
    ([Trial((1,), float("inf"), "inferior", 0, 0, 0, 0)], "trials: expected finite figures"),
])
def test_what_cannot_be_drawn(trials, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        trials_data(trials, chosen=(1,), margin=0.02)


@pytest.mark.parametrize("count", [1, 2, 11, 40])
def test_every_word_can_be_read(count, legible):
    legible(plot_trials(trials_data(_many(count), chosen=(10, 5), margin=0.02)))
