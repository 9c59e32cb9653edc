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
from wua_mlflow.usage.statistics import entropy_nats, low_share, summarize, top_share

drawn = np.random.default_rng
LAYERS = {
    "uniform": drawn(0).random((40, 60)),
    "half-normal": np.abs(drawn(1).standard_normal((100, 40))),
    "heavy tail": drawn(2).pareto(1.1, (150, 30)),
    "half zeros": np.where(drawn(3).random((40, 50)) < 0.5, 0.0, 2.5),
    "one weight": np.array([[3.5]]), "all equal": np.full((40, 50), 0.1),
    "one of many": np.eye(1, 500), "tiny": drawn(4).random((30, 30)) * 1e-300,
    "large": drawn(5).random((30, 30)) * 1e300, "largest of float32": np.array([[3.4e38, 1e38]]),
    "subnormal beside one": np.array([[1e-42, 0.0, 1.0]]),
    "powers of two": np.array([[2.0 ** power for power in range(-120, 120)]]),
    "around one": np.array([[1 - 2 ** -24, 1.0, 1 + 2 ** -23, math.sqrt(0.5)]]),
    "one column": drawn(6).random((1500, 1)),
    "scaled units": drawn(7).random((200, 20)) * np.exp(3 * drawn(8).standard_normal((200, 1))),
    "sorted": np.sort(drawn(9).random(2500)).reshape(50, 50),
    "few values": drawn(10).integers(0, 4, (50, 60)).astype(float)}
OUTSIDE_FLOAT32 = ("tiny", "large")


def of(array: np.ndarray | torch.Tensor, **options):
    whole = torch.as_tensor(array)
    return summarize(lambda rows, columns: whole[rows, columns], tuple(whole.shape), **options)


def top_count(values: np.ndarray) -> int:
    cumulative = np.sort(values.ravel().astype(np.float64))[::-1].cumsum()
    return int(np.searchsorted(cumulative, 0.9 * cumulative[-1] * (1 - 1e-12))) + 1


@pytest.fixture(params=[False, True], ids=["numpy", "numba"])
def compiled(request):
    if request.param:
        pytest.importorskip("numba")
    return request.param


@pytest.fixture(params=["whole", "numpy", "numba", "gpu"])
def kernel(request, monkeypatch):
    """At once, or by tiles of 512 numbers, as a layer of more than a million weights."""
    if request.param != "whole":
        monkeypatch.setattr(statistics, "TILE", 512)
        monkeypatch.setattr(statistics, "WHOLE_UP_TO", 0)
    if request.param == "numba":
        pytest.importorskip("numba")
    if request.param == "gpu":  # what is torch's own off a CPU
        monkeypatch.setattr(statistics, "_on_cpu", lambda values: False)
    return {"compiled": request.param == "numba"}


@pytest.mark.parametrize(("name", "dtype"), [
    (name, dtype) for name in LAYERS for dtype in (np.float64, np.float32)
    if dtype is np.float64 or name not in OUTSIDE_FLOAT32])
def test_every_figure_is_that_of_the_whole_array(name, dtype, kernel):
    array = LAYERS[name].astype(dtype)
    exact = array.astype(np.float64)
    rough = 1e-6 if dtype is np.float32 else 1e-9
    counts, _ = np.histogram(exact, bins=50, range=(0, exact.max()))
    for layout, by_column in ((array, False), (np.asfortranarray(array), True)):
        summary = of(layout, by_column=by_column, **kernel)
        assert summary.usage.entropy == pytest.approx(scipy.stats.entropy(exact.ravel()), rel=rough,
                                                      abs=rough)
        assert summary.usage.effective == pytest.approx(math.exp(summary.usage.entropy))
        assert round(summary.usage.top90_share * exact.size) == top_count(exact)
        assert summary.usage.low_share == (array < dtype(0.01 * exact.mean())).mean()
        assert summary.unit_importance == pytest.approx(exact.sum(1), rel=1e-12)
        assert (summary.usage.count, summary.dead) == (exact.size, False)
        assert summary.histogram.counts.sum() == exact.size
        # a value on an edge may round to either side
        assert np.abs(summary.histogram.counts - counts).sum() <= 2
        assert summary.histogram.edges[-1] == pytest.approx(exact.max() / exact.sum())


