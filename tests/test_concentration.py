"""Entropy, coverage, low use and histogram, against scipy, NumPy and exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
import torch

from wua_mlflow.usage.statistics import (
    effective_count,
    entropy_nats,
    histogram,
    low_share,
    top_share,
)

LAYERS = {
    "uniform": np.random.default_rng(0).random((7, 11)),
    "half-normal": np.abs(np.random.default_rng(1).standard_normal(300)),
    "heavy tail": np.random.default_rng(2).pareto(1.1, 500),
    "some zeros": np.where(np.random.default_rng(3).random(64) < 0.5, 0.0, 2.5),
    "one weight": np.array([3.5]),
    "all equal": np.full((4, 5), 0.1),
    "one of many": np.eye(1, 50).ravel(),
    "tiny": np.random.default_rng(4).random(30) * 1e-300,
    "large": np.random.default_rng(5).random(30) * 1e300,
}


def exact_top_count(values, coverage):
    """The smallest k whose largest k values hold ``coverage``, in whole numbers."""
    exact = sorted((Fraction(value) for value in values), reverse=True)
    target, held = coverage * sum(exact), Fraction(0)
    for count, value in enumerate(exact, 1):
        held += value
        if held >= target:
            return count
    raise AssertionError("the whole holds every share of itself")


@pytest.mark.parametrize("name", LAYERS)
def test_entropy_is_scipys(name):
    reference = scipy.stats.entropy(LAYERS[name].ravel())
    assert entropy_nats(torch.tensor(LAYERS[name])) == pytest.approx(reference, abs=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_effective_weights_are_the_perplexity(name):
    p = LAYERS[name].ravel() / LAYERS[name].sum()
    reference = np.prod(p[p > 0] ** -p[p > 0])
    assert effective_count(torch.tensor(LAYERS[name])) == pytest.approx(reference, rel=1e-12)


def test_float32_and_integers_are_taken_in_float64():
    values = np.random.default_rng(6).random(1000).astype(np.float32)
    reference = scipy.stats.entropy(values.astype(np.float64))
    assert entropy_nats(torch.from_numpy(values)) == pytest.approx(reference, abs=1e-13)
    assert entropy_nats(torch.tensor([1, 3])) == pytest.approx(scipy.stats.entropy([1, 3]))


def test_chunks_do_not_matter():
    values = np.random.default_rng(7).pareto(1.5, 200_003)
    assert entropy_nats(torch.tensor(values)) == pytest.approx(
        scipy.stats.entropy(values), abs=1e-11)


@pytest.mark.parametrize("factor", [1e-9, 3.0, 1e12])
def test_scale_and_order_do_not_matter(factor):
    values = torch.tensor(LAYERS["heavy tail"])
    turned = values.flip(0) * factor
    assert entropy_nats(turned) == pytest.approx(entropy_nats(values), abs=1e-12)
    assert top_share(turned) == top_share(values)
    assert (histogram(turned).counts == histogram(values).counts).all()


def test_all_zero_has_no_effective_weights():
    zeros = torch.zeros(3, 4)
    assert entropy_nats(zeros) == 0.0
    assert effective_count(zeros) == 0.0
    assert top_share(zeros) == 0.0
    assert low_share(zeros, below=0.01) == 1.0
    assert histogram(zeros, bins=4).counts.tolist() == [12, 0, 0, 0]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("coverage", [0.5, 0.9, 1.0])
def test_top_share_is_the_brute_force_count(name, coverage):
    values = LAYERS[name].ravel()
    descending = np.cumsum(np.sort(values)[::-1].astype(np.longdouble))
    slack = 1 - np.longdouble(1e-12)
    count = int(np.argmax(descending >= np.longdouble(coverage) * descending[-1] * slack)) + 1
    assert top_share(torch.tensor(values), coverage) == count / values.size


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0] * 10, Fraction(9, 10)),
        ([0.1] * 10, Fraction(9, 10)),
        ([0.1] * 1000, Fraction(9, 10)),
        ([1 / 3] * 30, Fraction(27, 30)),
        ([2.0], Fraction(1)),
        ([0.0, 0.0, 5.0, 0.0], Fraction(1, 4)),
        ([9.0, 1.0], Fraction(1, 2)),
        ([8.999, 1.001], Fraction(1)),
        ([4.0, 4.0, 1.0, 1.0], Fraction(3, 4)),
        ([0.45, 0.45, 0.05, 0.05], Fraction(1, 2)),
    ],
)
def test_top_share_of_ties_by_hand(values, expected):
    assert top_share(torch.tensor(values, dtype=torch.float64)) == float(expected)


def test_top_share_of_whole_numbers_is_exact():
    for seed in range(30):
        values = np.random.default_rng(seed).integers(0, 6, size=37)
        if values.sum():
            count = exact_top_count(values.tolist(), Fraction(9, 10))
            assert top_share(torch.tensor(values)) == count / 37


LARGE = {
    "random": lambda drawn: drawn,
    "ascending": np.sort,
    "descending": lambda drawn: -np.sort(-drawn),
    "ties": lambda drawn: np.floor(4 * drawn),
    "equal": np.ones_like,
    "heavy tail": lambda drawn: np.exp(drawn) ** 1.3,
    "one of many": lambda drawn: np.where(np.arange(drawn.size) == 77, 1e9, drawn),
    "not what a strided sample sees": lambda drawn: np.where(np.arange(drawn.size) % 65, drawn, 0),
}


@pytest.mark.parametrize("name", LARGE)
def test_top_share_of_a_large_layer_is_that_of_sorting_it(name):
    size = 2**20 + 4097
    values = LARGE[name](np.random.default_rng(8).exponential(size=size))
    held = np.cumsum(np.sort(values)[::-1])
    count = int(np.searchsorted(held, 0.9 * held[-1] * (1 - 1e-12))) + 1
    assert top_share(torch.from_numpy(values)) == count / size


@pytest.mark.parametrize("coverage", [0.0, -0.1, 1.01, math.nan])
def test_coverage_out_of_range(coverage):
    with pytest.raises(ValueError, match=r"coverage: expected a number in \(0, 1\], but got"):
        top_share(torch.ones(3), coverage)


def test_low_share_counts_what_lies_strictly_below():
    values = torch.tensor([0.0, 0.0099, 0.01, 0.0101, 5.0], dtype=torch.float64)
    assert low_share(values, below=0.01) == 2 / 5
    assert low_share(values, below=math.inf) == 1.0
    with pytest.raises(ValueError, match="below: expected a number, but got NaN"):
        low_share(values, below=math.nan)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("bins", [1, 7, 50])
def test_histogram_is_numpys(name, bins):
    p = LAYERS[name].ravel() / LAYERS[name].sum()
    counts, edges = np.histogram(p, bins=bins, range=(0.0, p.max()))
    found = histogram(torch.tensor(LAYERS[name]), bins)
    assert found.counts.tolist() == counts.tolist()
    assert found.edges == pytest.approx(edges)
    assert found.entropy == pytest.approx(scipy.stats.entropy(p), abs=1e-12)


def test_histogram_needs_a_bin():
    with pytest.raises(ValueError, match="bins: expected a whole number of at least 1, but got 0"):
        histogram(torch.ones(3), bins=0)


FUNCTIONS = [entropy_nats, effective_count, top_share, histogram,
             lambda importance: low_share(importance, below=0.01)]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([math.nan], "NaN or infinity"),
        ([1.0, math.inf], "NaN or infinity"),
        ([math.inf, -math.inf], "NaN or infinity"),
        ([math.nan, 0.0], "NaN or infinity"),
        ([1.7e308, 1.7e308], "finite sum"),
        ([1.0, -1e-9], "negative"),
        ([-1.0], "negative"),
        ([], "at least one weight, but got none"),
    ],
)
def test_what_is_no_importance_is_refused(function, values, message):
    with pytest.raises(ValueError, match=f"importance: expected .*{message}"):
        function(torch.tensor(values, dtype=torch.float64))
