"""The streaming summary against scipy and sorting; its passes by NumPy, numba and torch alike."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from wua_mlflow.usage import statistics
from wua_mlflow.usage.criteria import WeightedImportance
from wua_mlflow.usage.statistics import (
    NumpyKernels,
    ThinnedValues,
    TorchKernels,
    kernels_for,
    summarize,
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


@pytest.fixture(params=["sorted whole", "by window"])
def _small_tiles(request, monkeypatch):
    """Tiles of 512 numbers; and, by window, what a layer of more than a million goes through."""
    monkeypatch.setattr(statistics, "_TILE", 512)
    if request.param == "by window":
        monkeypatch.setattr(statistics, "_SIMPLY_SORTED", 0)
        monkeypatch.setattr(statistics, "_SORTED_AT_ONCE", 16)
        monkeypatch.setattr(statistics, "_BINS", 32)
        monkeypatch.setattr(statistics, "_MOST_KEPT", 100)


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
def test_a_column_first_layer_is_the_same(name, monkeypatch):
    monkeypatch.setattr(statistics, "_TILE", 512)
    array = LAYERS[name]
    whole = torch.from_numpy(np.asfortranarray(array))
    found = summarize(lambda r, c: whole[r, c], whole.shape, by_column=True)
    assert found.usage.entropy == pytest.approx(of(array).usage.entropy, rel=1e-12, abs=1e-12)
    assert found.usage.top90_share == of(array).usage.top90_share
    assert found.unit_importance == pytest.approx(array.sum(1), rel=1e-12)


@pytest.mark.parametrize("name", ["uniform", "heavy tail", "half zeros", "few values", "all equal"])
@pytest.mark.parametrize("window", [(0.0, math.inf), (0.1, 0.6), (0.5, 0.5)])
def test_the_gpus_passes_find_what_the_cpus_find(name, window, monkeypatch):
    assert_torch_finds_the_same(name, window, monkeypatch, TorchKernels())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_the_gpus_passes_compiled(monkeypatch):
    kernels = TorchKernels(compiled=True)
    assert_torch_finds_the_same("heavy tail", (0.1, 0.6), monkeypatch, kernels)


def assert_torch_finds_the_same(name, window, monkeypatch, kernels):
    monkeypatch.setattr(statistics, "_TILE", 1000)
    whole = torch.from_numpy(LAYERS[name])
    tiles = statistics._Tiles(lambda r, c: whole[r, c], whole.shape, whole, by_column=False)
    one = kernels.survey(tiles, len(whole), *window)
    other = NumpyKernels().survey(tiles, len(whole), *window)
    for field in ("total", "weighted", "by_row", "least", "largest", "above", "above_count",
                  "inside", "inside_count", "inside_least", "inside_most"):
        assert getattr(one, field) == pytest.approx(getattr(other, field), rel=1e-12), field
    assert sorted(one.kept) == sorted(other.kept)
    counts, below = kernels.spread(tiles, 10, one.largest, 0.3)
    same, as_many = NumpyKernels().spread(tiles, 10, one.largest, 0.3)
    assert (counts.tolist(), below) == (same.tolist(), as_many)


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


def test_a_layer_is_read_tile_by_tile():
    """No tile is larger than 65,536 numbers, and a few passes are enough."""
    generator = torch.Generator().manual_seed(12)
    whole = torch.rand(3000, 1500, generator=generator)
    sizes = []

    def part(rows: slice, columns: slice) -> torch.Tensor:
        tile = whole[rows, columns]
        sizes.append(tile.numel())
        return tile * 2

    summarize(part, (3000, 1500), compiled=False)
    assert max(sizes) <= 2**16
    assert sum(sizes) <= 3.1 * whole.numel()


def test_a_row_of_any_length_is_cut():
    sizes = []

    def part(rows: slice, columns: slice) -> torch.Tensor:
        tile = torch.ones(1, 10**6)[rows, columns]
        sizes.append(tile.numel())
        return tile

    assert summarize(part, (1, 10**6)).usage.effective == pytest.approx(10**6)
    assert max(sizes) <= 2**16


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
    cpu = torch.device("cpu")
    assert type(kernels_for(cpu, 2**20 - 1, None)).__name__ == "NumpyKernels"
    assert type(kernels_for(cpu, 2**20, None)).__name__ == "CompiledKernels"
    monkeypatch.setattr(statistics.importlib.util, "find_spec", lambda name: None)
    assert type(kernels_for(cpu, 2**20, None)).__name__ == "NumpyKernels"
    with pytest.raises(ValueError, match="compiled: expected numba to be installed"):
        kernels_for(cpu, 1, True)


def test_too_many_are_thinned_evenly(monkeypatch):
    monkeypatch.setattr(statistics, "_MOST_KEPT", 50)
    kept = ThinnedValues()
    for start in range(0, 1000, 7):
        kept.add(np.arange(start, min(start + 7, 1000), dtype=np.float32))
    steps = np.diff(kept.values())
    assert len(kept.values()) <= 50
    assert len(set(steps)) == 1


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
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("large", [0, 1, 20, 3000])
def test_many_equal_importances_and_a_few_large_ones(dtype, compiled, large):
    """What a sample sees is all alike: the border of the top 90% is looked for by halves."""
    whole = torch.full((1000, 1100), 0.01, dtype=dtype)
    whole.view(-1)[torch.randperm(whole.numel(), generator=torch.Generator().manual_seed(1))[
        :large]] = 1e4
    found = summarize(lambda a, b: whole[a, b], tuple(whole.shape), compiled=compiled)
    descending = np.sort(whole.double().numpy().ravel())[::-1]
    border = np.searchsorted(descending.cumsum(), 0.9 * descending.sum() * (1 - 1e-12)) + 1
    assert round(found.usage.top90_share * whole.numel()) == border
    fused = summarize(WeightedImportance(whole, None), tuple(whole.shape), compiled=compiled)
    assert fused.usage.top90_share == found.usage.top90_share
