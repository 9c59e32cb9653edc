"""Histogram of importance against counts made by hand, scipy's entropy, and the tutorial."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy as scipy_entropy

from tests.plots.usages import words_of
from wua_mlflow.plots.histogram import histogram_data, plot_histogram
from wua_mlflow.usage.results import Histogram
from wua_mlflow.usage.statistics import summarize


def _ready(values: np.ndarray) -> Histogram:
    tensor = torch.from_numpy(values)
    return summarize(lambda _, columns: tensor[None, columns], (1, len(values))).histogram


def _normalized(count: int) -> np.ndarray:
    values = np.random.default_rng(0).gamma(0.7, size=count)
    return values / values.sum()


def test_counts_are_those_of_a_loop_and_the_bars():
    values = _normalized(20)
    data = histogram_data(values.reshape(2, 10))
    by_hand = [0] * 25
    for value in values:
        by_hand[min(int(value / values.max() * 25), 24)] += 1
    assert data.counts.tolist() == by_hand
    assert data.edges[0] == 0 and data.edges[-1] == values.max()
    assert data.weights == 20 and data.uniform == 1 / 20
    (bars,) = plot_histogram(data).axes[0].patches
    assert bars.get_data().values.tolist() == by_hand
    assert bars.get_data().edges.tolist() == data.edges.tolist()


def test_few_weights_get_few_bins_entropy_is_scipys_and_effective_weights_its_exponential():
    for count, bins in ((1, 25), (99, 25), (100, 50), (9999, 50)):
        values = _normalized(count)
        data = histogram_data(values)
        assert len(data.counts) == bins and data.counts.sum() == count
        entropy = scipy_entropy(values)
        assert data.entropy == pytest.approx(entropy, rel=1e-12, abs=1e-12)
        assert data.effective_weights == pytest.approx(math.exp(entropy), rel=1e-12)
    assert histogram_data([0.0, 0.0, 1.0]).effective_weights == 1


@pytest.mark.parametrize(("count", "merged"), [(20, 2), (99, 2), (3000, 1)])
def test_a_ready_histogram_is_merged_to_the_bins_that_its_weights_deserve(count, merged):
    values = _normalized(count)
    ready, direct = _ready(values), histogram_data(values)
    data = histogram_data(ready, name="fc1")
    assert data.counts.tolist() == [sum(ready.counts[i : i + merged]) for i in range(0, 50, merged)]
    assert data.edges.tolist() == ready.edges[::merged].tolist()
    assert data.entropy == ready.entropy == pytest.approx(direct.entropy, rel=1e-12)
    assert data.weights == count
    if merged == 1:
        assert data.counts.tolist() == direct.counts.tolist()


@pytest.mark.parametrize("importance", [np.zeros(20), _ready(np.zeros(20))])
def test_a_layer_of_zeros_has_no_effective_weights_and_no_uniform_line(importance):
    data = histogram_data(importance)
    assert data.effective_weights == 0 and data.weights == 20
    figure = plot_histogram(data)
    words = words_of(figure)
    assert "Effective weights 0 of 20" in words and "all were equal" not in words
    assert "20 weights, each of importance 0" in words
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["0"]


def test_wrong_values_raise():
    for values, message in (
            ([], "at least one weight"),
            (Histogram(np.array([0.0, 1.0]), np.array([0]), 0.0), "at least one weight"),
            ([0.5, math.nan], "finite numbers"), ([1.5, -0.5], "finite numbers of at least 0"),
            ([2.0, 2.0], "expected a sum of 1, but got 4")):
        with pytest.raises(ValueError, match=message):
            histogram_data(values)


LONG = "model.encoder.layers.17.feed_forward.intermediate.dense"
TUTORIAL = "share 78.9%; entropy 2.7584 nats of at most 2.9957"


@pytest.mark.parametrize(("count", "entropy", "name", "words"), [
    (20, 2.7584, "fc1", ["fc1: effective weights 15.8 of 20", TUTORIAL]),
    (20, 2.7584, LONG, [LONG, f"effective weights 15.8 of 20; {TUTORIAL}"]),
    (1, 0.0, "fc", ["fc: effective weights 1 of 1"]),
    (200_000, 11.0, "fc", ["fc: effective weights 59,874 of 200,000"]),
])
def test_the_picture_is_legible_and_marks_the_uniform_value(count, entropy, name, words, legible):
    data = histogram_data(_normalized(count), entropy, name=name)
    assert data.effective_weights == pytest.approx(math.exp(entropy), abs=1e-3)
    figure = plot_histogram(data)
    assert set(words) <= set(legible(figure))
    (line,) = figure.axes[0].lines
    assert list(line.get_xdata()) == [1 / count, 1 / count]


def test_where_most_lie_in_the_first_bar_counts_are_logarithmic_and_it_holds_the_line(legible):
    assert not histogram_data([0.5, 0.25, 0.25]).log_counts
    values = np.concatenate([np.full(1000, 1.0), [50.0]])
    data = histogram_data(values / values.sum())
    assert data.log_counts and "number of weights, logarithmic" in words_of(plot_histogram(data))
    edges = np.linspace(0, 1e-4, 51)
    counts = np.array([39_640_000, *[7_000] * 48, 24_000])
    figure = plot_histogram(histogram_data(Histogram(edges, counts, 16.38)))
    assert not list(figure.axes[0].lines)
    assert {"1/40,000,000, if all were equal: within the first bar, which holds 99.1% of the "
            "weights", "Effective weights 13 M of 40 M"} <= set(legible(figure))
