"""What a layer's criteria are given, tile by tile, and what one pass must gather for them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.networks import labels, mlp, rows
from wua_mlflow.usage.analyze import analyze, layer_importance
from wua_mlflow.usage.batches import Batches
from wua_mlflow.usage.criteria import CRITERIA, magnitude, output, taylor, wanda
from wua_mlflow.usage.layer_statistics import (
    LayerStatistics,
    layer_statistics,
    required_stats,
    resolve_criteria,
)
from wua_mlflow.usage.run import PassStatistics, run_pass
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


def whole_by_hand(known: LayerStatistics, name: str) -> Tensor:
    """All importances at once, each group's statistics written out for each of its units."""
    weight = known.weight.double().flatten(1)
    each = UNITS // known.groups

    def by_unit(statistics: Tensor) -> Tensor:
        return statistics.repeat_interleave(each, 0)

    return {
        "output": lambda: weight.abs() * known.mean_output.abs()[:, None],
        "input": lambda: weight.abs() * by_unit(known.mean_input),
        "wanda": lambda: weight.abs() * by_unit(known.input_norm),
        "magnitude": lambda: weight.abs(),
        "taylor": lambda: (weight * known.gradient.flatten(1)).abs(),
    }[name]()


@pytest.mark.parametrize("groups", [1, GROUPS, UNITS])
@pytest.mark.parametrize("name", CRITERIA)
def test_a_tile_is_that_part_of_the_whole(name, groups):
    known = evidence(groups)
    part, whole = known.importance(CRITERIA[name]), whole_by_hand(known, name)
    assert known.shape == (UNITS, EACH)
    everything = slice(None)
    for tile in ((everything, everything), (slice(1, 4), everything), (everything, slice(3, 7)),
                 (slice(4, 6), slice(0, 1)), (slice(5, 99), slice(2, 99)),
                 (slice(2, 2), everything)):
        found = part(*tile)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, whole[tile], rtol=1e-14, atol=0)


@pytest.mark.parametrize("groups", [1, GROUPS, UNITS])
@pytest.mark.parametrize("name", CRITERIA)
def test_some_units_are_those_of_the_whole(name, groups):
    known, chosen = evidence(groups), torch.tensor([0, 3, 5])
    some = known.sampled(chosen)
    assert some.shape == (3, EACH)
    whole = whole_by_hand(known, name)[chosen]
    torch.testing.assert_close(some.importance(CRITERIA[name])(slice(None), slice(None)), whole,
                               rtol=1e-14, atol=0)
    torch.testing.assert_close(some.importance(CRITERIA[name])(slice(1, 3), slice(2, 5)),
                               whole[1:3, 2:5], rtol=1e-14, atol=0)


@pytest.mark.parametrize(("weights", "dtype", "expected"), [
    (2**20, torch.float32, torch.float64), (2**20 + 4, torch.float32, torch.float32),
    (2**20 + 4, torch.bfloat16, torch.float32), (2**20 + 4, torch.float64, torch.float64),
    (8, torch.float16, torch.float64)])