@pytest.mark.parametrize("kind", ["heavy tail", "units", "two values"])
def test_a_large_layer_is_exact(kind, compiled):
    """1.1 million weights: in tiles of the real size."""
    shape = (1100, 1000)
    array = {
        "heavy tail": lambda r: r.pareto(1.05, shape),
        "units": lambda r: r.random(shape) * np.exp(2 * r.standard_normal((shape[0], 1))),
        "two values": lambda r: np.where(r.random(shape) < 0.3, 1.0, 0.001),
    }[kind](drawn(11)).astype(np.float32)
    summary = of(array, compiled=compiled)
    assert round(summary.usage.top90_share * array.size) == top_count(array)
    assert summary.usage.entropy == pytest.approx(
        scipy.stats.entropy(array.ravel().astype(np.float64)), rel=1e-8, abs=1e-7)


def test_a_layer_is_read_tile_by_tile(compiled):
    """No tile is larger than 131,072 numbers, and two passes are enough."""
    whole = torch.rand(1100, 1000, generator=torch.Generator().manual_seed(12))
    sizes = []

    def part(rows: slice, columns: slice) -> torch.Tensor:
        tile = whole[rows, columns]
        sizes.append(tile.numel())
        return tile * 2

    summarize(part, (1100, 1000), compiled=compiled)
    assert max(sizes) <= 2**17 and sum(sizes) <= 2.1 * whole.numel()
    sizes.clear()
    whole = torch.ones(1, 1_100_000)  # a row of any length is cut
    assert summarize(part, (1, 1_100_000), compiled=compiled).usage.effective == \
        pytest.approx(1_100_000)
    assert max(sizes) <= 2**17


def test_all_zero_is_dead(kernel):
    summary = of(np.zeros((3, 4)), **kernel)
    assert summary.dead
    assert (summary.usage.entropy, summary.usage.effective, summary.usage.top90_share) == (0, 0, 0)
    assert summary.histogram.counts.tolist()[0] == 12


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_absolute_low_cut(dtype, kernel):
    """What equals the cut in the importances' own dtype is not below it."""
    array = np.array([[0.005, 0.02, 0.5, 0.01]], dtype)
    assert of(array, low=0.01, **kernel).usage.low_share == 0.25


@pytest.mark.parametrize(("values", "message"), [
    ([[1.0, math.nan]], "finite"), ([[math.inf, 1.0]], "finite"), ([[1e308, 1e308]], "finite sum"),
    ([[1.0, -0.5]], "at least 0")])
def test_what_is_no_importance_is_refused(values, message, kernel):
    with pytest.raises(ValueError, match=f"importance: expected .*{message}"):
        of(np.array(values), **kernel)


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
@pytest.mark.parametrize("peak", [1e1, 1e8])
def test_one_weight_that_holds_nearly_all(peak, scale, kernel):
    """The entropy is small, and as exact to itself as any other."""
    whole = torch.rand(40, 30, generator=torch.Generator().manual_seed(1)) * scale
    whole[3, 4] = peak * whole.sum()
    p = whole.double().flatten() / whole.double().sum()
    expected = -math.fsum(torch.special.xlogy(p, p).tolist())
    assert of(whole, **kernel).usage.entropy == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("large", [0, 1, 20, 1500])
def test_many_equal_importances_and_a_few_large_ones(dtype, kernel, large):
    whole = torch.full((60, 70), 0.01, dtype=dtype)
    whole.view(-1)[torch.randperm(whole.numel(), generator=torch.Generator().manual_seed(1))[
        :large]] = 1e4
    assert round(of(whole, **kernel).usage.top90_share * whole.numel()) == top_count(whole.numpy())


def test_a_zero_may_be_negative(kernel):
    summary = of(torch.tensor([[-0.0, 1.0, 2.0, -0.0]]), **kernel)
    assert (summary.usage.top90_share, summary.usage.low_share) == (0.5, 0.5)
    assert summary.histogram.counts.sum() == 4


@pytest.mark.parametrize("largest", [1e-310, 5e-324])
def test_the_largest_may_be_subnormal(largest, kernel):
    summary = of(np.array([[largest, 0.0]]), **kernel)
    assert (summary.histogram.counts[-1], summary.usage.top90_share) == (1, 0.5)


def test_memory_is_bounded_also_where_all_are_equal(compiled):
    """Every number lies where the border is; the weights are 18 MB."""
    weight = torch.full((1500, 3000), 0.5)
    summarize(WeightedImportance(weight[:400], None), (400, 3000), compiled=compiled)  # loads
    tracemalloc.start()
    try:
        summary = summarize(WeightedImportance(weight, None), (1500, 3000), compiled=compiled)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * 2**20
    assert summary.usage.top90_share == pytest.approx(0.9)


