"""The fused passes against float64 by hand, against the tile-by-tile ones, and by any threads."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from wua_mlflow.usage import statistics
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.usage.criteria import CRITERIA, WeightedImportance
from wua_mlflow.usage.layer_statistics import LayerStatistics
from wua_mlflow.usage.statistics import Summary, summarize

fused = pytest.importorskip("wua_mlflow.usage.statistics", exc_type=ImportError)

SHAPES = [(1, 1), (1, 70), (3000, 1), (37, 129), (6, 10_001), (64, 4096)]
FACTORS = {"none": None, "all": (1, 1), "row": (0, 1), "column": (1, 0), "weight": (0, 0)}
"""0 for as many as the weight has."""


def product(shape: tuple[int, int], factor: str, seed: int = 0) -> WeightedImportance:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    sizes = FACTORS[factor]
    if sizes is None:
        return WeightedImportance(weight, None)
    given = [own or whole for own, whole in zip(sizes, shape, strict=True)]
    return WeightedImportance(weight, torch.randn(given, generator=generator))


def values(part: WeightedImportance) -> np.ndarray:
    """In float64 of the float32 products."""
    return part(slice(None), slice(None)).double().numpy()


def top_count(whole: np.ndarray) -> int:
    held = np.sort(whole.ravel())[::-1].cumsum()
    return int(np.searchsorted(held, 0.9 * held[-1] * (1 - 1e-12))) + 1


def check(found: Summary, whole: np.ndarray, low: float) -> None:
    assert found.total == pytest.approx(whole.sum(), rel=1e-12)
    assert found.usage.entropy == pytest.approx(scipy.stats.entropy(whole.ravel()), rel=2e-7,
                                                abs=2e-7)
    assert round(found.usage.top90_share * whole.size) == top_count(whole)
    assert round(found.usage.low_share * whole.size) == (whole < np.float32(low)).sum()
    np.testing.assert_allclose(found.unit_importance, whole.sum(1), rtol=1e-12)
    assert found.histogram.counts.sum() == whole.size


@pytest.fixture(params=["sorted whole", "by window"])
def _window(request, monkeypatch):
    if request.param == "by window":
        monkeypatch.setattr(statistics, "_SIMPLY_SORTED", 0)


@pytest.mark.usefixtures("_window")
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_figure_is_that_of_the_whole_array(shape, factor, monkeypatch):
    """Blocks of few rows, pieces that end within a row, and numbers that are no multiple of 8."""
    monkeypatch.setattr(fused, "_BLOCK", 5000)
    part = product(shape, factor)
    check(summarize(part, shape, low=0.3, compiled=True), values(part), 0.3)


EDGES = {
    "zeros": torch.zeros(30, 50),
    "mostly zeros": torch.where(torch.rand(300, 50, generator=torch.Generator().manual_seed(1))
                                < 0.95, 0.0, 2.5),
    "equal": torch.full((40, 50), 0.1),
    "one of many": torch.eye(1, 500),
    "subnormal beside one": torch.tensor([[1e-42, 0.0, 1.0]]),
    "powers of two": torch.tensor([[2.0 ** power for power in range(-120, 120)]]),
    "around one": torch.tensor([[1 - 2 ** -24, 1.0, 1 + 2 ** -23, math.sqrt(0.5)]]),
    "largest": torch.tensor([[3.4e38, 1e38]]),
    "signs": torch.tensor([[-1.0, 1.0, -0.0]]),
}


@pytest.mark.usefixtures("_window")
@pytest.mark.parametrize("name", EDGES)
def test_edges(name):
    part = WeightedImportance(EDGES[name], None)
    found, whole = summarize(part, tuple(part.weight.shape), low=0.01, compiled=True), values(part)
    if not whole.any():
        assert found.dead and found.usage.top90_share == found.usage.entropy == 0
    else:
        check(found, whole, 0.01)


def test_the_same_figures_bit_by_bit_by_any_number_of_threads(monkeypatch):
    monkeypatch.setattr(fused, "_BLOCK", 3000)
    monkeypatch.setattr(statistics, "_SIMPLY_SORTED", 0)
    part, before, found = product((500, 301), "weight"), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(summarize(part, (500, 301), compiled=True))
    finally:
        torch.set_num_threads(before)
    for one in found[1:]:
        assert one.usage == found[0].usage and one.total == found[0].total
        assert one.histogram.counts.tolist() == found[0].histogram.counts.tolist()
        assert one.unit_importance.tolist() == found[0].unit_importance.tolist()


def test_memory_is_bounded_also_where_everything_lies_within_the_window():
    """All equal: what is found within is as much as the weights, which are 128 MB."""
    weight = torch.full((8000, 4000), 0.5)
    summarize(WeightedImportance(weight[:300], None), (300, 4000), compiled=True)  # loads the code
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    tracemalloc.start()
    try:
        found = summarize(WeightedImportance(weight, None), (8000, 4000), compiled=True)
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        torch.set_num_threads(before)
    assert held < 64 * 2**20
    assert found.usage.top90_share == pytest.approx(0.9)


def test_a_row_too_wide_to_be_one_block_goes_by_tiles(monkeypatch):
    monkeypatch.setattr(statistics, "_WIDEST", 100)
    cpu = torch.device("cpu")
    for width, name in ((100, "FusedKernels"), (101, "CompiledKernels")):
        part = WeightedImportance(torch.ones(3, width), None)
        assert type(statistics.kernels_for(cpu, 3 * width, True, part)).__name__ == name


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 3.4e38])
def test_what_is_not_finite_is_refused(wrong):
    weight = torch.ones(20, 30)
    weight[7, 3] = wrong
    with pytest.raises(ValueError, match="importance: expected finite numbers"):
        summarize(WeightedImportance(weight, torch.full((20, 1), 1e5)), (20, 30), compiled=True)


@pytest.mark.parametrize(("weight", "factor"), [
    (torch.ones(4, 5, dtype=torch.float64), None), (torch.ones(5, 4).T, None),
    (torch.ones(4, 5, dtype=torch.bfloat16), None), (torch.ones(4, 5), torch.ones(5, 4).T),
    (torch.ones(4, 5), torch.ones(4, 1, dtype=torch.float64)),
    (torch.ones(4, 5, device="meta"), None)])
def test_what_does_not_lie_plainly_is_left_to_the_tiles(weight, factor):
    assert not WeightedImportance(weight, factor).is_plain


def test_as_fine_as_the_bins_may_be():
    """Beyond 256 bins, or where the scale overflows, NumPy counts."""
    part = product((50, 40), "row")
    for bins in (50, 256, 300):
        counts = summarize(part, (50, 40), bins=bins, compiled=True).histogram.counts
        assert counts.tolist() == summarize(part, (50, 40), bins=bins,
                                            compiled=False).histogram.counts.tolist()
    tiny = WeightedImportance(torch.tensor([[1e-40, 0.0]]), None)
    assert summarize(tiny, (1, 2), compiled=True).histogram.counts.tolist()[-1] == 1


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_large_layer_goes_this_way_under_every_criterion(criterion, monkeypatch):
    """Its figures are those of the tiles, and no copy of the weight's size is made."""
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    weight = drawn(1100, 1000).float()
    evidence = LayerStatistics(weight, mean_output=drawn(1100), mean_input=drawn(1, 1000).abs(),
                        input_norm=drawn(1, 1000).abs(), gradient=drawn(1100, 1000).float())
    part = evidence.importance(CRITERIA[criterion])
    assert isinstance(part, WeightedImportance) and part.is_plain
    assert part.weight.data_ptr() == weight.data_ptr()
    if criterion == "taylor":
        assert part.factor.data_ptr() == evidence.gradient.data_ptr()
    made = []
    real = fused.FusedKernels
    monkeypatch.setattr(fused, "FusedKernels", lambda one: made.append(one) or real(one))
    one = summarize(part, evidence.shape)
    other = summarize(lambda rows, columns: part(rows, columns), evidence.shape, compiled=False)
    assert made == [part]
    assert one.usage.entropy == pytest.approx(other.usage.entropy, rel=1e-8)
    assert one.usage.top90_share == other.usage.top90_share
    assert one.usage.low_share == other.usage.low_share
    assert one.histogram.counts.tolist() == other.histogram.counts.tolist()
    np.testing.assert_allclose(one.unit_importance, other.unit_importance, rtol=1e-12)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("scale", [1e-16, 1e-20, 1e-26])