def test_importances_are_float64_up_to_a_million_weights(weights, dtype, expected):
    known = LayerStatistics(torch.ones(4, weights // 4, dtype=dtype), mean_output=torch.ones(4))
    assert known.importance(output)(slice(0, 1), slice(0, 5)).dtype == expected


def test_a_function_of_ones_own_is_asked_once_a_layer():
    asked = []

    def own(weight: Tensor, input_norm: Tensor) -> Tensor:
        asked.append((weight.shape, input_norm.shape, weight.dtype))
        return weight.abs() / weight.abs().max() * input_norm

    known = evidence()
    part = known.importance(own)
    tiles = [part(slice(0, 2), slice(None)), part(slice(2, 6), slice(None))]
    assert asked == [((UNITS, EACH), (UNITS, EACH), torch.float64)]
    expected = whole_by_hand(known, "wanda") / known.weight.double().abs().max()
    torch.testing.assert_close(torch.cat(tiles), expected, rtol=1e-14, atol=0)


def test_only_taylor_has_a_measure_of_units_of_its_own():
    known = evidence()
    for name, criterion in CRITERIA.items():
        assert (known.of_units(criterion) is None) == (name != "taylor")
    product = (known.weight.double() * known.gradient).flatten(1).sum(1)
    expected = (product + known.bias * known.bias_gradient).abs()
    torch.testing.assert_close(known.of_units(taylor), expected, rtol=1e-12, atol=1e-15)


def test_the_units_measure_of_a_large_layer_in_pieces():
    generator = torch.Generator().manual_seed(1)
    weight, gradient = torch.randn(2, 5, 2**19, generator=generator)
    found = LayerStatistics(weight, gradient=gradient).of_units(taylor)
    expected = (weight.double() * gradient.double()).sum(1).abs()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


GATHERED = {
    "output": (["output"], True, set(), False), "magnitude": (["magnitude"], True, set(), False),
    "input": (["input"], False, {1}, False), "wanda": (["wanda"], False, {2}, False),
    "taylor": (["taylor"], True, set(), True),
    "input and wanda": (["input", "wanda"], False, {1, 2}, False),
    "all": (list(CRITERIA), True, {1, 2}, True),
    "own": ([lambda weight, gradient, mean_input: weight], False, {1}, True),
}


@pytest.mark.parametrize(("criteria", "outputs", "powers", "gradient"), GATHERED.values(),
                         ids=GATHERED)
@pytest.mark.parametrize("wanted_rows", [False, True])
def test_what_one_pass_must_gather(criteria, outputs, powers, gradient, wanted_rows):
    """Outputs or inputs are summed in any case: a NaN must show."""
    found = required_stats(list(resolve_criteria(criteria).values()), rows=wanted_rows)
    assert (found.output, set(found.powers), found.gradient, found.rows) == (
        outputs, powers, gradient, wanted_rows)


def test_names_of_criteria():
    def mine(weight: Tensor) -> Tensor:
        return weight

    found = resolve_criteria(["wanda", mine, magnitude])
    assert found == {"wanda": wanda, "mine": mine, "magnitude": magnitude}
    assert list(resolve_criteria(["taylor", "output"])) == ["taylor", "output"]


def test_an_own_function_called_like_a_criterion_beside_it():
    def wanda(weight: Tensor) -> Tensor:
        return weight.abs()

    assert resolve_criteria([wanda]) == {"wanda": wanda}
    with pytest.raises(ValueError, match="^criterion: expected functions of different names, but "
                                         "got two of 'wanda'$"):
        resolve_criteria(["wanda", wanda])


def test_what_is_known_of_a_layer_after_a_pass():
    model, x, y = mlp(3, 8, 2), rows(20, 3), labels(20)
    criteria = list(CRITERIA.values())
    seen = run_pass(model, Batches([(x[:9], y[:9]), (x[9:], y[9:])], model),
                   required_stats(criteria, rows=False), loss=lambda out, target: out.sum(1).mean())
    known = layer_statistics(seen.layers["0"], seen)
    z = model[0](x).detach().double()
    assert known.weight.data_ptr() == model[0].weight.data_ptr()
    torch.testing.assert_close(known.mean_output, z.mean(0), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(known.mean_input[0], x.double().abs().mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(known.input_norm[0], x.double().norm(dim=0), rtol=1e-6, atol=0)
    (weight_gradient, bias_gradient) = torch.autograd.grad(
        model(x).sum(1).mean(), [model[0].weight, model[0].bias])
    torch.testing.assert_close(known.gradient, weight_gradient.double(), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(known.bias_gradient, bias_gradient.double(), rtol=1e-5, atol=1e-8)
    assert torch.equal(known.bias, model[0].bias)
    assert all(tensor.dtype == torch.float64 for tensor in (
        known.mean_output, known.mean_input, known.input_norm, known.gradient))
    assert not any(tensor.requires_grad for tensor in (known.weight, known.bias, known.gradient))


class Recurrent(nn.Module):
    def __init__(self, projected: int = 0) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 5, batch_first=True, proj_size=projected)
        self.head = nn.Linear(projected or 5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_a_criterion_that_makes_no_sense_for_a_layer_leaves_it_out_by_name():
    torch.manual_seed(2)
    model, x = Recurrent(projected=2), rows(6, 4, 3)
    usages = analyze(model, x, criterion=["output", "magnitude"])
    assert set(usages["magnitude"].layers) == {"rnn.weight_ih_l0", "rnn.weight_hh_l0",
                                               "rnn.weight_hr_l0"}
    for name in ("rnn.weight_ih_l0", "rnn.weight_hh_l0"):
        assert usages["output"].skipped[name] == (
            "its units' outputs are hidden by a projection: no mean output")
        assert name not in usages["output"].layers
        with pytest.raises(ValueError, match=f"^layer {name}: expected one that can be analysed, "
                                             "but got: .* hidden by a projection"):
            layer_importance(model, x, [name])
    with pytest.raises(ValueError, match="^layer rnn.weight_hr_l0: .* hidden within the cell$"):
        layer_importance(model, x, ["rnn.weight_hr_l0"], "wanda")
    with pytest.raises(ValueError, match="^model: expected a layer .* hidden within the cell"):
        analyze(model, x, criterion="wanda", layers=["rnn.weight_hr_l0"])


def test_a_weight_that_the_data_make_is_left_out_by_name():
    class Generated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, x.T @ x + self.bias)

    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 3), Generated(), nn.Linear(3, 2))
    usage = analyze(model, rows(12, 3).split(4))
    assert usage.skipped["1"] == "its weight is computed anew from the data"
    with pytest.raises(ValueError, match="^layer 1: .* computed anew from the data$"):
        layer_importance(model, rows(12, 3).split(4), ["1"])


class Largest(TorchDispatchMode):
    """The most numbers that anything but a view read or made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [one for one in tree_leaves((args, kwargs, result))
                       if isinstance(one, Tensor)]
            self.numbers = max([self.numbers, *(one.numel() for one in tensors)])
        return result


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["linear", "embedding", "transposed"])
@pytest.mark.parametrize("value", [0.5, 6e4, math.nan, math.inf])
def test_a_narrow_weight_is_looked_at_in_blocks(dtype, kind, value):
    weight = torch.full((1500, 2000), 0.5, dtype=dtype)
    weight[1499, 1999] = value
    weight = weight.T.contiguous().T if kind == "transposed" else weight
    model = nn.Embedding(1500, 2000) if kind == "embedding" else nn.Linear(2000, 1500)
    model.weight = nn.Parameter(weight)
    layer = TracedLayer("a", "Linear", "", kind if kind == "embedding" else "linear", 1500,
                  view=ParameterIndex(model).find(model.weight, []))
    seen = PassStatistics({"a": layer}, (), {}, 1, {"weight": model.weight}, None, None)
    with Largest() as found:
        evidence = layer_statistics(layer, seen)
        assert evidence.weight.data_ptr() == model.weight.data_ptr()
        if math.isfinite(value):
            evidence.refuse_broken()
        else:
            with pytest.raises(ValueError, match="^layer a: expected a finite weight, but got NaN "
                                                 "or infinity$"):
                evidence.refuse_broken()
    assert 2**19 <= found.numbers <= 2**20


def test_finite_weights_with_an_infinite_sum():
    model = nn.Linear(3, 4)
    with torch.no_grad():
        model.weight.fill_(3e38)
    layer = TracedLayer(
        "a", "Linear", "", "linear", 4, view=ParameterIndex(model).find(model.weight, [])
    )
    seen = PassStatistics({"a": layer}, (), {}, 1, {"weight": model.weight}, None, None)
    layer_statistics(layer, seen).refuse_broken()