@pytest.mark.parametrize("scale", [1e-16, 1e-20, 1e-26])
def test_products_too_faint_for_float32(scale, compiled, monkeypatch):
    """Subnormal, or zero in float32: in float64 they have all of their digits."""
    monkeypatch.setattr(statistics, "WHOLE_UP_TO", 0)
    generator = torch.Generator().manual_seed(0)
    faint = WeightedImportance(torch.randn(60, 70, generator=generator) * scale,
                               torch.randn(60, 1, generator=generator) * scale)
    exact = np.abs(faint.weight.double().numpy() * faint.factor.double().numpy())
    summary = summarize(faint, (60, 70), compiled=compiled)
    assert summary.usage.entropy == pytest.approx(scipy.stats.entropy(exact.ravel()), rel=1e-6)
    assert round(summary.usage.top90_share * exact.size) == top_count(exact)


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
    assert isinstance(part, WeightedImportance) and part.weight.data_ptr() == weight.data_ptr()
    if criterion == "taylor":
        assert part.factor.data_ptr() == layer.gradient.data_ptr()
    whole = part.exact(slice(None), slice(None)).numpy()
    summary = summarize(part, layer.shape)
    assert summary.usage.entropy == pytest.approx(scipy.stats.entropy(whole.ravel()), rel=1e-7)
    np.testing.assert_allclose(summary.unit_importance, whole.sum(1), rtol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_the_figures_of_an_array(name):
    array = LAYERS[name]
    tensor, p = torch.tensor(array), array.ravel() / array.sum()
    assert entropy_nats(tensor) == pytest.approx(scipy.stats.entropy(p), abs=1e-12)
    perplexity = math.exp(np.log(p[p > 0] ** -p[p > 0]).sum())
    assert statistics.effective_count(tensor) == pytest.approx(perplexity, rel=1e-12)
    descending = np.cumsum(np.sort(array.ravel())[::-1].astype(np.longdouble))
    slack = 1 - np.longdouble(1e-12)
    for coverage in (0.5, 0.9, 1.0):
        count = int(np.argmax(descending >= np.longdouble(coverage) * descending[-1] * slack)) + 1
        assert top_share(tensor, coverage) == count / array.size


def test_float32_and_integers_are_taken_in_float64():
    values = np.random.default_rng(6).random(1000).astype(np.float32)
    reference = scipy.stats.entropy(values.astype(np.float64))
    assert entropy_nats(torch.from_numpy(values)) == pytest.approx(reference, abs=1e-13)
    assert entropy_nats(torch.tensor([1, 3])) == pytest.approx(scipy.stats.entropy([1, 3]))


def test_all_zero_has_no_effective_weights():
    assert [function(torch.zeros(3, 4)) for function in FUNCTIONS] == [0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(("values", "expected"), [
    ([0.1] * 10, Fraction(9, 10)), ([0.1] * 1000, Fraction(9, 10)),
    ([1 / 3] * 30, Fraction(27, 30)), ([0.0, 0.0, 5.0, 0.0], Fraction(1, 4)),
    ([9.0, 1.0], Fraction(1, 2)), ([8.999, 1.001], Fraction(1)),
    ([0.45, 0.45, 0.05, 0.05], Fraction(1, 2))])
def test_top_share_of_ties_by_hand(values, expected):
    assert top_share(torch.tensor(values, dtype=torch.float64)) == float(expected)


@pytest.mark.parametrize("coverage", [0.0, 1.01, math.nan])
def test_coverage_out_of_range(coverage):
    with pytest.raises(ValueError, match=r"coverage: expected a number in \(0, 1\], but got"):
        top_share(torch.ones(3), coverage)


def test_low_share_counts_what_lies_strictly_below():
    values = torch.tensor([0.0, 0.0099, 0.01, 0.0101, 5.0], dtype=torch.float64)
    assert low_share(values, below=0.01) == 2 / 5 and low_share(values, below=math.inf) == 1.0
    with pytest.raises(ValueError, match="below: expected a number, but got NaN"):
        low_share(values, below=math.nan)


FUNCTIONS = [entropy_nats, statistics.effective_count, top_share,
             lambda importance: low_share(importance, below=0.01)]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("values", "message"), [
    ([1.0, math.inf], "NaN or infinity"), ([math.inf, -math.inf], "NaN or infinity"),
    ([math.nan, 0.0], "NaN or infinity"), ([1.7e308, 1.7e308], "finite sum"),
    ([1.0, -1e-9], "negative"), ([], "at least one weight, but got none")])
def test_an_array_that_is_no_importance_is_refused(function, values, message):
    with pytest.raises(ValueError, match=f"importance: expected .*{message}"):
        function(torch.tensor(values, dtype=torch.float64))
