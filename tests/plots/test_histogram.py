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


def histogram(values: torch.Tensor) -> Histogram:
    return summarize(lambda _, columns: values[None, columns], (1, len(values))).histogram


def _normalized(count: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).gamma(0.7, size=count)
    return values / values.sum()


def test_counts_are_those_of_a_loop():
    values = _normalized(20)
    data = histogram_data(values.reshape(2, 10))
    by_hand = [0] * 10
    for value in values:
        by_hand[min(int(value / values.max() * 10), 9)] += 1
    assert data.counts.tolist() == by_hand
    assert data.edges[0] == 0 and data.edges[-1] == values.max()
    assert data.weights == 20 and data.uniform == 1 / 20


@pytest.mark.parametrize(("count", "bins"), [(1, 10), (20, 10), (400, 20), (2500, 50), (9999, 50)])
def test_few_weights_get_few_bins(count, bins):
    data = histogram_data(_normalized(count))
    assert len(data.counts) == bins and data.counts.sum() == count


def test_entropy_is_scipys_and_effective_weights_its_exponential():
    values = _normalized(300)
    data = histogram_data(values)
    assert data.entropy == pytest.approx(scipy_entropy(values), rel=1e-12)
    assert data.effective_weights == pytest.approx(math.exp(scipy_entropy(values)), rel=1e-12)
    assert histogram_data(np.full(8, 1 / 8)).effective_weights == pytest.approx(8)


def test_the_tutorials_entropy_gives_its_effective_weights():
    data = histogram_data(_normalized(20), 2.7584)
    assert data.effective_weights == pytest.approx(15.7751, abs=1e-3)


@pytest.mark.parametrize(("count", "merged"), [(20, 5), (400, 5), (700, 2), (3000, 1)])
def test_a_ready_histogram_is_merged_to_the_bins_that_its_weights_deserve(count, merged):
    ready = histogram(torch.from_numpy(_normalized(count)))
    data = histogram_data(ready, name="fc1")
    by_hand = [sum(ready.counts[i : i + merged]) for i in range(0, 50, merged)]
    assert data.counts.tolist() == by_hand
    assert data.edges.tolist() == ready.edges[::merged].tolist()
    assert data.entropy == ready.entropy and data.weights == count


def test_a_ready_histogram_says_what_the_values_say():
    values = _normalized(3000)
    ready, direct = (
        histogram_data(histogram(torch.from_numpy(values))),
        histogram_data(values),
    )
    assert ready.counts.tolist() == direct.counts.tolist()
    assert ready.entropy == pytest.approx(direct.entropy, rel=1e-12)


def test_a_layer_of_zeros_has_no_effective_weights_and_no_uniform_line():
    for data in (histogram_data(np.zeros(20)), histogram_data(histogram(torch.zeros(20)))):
        assert data.effective_weights == 0 and data.weights == 20
        figure = plot_histogram(data)
        words = words_of(figure)
        assert "Effective weights 0 of 20" in words and "all were equal" not in words
        assert "20 weights, each of importance 0" in words
        assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["0"]


def test_one_weight_with_everything_is_one_effective_weight():
    assert histogram_data([1.0]).effective_weights == 1
    assert histogram_data([0.0, 0.0, 1.0]).effective_weights == 1


def test_counts_are_logarithmic_only_where_a_linear_axis_would_hide_bars():
    assert not histogram_data([0.5, 0.25, 0.25]).log_counts
    values = np.concatenate([np.full(1000, 1.0), [50.0]])
    assert histogram_data(values / values.sum()).log_counts


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "at least one weight"),
        ([0.5, math.nan], "finite numbers"),
        ([1.5, -0.5], "finite numbers of at least 0"),
        ([2.0, 2.0], "expected a sum of 1, but got 4"),
    ],
)
def test_wrong_values_raise(values, message):
    with pytest.raises(ValueError, match=message):
        histogram_data(values)


def test_no_bins_raise():
    with pytest.raises(ValueError, match="bins: expected an integer of at least 1, but got 0"):
        histogram_data([1.0], bins=0)


@pytest.mark.parametrize("count", [1, 20, 200_000])
def test_the_picture_is_legible_and_marks_the_uniform_value(count, legible):
    figure = plot_histogram(histogram_data(_normalized(count), name="encoder.layers.11.dense.out"))
    words = legible(figure)
    assert any(f"of {count:,}" in text for text in words)
    (line,) = figure.axes[0].lines
    assert list(line.get_xdata()) == [1 / count, 1 / count]


def test_bars_are_the_counts():
    data = histogram_data(_normalized(20))
    (bars,) = plot_histogram(data).axes[0].patches
    assert bars.get_data().values.tolist() == data.counts.tolist()
    assert bars.get_data().edges.tolist() == data.edges.tolist()


def test_the_title_tells_the_tutorials_numbers():
    words = words_of(plot_histogram(histogram_data(_normalized(20), 2.7584, name="fc1")))
    assert "fc1: effective weights 15.8 of 20" in words
    assert "share 78.9%; entropy 2.7584 nats of at most 2.9957" in words


def test_a_long_name_has_the_title_to_itself(legible):
    name = "model.encoder.layers.17.feed_forward.intermediate.dense"
    words = legible(plot_histogram(histogram_data(_normalized(20), 2.7584, name=name)))
    assert name in words
    assert ("effective weights 15.8 of 20; share 78.9%; entropy 2.7584 nats of at most 2.9957"
            in words)


def test_where_all_lies_in_the_first_bar_no_line_is_drawn_on_the_axis(legible):
    edges = np.linspace(0, 1e-4, 51)
    counts = np.array([39_640_000, *[7_000] * 48, 24_000])
    figure = plot_histogram(histogram_data(Histogram(edges, counts, 16.38)))
    words = legible(figure)
    assert not list(figure.axes[0].lines)
    assert ("1/40,000,000, if all were equal: within the first bar, which holds 99.1% of the "
            "weights") in words
    assert "Effective weights 13 M of 40 M" in words
