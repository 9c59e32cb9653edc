"""Entropy, top share, low share and histogram against scipy, sorting and exact fractions."""

from __future__ import annotations

import importlib.util
import math
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
import torch

from wua_mlflow.usage import statistics
from wua_mlflow.usage.criteria import CRITERIA, WeightedImportance
from wua_mlflow.usage.layer_statistics import LayerStatistics
from wua_mlflow.usage.statistics import (
    effective_count,
    entropy_nats,
    low_share,
    summarize,
    top_share,
)


def drawn(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


LAYERS = {
    "uniform": drawn(0).random((70, 110)),
    "half-normal": np.abs(drawn(1).standard_normal((300, 40))),
    "heavy tail": drawn(2).pareto(1.1, (500, 30)),
    "half zeros": np.where(drawn(3).random((64, 100)) < 0.5, 0.0, 2.5),
    "one weight": np.array([[3.5]]),
    "all equal": np.full((40, 50), 0.1),
    "one of many": np.eye(1, 500),
    "tiny": drawn(4).random((30, 30)) * 1e-300,
    "large": drawn(5).random((30, 30)) * 1e300,
    "subnormal": np.array([[5e-324, 0.0]]),
    "one column": drawn(6).random((3000, 1)),
    "scaled units": drawn(7).random((600, 20)) * np.exp(3 * drawn(8).standard_normal((600, 1))),
    "sorted": np.sort(drawn(9).random(6400)).reshape(80, 80),
    "few values": drawn(10).integers(0, 4, (100, 100)).astype(float),
}
KERNELS = {"numpy": False, "numba": True}


def of(array: np.ndarray, **options):
    whole = torch.from_numpy(array)
    return summarize(lambda rows, columns: whole[rows, columns], whole.shape, **options)


def top_count(values: np.ndarray) -> int:
    held = np.sort(values.ravel().astype(np.float64))[::-1].cumsum()
    return int(np.searchsorted(held, 0.9 * held[-1] * (1 - 1e-12))) + 1


@pytest.fixture(params=KERNELS)
def compiled(request):
    if request.param == "numba":
        pytest.importorskip("numba")
    return KERNELS[request.param]


@pytest.fixture(params=["whole", "by tiles"])
def _small_tiles(request, monkeypatch):
    """By tiles of 512 numbers: what a layer of more than a million goes through."""
    if request.param == "by tiles":
        monkeypatch.setattr(statistics, "TILE", 512)
        monkeypatch.setattr(statistics, "WHOLE_UP_TO", 0)


@pytest.mark.usefixtures("_small_tiles")
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", LAYERS)
def test_every_figure_is_that_of_the_whole_array(name, dtype, compiled):
    with np.errstate(over="ignore", under="ignore"):
        array = LAYERS[name].astype(dtype)
    if not np.isfinite(array).all() or not array.any():
        pytest.skip("outside float32")
    found = of(array, compiled=compiled)
    exact = array.astype(np.float64)
    rough = 1e-6 if dtype is np.float32 else 1e-9
    if name != "subnormal":
        assert found.usage.entropy == pytest.approx(scipy.stats.entropy(exact.ravel()), rel=rough,
                                                    abs=rough)
        assert found.usage.effective == pytest.approx(math.exp(found.usage.entropy))
    assert found.usage.top90_share * exact.size == pytest.approx(top_count(exact), abs=1e-6)
    assert found.usage.low_share == (array < dtype(0.01 * exact.mean())).mean()
    assert found.total == pytest.approx(exact.sum(), rel=1e-12)
    assert found.unit_importance == pytest.approx(exact.sum(1), rel=1e-12)
    assert (found.count, found.dead) == (exact.size, False)
    assert found.histogram.counts.sum() == exact.size
    assert found.histogram.edges[-1] == pytest.approx(exact.max() / exact.sum())


@pytest.mark.usefixtures("_small_tiles")
@pytest.mark.parametrize("name", ["uniform", "half-normal", "heavy tail", "scaled units"])
def test_the_histogram_is_numpys(name, compiled):
    array = LAYERS[name]
    found = of(array, bins=20, compiled=compiled).histogram
    p = array / array.sum()
    counts, edges = np.histogram(p, bins=20, range=(0, p.max()))
    assert np.abs(found.counts - counts).sum() <= 2  # a value on an edge may round to either side
    np.testing.assert_allclose(found.edges, edges)


@pytest.mark.parametrize("name", LAYERS)
def test_a_column_first_layer_is_the_same(name, monkeypatch, compiled):
    array = LAYERS[name]
    whole = torch.from_numpy(np.asfortranarray(array))
    expected = of(array)
    monkeypatch.setattr(statistics, "TILE", 512)
    monkeypatch.setattr(statistics, "WHOLE_UP_TO", 0)
    found = summarize(lambda r, c: whole[r, c], whole.shape, by_column=True, compiled=compiled)
    assert found.usage.entropy == pytest.approx(expected.usage.entropy, rel=1e-12, abs=1e-12)
    assert found.usage.top90_share == expected.usage.top90_share
    assert found.unit_importance == pytest.approx(array.sum(1), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["uniform", "heavy tail", "half zeros", "few values", "all equal"])
def test_the_passes_of_a_gpu_find_the_same(name, dtype, monkeypatch):
    """What is torch's own off a CPU, here forced by hand."""
    whole = torch.from_numpy(LAYERS[name]).to(dtype)
    expected = of(whole.numpy())
    monkeypatch.setattr(statistics, "TILE", 1000)
    monkeypatch.setattr(statistics, "WHOLE_UP_TO", 0)
    monkeypatch.setattr(statistics, "_on_cpu", lambda values: False)
    found = summarize(lambda r, c: whole[r, c], whole.shape, compiled=False)
    assert found.usage.top90_share == expected.usage.top90_share
    assert found.usage.low_share == expected.usage.low_share
    assert np.abs(found.histogram.counts - expected.histogram.counts).sum() <= 2
    assert found.usage.entropy == pytest.approx(expected.usage.entropy, rel=1e-6)


@pytest.mark.parametrize("kind", ["half-normal", "heavy tail", "units", "equal", "two values",
                                  "sorted", "zeros"])
def test_a_large_layer_is_exact(kind, compiled):
    """Two million weights: the border is found by window, not by sorting."""
    shape = (1000, 2000)
    array = {
        "half-normal": lambda r: np.abs(r.standard_normal(shape)),
        "heavy tail": lambda r: r.pareto(1.05, shape),
        "units": lambda r: r.random(shape) * np.exp(2 * r.standard_normal((shape[0], 1))),
        "equal": lambda r: np.full(shape, 0.3),
        "two values": lambda r: np.where(r.random(shape) < 0.3, 1.0, 0.001),
        "sorted": lambda r: np.sort(r.random(shape).ravel()).reshape(shape),
        "zeros": lambda r: np.where(r.random(shape) < 0.95, 0.0, r.random(shape)),
    }[kind](drawn(11)).astype(np.float32)
    found = of(array, compiled=compiled)
    assert round(found.usage.top90_share * array.size) == top_count(array)
    assert found.usage.entropy == pytest.approx(
        scipy.stats.entropy(array.ravel().astype(np.float64)), rel=1e-8, abs=1e-7)


def test_a_layer_is_read_tile_by_tile(compiled):
    """No tile is larger than 131,072 numbers, and two passes are enough."""
    generator = torch.Generator().manual_seed(12)
    whole = torch.rand(3000, 1500, generator=generator)
    sizes = []

    def part(rows: slice, columns: slice) -> torch.Tensor:
        tile = whole[rows, columns]
        sizes.append(tile.numel())
        return tile * 2

    summarize(part, (3000, 1500), compiled=compiled)
    assert max(sizes) <= 2**17
    assert sum(sizes) <= 2.1 * whole.numel()


def test_a_row_of_any_length_is_cut():
    sizes = []

    def part(rows: slice, columns: slice) -> torch.Tensor:
        tile = torch.ones(1, 2 * 10**6)[rows, columns]
        sizes.append(tile.numel())
        return tile

    assert summarize(part, (1, 2 * 10**6)).usage.effective == pytest.approx(2 * 10**6)
    assert max(sizes) <= 2**17


def test_all_zero_is_dead():
    found = of(np.zeros((3, 4)))
    assert found.dead
    assert (found.usage.entropy, found.usage.effective, found.usage.top90_share) == (0, 0, 0)
    assert found.histogram.counts.tolist()[0] == 12


def test_an_absolute_low_cut():
    assert of(np.array([[0.005, 0.02, 0.5, 0.01]]), low=0.01).usage.low_share == 0.25


@pytest.mark.parametrize(("values", "message"), [
    ([[1.0, math.nan]], "finite"),
    ([[math.inf, 1.0]], "finite"),
    ([[1e308, 1e308]], "finite sum"),
    ([[1.0, -0.5]], "at least 0"),
    ([[]], "at least one weight"),
])
def test_what_is_no_importance_is_refused(values, message, compiled):
    with pytest.raises(ValueError, match=f"importance: expected .*{message}"):
        of(np.array(values), compiled=compiled)


def test_numba_is_used_for_large_layers_alone(monkeypatch):
    pytest.importorskip("numba")
    loops, real = [], statistics._compiled
    monkeypatch.setattr(statistics, "_compiled", lambda loop: loops.append(loop) or real(loop))
    of(np.ones((1024, 1024), np.float32))
    assert not loops
    of(np.ones((1024, 1025), np.float32))
    assert loops
    loops.clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert of(np.ones((1024, 1025), np.float32)).usage.top90_share == pytest.approx(0.9)
    assert not loops
    with pytest.raises(ValueError, match="compiled: expected numba to be installed"):
        of(np.ones((1, 1)), compiled=True)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("peak", [1e1, 1e4, 1e8])
def test_one_weight_that_holds_nearly_all(peak, scale, compiled):
    """The entropy is small, and as exact to itself as any other."""
    whole = torch.rand(40, 30, generator=torch.Generator().manual_seed(1)) * scale
    whole[3, 4] = peak * whole.sum()
    found = summarize(lambda a, b: whole[a, b], (40, 30), compiled=compiled)
    p = whole.double().flatten() / whole.double().sum()
    expected = -math.fsum(torch.special.xlogy(p, p).tolist())
    assert found.usage.entropy == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("large", [0, 1, 20, 3000])
def test_many_equal_importances_and_a_few_large_ones(dtype, compiled, large):
    whole = torch.full((1000, 1100), 0.01, dtype=dtype)
    whole.view(-1)[torch.randperm(whole.numel(), generator=torch.Generator().manual_seed(1))[
        :large]] = 1e4
    found = summarize(lambda a, b: whole[a, b], tuple(whole.shape), compiled=compiled)
    assert round(found.usage.top90_share * whole.numel()) == top_count(whole.numpy())


EDGES = {
    "mostly zeros": torch.where(torch.rand(300, 50, generator=torch.Generator().manual_seed(1))
                                < 0.95, 0.0, 2.5),
    "subnormal beside one": torch.tensor([[1e-42, 0.0, 1.0]]),
    "powers of two": torch.tensor([[2.0 ** power for power in range(-120, 120)]]),
    "around one": torch.tensor([[1 - 2 ** -24, 1.0, 1 + 2 ** -23, math.sqrt(0.5)]]),
    "largest": torch.tensor([[3.4e38, 1e38]]),
    "signs": torch.tensor([[-1.0, 1.0, -0.0]]),
}


@pytest.mark.usefixtures("_small_tiles")
@pytest.mark.parametrize("name", EDGES)
def test_edges_of_float32(name, compiled):
    part = WeightedImportance(EDGES[name], None)
    found = summarize(part, tuple(part.weight.shape), low=0.01, compiled=compiled)
    whole = EDGES[name].abs().double().numpy()
    assert found.usage.entropy == pytest.approx(scipy.stats.entropy(whole.ravel()), rel=2e-7,
                                                abs=2e-7)
    assert round(found.usage.top90_share * whole.size) == top_count(whole)
    assert round(found.usage.low_share * whole.size) == (whole < np.float32(0.01)).sum()


@pytest.mark.usefixtures("_small_tiles")
def test_a_zero_may_be_negative(compiled):
    whole = torch.tensor([[-0.0, 1.0, 2.0, -0.0]])
    found = summarize(lambda a, b: whole[a, b], (1, 4), compiled=compiled)
    assert (found.usage.top90_share, found.usage.low_share) == (0.5, 0.5)
    assert found.histogram.counts.sum() == 4


@pytest.mark.usefixtures("_small_tiles")
@pytest.mark.parametrize("bins", [1, 50, 255, 256, 300])
def test_the_bins_of_float32_are_those_of_counting_by_hand(bins, compiled):
    array = drawn(13).random((50, 41)).astype(np.float32)
    counts = of(array, bins=bins, compiled=compiled).histogram.counts
    expected = np.histogram(array, bins=bins, range=(0, array.max()))[0]
    assert counts.sum() == array.size
    assert np.abs(counts - expected).sum() <= 2


@pytest.mark.usefixtures("_small_tiles")
def test_the_largest_may_be_subnormal(compiled):
    assert of(np.array([[1e-310, 0.0]]), compiled=compiled).histogram.counts[-1] == 1


def test_memory_is_bounded_also_where_all_are_equal(compiled):
    """Every number lies where the border is; the weights are 48 MB."""
    weight = torch.full((3000, 4000), 0.5)
    summarize(WeightedImportance(weight[:300], None), (300, 4000), compiled=compiled)  # loads
    tracemalloc.start()
    try:
        found = summarize(WeightedImportance(weight, None), (3000, 4000), compiled=compiled)
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert held < 16 * 2**20
    assert found.usage.top90_share == pytest.approx(0.9)


@pytest.mark.parametrize("scale", [1e-16, 1e-20, 1e-26])
def test_products_too_faint_for_float32(scale, compiled, monkeypatch):
    """Subnormal, or zero in float32: in float64 they have all of their digits."""
    monkeypatch.setattr(statistics, "WHOLE_UP_TO", 0)
    generator = torch.Generator().manual_seed(0)
    faint = WeightedImportance(torch.randn(60, 70, generator=generator) * scale,
                               torch.randn(60, 1, generator=generator) * scale)
    exact = np.abs(faint.weight.double().numpy() * faint.factor.double().numpy())
    found = summarize(faint, (60, 70), compiled=compiled)
    assert found.usage.entropy == pytest.approx(scipy.stats.entropy(exact.ravel()), rel=1e-6)
    assert round(found.usage.top90_share * exact.size) == top_count(exact)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_large_layer_is_not_copied(criterion):
    generator = torch.Generator().manual_seed(3)

    def drawn_tensor(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    weight = drawn_tensor(1100, 1000).float()
    layer = LayerStatistics(weight, mean_output=drawn_tensor(1100),
                            mean_input=drawn_tensor(1, 1000).abs(),
                            input_norm=drawn_tensor(1, 1000).abs(),
                            gradient=drawn_tensor(1100, 1000).float())
    part = layer.importance(CRITERIA[criterion])
    assert isinstance(part, WeightedImportance)
    assert part.weight.data_ptr() == weight.data_ptr()
    if criterion == "taylor":
        assert part.factor.data_ptr() == layer.gradient.data_ptr()
    whole = part.exact(slice(None), slice(None)).numpy()
    found = summarize(part, layer.shape)
    assert found.usage.entropy == pytest.approx(scipy.stats.entropy(whole.ravel()), rel=1e-7)
    np.testing.assert_allclose(found.unit_importance, whole.sum(1), rtol=1e-6)


# The figures of an array at once


ARRAYS = {
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


@pytest.mark.parametrize("name", ARRAYS)
def test_entropy_is_scipys(name):
    reference = scipy.stats.entropy(ARRAYS[name].ravel())
    assert entropy_nats(torch.tensor(ARRAYS[name])) == pytest.approx(reference, abs=1e-12)


@pytest.mark.parametrize("name", ARRAYS)
def test_effective_weights_are_the_perplexity(name):
    p = ARRAYS[name].ravel() / ARRAYS[name].sum()
    reference = np.prod(p[p > 0] ** -p[p > 0])
    assert effective_count(torch.tensor(ARRAYS[name])) == pytest.approx(reference, rel=1e-12)


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
    values = torch.tensor(ARRAYS["heavy tail"])
    turned = values.flip(0) * factor
    assert entropy_nats(turned) == pytest.approx(entropy_nats(values), abs=1e-12)
    assert top_share(turned) == top_share(values)


def test_all_zero_has_no_effective_weights():
    zeros = torch.zeros(3, 4)
    assert entropy_nats(zeros) == 0.0
    assert effective_count(zeros) == 0.0
    assert top_share(zeros) == 0.0
    assert low_share(zeros, below=0.01) == 1.0


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("coverage", [0.5, 0.9, 1.0])
def test_top_share_is_the_brute_force_count(name, coverage):
    values = ARRAYS[name].ravel()
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


FUNCTIONS = [entropy_nats, effective_count, top_share,
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
def test_an_array_that_is_no_importance_is_refused(function, values, message):
    with pytest.raises(ValueError, match=f"importance: expected .*{message}"):
        function(torch.tensor(values, dtype=torch.float64))
