"""What a layer's criteria are given, tile by tile, and what one pass must gather for them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.networks import Layers, rows
from wua_mlflow.usage.analyze import analyze, layer_importance
from wua_mlflow.usage.criteria import CRITERIA, output, taylor
from wua_mlflow.usage.layer_statistics import LayerStatistics, layer_statistics
from wua_mlflow.usage.run import PassStatistics
from wua_mlflow.usage.tracing.layer import TracedLayer
from wua_mlflow.usage.tracing.parameters import ParameterIndex

UNITS, GROUPS, EACH = 6, 3, 8


def evidence(groups: int = GROUPS) -> LayerStatistics:
    """Of a grouped convolution with kernels of shape (2, 2, 2)."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return LayerStatistics(drawn(UNITS, 2, 2, 2).float(), groups, drawn(UNITS),
                    drawn(groups, EACH).abs(), drawn(groups, EACH).abs(), drawn(UNITS, 2, 2, 2),
                    drawn(UNITS), drawn(UNITS))


def whole_by_hand(layer: LayerStatistics, name: str) -> Tensor:
    """All importances at once, each group's statistics written out for each of its units."""
    weight, units_a_group = layer.weight.double().flatten(1), UNITS // layer.groups
    return weight.abs() * {
        "output": layer.mean_output.abs()[:, None],
        "input": layer.mean_input.repeat_interleave(units_a_group, 0),
        "wanda": layer.input_norm.repeat_interleave(units_a_group, 0), "magnitude": torch.ones(1),
        "taylor": layer.gradient.flatten(1).abs()}[name]


@pytest.mark.parametrize("groups", [1, GROUPS, UNITS])
@pytest.mark.parametrize("name", CRITERIA)
def test_a_tile_is_that_part_of_the_whole(name, groups):
    statistics, chosen = evidence(groups), torch.tensor([0, 3, 5])
    sample = statistics.sampled(chosen)
    assert (statistics.shape, sample.shape) == ((UNITS, EACH), (3, EACH))
    whole, everything = whole_by_hand(statistics, name), slice(None)
    for source, expected in ((statistics, whole), (sample, whole[chosen])):
        part = source.importance(CRITERIA[name])
        for tile in ((everything, everything), (slice(1, 3), everything), (everything, slice(3, 7)),
                     (slice(2, 6), slice(0, 1)), (slice(2, 99), slice(2, 99)),
                     (slice(2, 2), everything)):
            assert part(*tile).dtype == torch.float64
            torch.testing.assert_close(part(*tile), expected[tile], rtol=1e-14, atol=0)


@pytest.mark.parametrize(("weights", "dtype", "expected"), [
    (2**20, torch.float32, torch.float64), (2**20 + 4, torch.float32, torch.float32),
    (2**20 + 4, torch.bfloat16, torch.float32), (2**20 + 4, torch.float64, torch.float64),
    (8, torch.float16, torch.float64)])
def test_importances_are_float64_up_to_a_million_weights(weights, dtype, expected):
    layer = LayerStatistics(torch.ones(4, weights // 4, dtype=dtype), mean_output=torch.ones(4))
    assert layer.importance(output)(slice(0, 1), slice(0, 5)).dtype == expected


def test_a_function_of_ones_own_is_asked_once_a_layer():
    calls = []

    def own(weight: Tensor, input_norm: Tensor) -> Tensor:
        calls.append((weight.shape, input_norm.shape, weight.dtype))
        return weight.abs() / weight.abs().max() * input_norm

    layer = evidence()
    part = layer.importance(own)
    tiles = [part(slice(0, 2), slice(None)), part(slice(2, 6), slice(None))]
    assert calls == [((UNITS, EACH), (UNITS, EACH), torch.float64)]
    expected = whole_by_hand(layer, "wanda") / layer.weight.double().abs().max()
    torch.testing.assert_close(torch.cat(tiles), expected, rtol=1e-14, atol=0)


def test_only_taylor_has_a_measure_of_units_of_its_own():
    layer = evidence()
    for name, criterion in CRITERIA.items():
        assert (layer.signed_units(criterion) is None) == (name != "taylor")
    product = (layer.weight.double() * layer.gradient).flatten(1).sum(1)
    expected = (product + layer.bias * layer.bias_gradient).abs()
    torch.testing.assert_close(layer.signed_units(taylor).abs(), expected, rtol=1e-12, atol=1e-15)


def test_the_units_measure_of_a_large_layer_in_pieces():
    weight, gradient = torch.randn(2, 3, 2**19, generator=torch.Generator().manual_seed(1))
    importance = LayerStatistics(weight, gradient=gradient).signed_units(taylor).abs()
    expected = (weight.double() * gradient.double()).sum(1).abs()
    torch.testing.assert_close(importance, expected, rtol=1e-12, atol=0)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_a_criterion_that_makes_no_sense_for_a_layer_is_refused_by_name():
    model = Layers(lambda model, x: model.head(model.rnn(x)[0][:, -1]), head=nn.Linear(2, 2),
                   rnn=nn.LSTM(3, 5, batch_first=True, proj_size=2))
    x, by_projection = rows(6, 4, 3), "hidden by a projection: no mean output"
    for name, criterion, reason in (
            ("rnn.weight_ih_l0", "output", by_projection),
            ("rnn.weight_hh_l0", "output", by_projection),
            ("rnn.weight_hr_l0", "wanda", "hidden within the cell")):
        with pytest.raises(ValueError, match=f"^layer {name}: expected one that can be analysed, "
                                             f"but got: .* {reason}$"):
            layer_importance(model, x, [name], criterion)
    with pytest.raises(ValueError, match="^model: expected a layer .* hidden within the cell"):
        analyze(model, x, criterion="wanda", layers=["rnn.weight_hr_l0"])


class Largest(TorchDispatchMode):
    """The most numbers that anything but a view read or made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.numbers = max([self.numbers, *(value.numel() for value in tree_leaves(
                (args, kwargs, result)) if isinstance(value, Tensor))])
        return result


def traced(model: nn.Module, kind: str = "linear") -> tuple[TracedLayer, PassStatistics]:
    """A layer as after a pass that gathered nothing."""
    layer = TracedLayer("a", "Linear", "", kind, len(model.weight),
                        view=ParameterIndex(model).find(model.weight))
    return layer, PassStatistics({"a": layer}, (), {}, 1, {"weight": model.weight}, None, None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["linear", "embedding", "transposed"])
@pytest.mark.parametrize("value", [6e4, math.nan, math.inf])
def test_a_narrow_weight_is_looked_at_in_blocks(dtype, kind, value):
    weight = torch.full((1100, 1000), 0.5, dtype=dtype)
    weight[1099, 999] = value
    weight = weight.T.contiguous().T if kind == "transposed" else weight
    model = nn.Embedding(1100, 1000) if kind == "embedding" else nn.Linear(1000, 1100)
    model.weight = nn.Parameter(weight)
    with Largest() as largest:
        statistics = layer_statistics(*traced(model, kind if kind == "embedding" else "linear"))
        assert statistics.weight.data_ptr() == model.weight.data_ptr()
        if math.isfinite(value):
            statistics.refuse_broken()
        else:
            with pytest.raises(ValueError, match="^layer a: expected a finite weight, but got NaN "
                                                 "or infinity$"):
                statistics.refuse_broken()
    assert 2**19 <= largest.numbers <= 2**20


def test_finite_weights_with_an_infinite_sum():
    model = nn.Linear(3, 4)
    nn.init.constant_(model.weight, 3e38)
    layer_statistics(*traced(model)).refuse_broken()