def test_products_too_faint_for_float32(scale, compiled):
    """Subnormal, or zero in float32: in float64 they have all of their digits."""
    part = product((60, 70), "row")
    faint = WeightedImportance(part.weight * scale, part.factor * scale)
    exact = faint.weight.double().numpy() * faint.factor.double().numpy()
    found = summarize(faint, (60, 70), compiled=compiled)
    assert found.usage.entropy == pytest.approx(scipy.stats.entropy(np.abs(exact).ravel()),
                                                rel=1e-6)
    assert round(found.usage.top90_share * exact.size) == top_count(np.abs(exact))


def test_groups_and_small_layers_stay_in_float64_tiles():
    assert not isinstance(
        LayerStatistics(torch.randn(8, 9)).importance(CRITERIA["magnitude"]), WeightedImportance
    )
    grouped = LayerStatistics(torch.randn(1200, 1000), groups=2, mean_input=torch.rand(2, 1000))
    assert not isinstance(grouped.importance(CRITERIA["input"]), WeightedImportance)


def test_an_analysis_of_a_large_layer(monkeypatch):
    made = []
    real = fused.FusedKernels
    monkeypatch.setattr(fused, "FusedKernels", lambda one: made.append(one) or real(one))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1024, 1100), nn.ReLU(), nn.Linear(1100, 2))
    inputs = torch.randn(20, 1024)
    found = analyze(model, inputs, criterion="wanda").layers["0"]
    assert len(made) == 1
    whole = (model[0].weight.detach().double() * inputs.double().norm(dim=0)).abs().numpy()
    assert found.entropy == pytest.approx(scipy.stats.entropy(whole.ravel()), rel=1e-7)
    np.testing.assert_allclose(found.unit_importance, whole.sum(1), rtol=1e-6)
