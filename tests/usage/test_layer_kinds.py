"""Layers that are a matrix product, an embedding or a bilinear form, by hand for each criterion."""

from __future__ import annotations

import math
import operator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.example_modules import Conv1D
from tests.networks import Layers, rows, tokens
from tests.references import assert_importance, flat, met_and_gave, unnamed
from wua_mlflow.usage.analyze import analyze, layer_importance

aten = torch.ops.aten


def tensor(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def own(function, *shape: int) -> Layers:
    """``function(x, weight)`` of a weight of the model's own."""
    return Layers(lambda model, x: function(x, model.own), own=nn.Parameter(tensor(*shape)))


@pytest.mark.parametrize("shape", [(6, 3), (2, 2, 2, 3)])
def test_a_linear_layer_over_any_leading_dimensions(shape):
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), rows(*shape)
    assert_importance(model, x, "0", model[0].weight, flat(x), flat(model[0](x)))
    assert_importance(model, x, "1", model[1].weight, *met_and_gave(model, model[1], x))


def test_an_embedding_is_a_linear_layer_of_one_hot_inputs():
    model, ids = nn.Sequential(nn.Embedding(20, 3), nn.Linear(3, 2)), tokens(5)
    met = functional.one_hot(ids, 20).flatten(0, 1)
    assert_importance(model, ids, "0", model[0].weight.T, met, flat(model[0](ids)))
    usage = analyze(model, ids)
    assert (usage.layers["0"].units, usage.layers["0"].kind) == (3, "Embedding")


def test_a_bilinear_form_under_autocast_is_summed_as_without():
    model = Layers(lambda model, left, right: model.form(left, right), form=nn.Bilinear(3, 4, 5))
    data = [{"left": tensor(50, 3), "right": tensor(50, 4)}]
    for criterion in ("input", "wanda"):
        expected = layer_importance(model, data, ["form"], criterion)["form"]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            importance = layer_importance(model, data, ["form"], criterion)["form"]
        torch.testing.assert_close(importance, expected, rtol=1e-6, atol=0)


def test_a_bilinear_form_multiplies_pairs():
    model = Layers(lambda model, x: model.form(model.left(x), model.right(x)),
                   left=nn.Linear(3, 2), right=nn.Linear(3, 4), form=nn.Bilinear(2, 4, 5))
    x = rows(6, 2, 3)
    a, b = flat(model.left(x)), flat(model.right(x))
    pairs = torch.stack([torch.outer(*both).flatten() for both in zip(a, b, strict=True)])
    gave = pairs @ model.form.weight.flatten(1).T + model.form.bias
    torch.testing.assert_close(gave, flat(model(x)))
    assert_importance(model, x, "form", model.form.weight.flatten(1), pairs, gave)


def test_the_conv1d_of_transformers_is_a_linear_layer_transposed():
    model = nn.Sequential(Conv1D(3, 4), nn.ReLU(), Conv1D(4, 2))
    for layer in model[::2]:
        layer.weight.data, layer.bias.data = tensor(*layer.weight.shape), tensor(*layer.bias.shape)
    x = rows(5, 2, 3)
    assert_importance(model, x, "0", model[0].weight.T, flat(x), flat(model[0](x)))
    usage = analyze(model, x).layers["0"]
    assert (usage.kind, usage.units, usage.weights) == ("Conv1D", 4, 12)


PRODUCTS = {
    "linear": (lambda x, w: functional.linear(x, w), (4, 3), lambda w: w),
    "at": (lambda x, w: x @ w, (3, 4), lambda w: w.T),
    "matmul": (lambda x, w: torch.matmul(x, w), (3, 4), lambda w: w.T),
    "method": (lambda x, w: x.matmul(w.transpose(0, 1)), (4, 3), lambda w: w),
    "mm": (lambda x, w: torch.mm(x, w), (3, 4), lambda w: w.T),
    "keywords": (lambda x, w: torch.matmul(input=x, other=w), (3, 4), lambda w: w.T),
    "addmm": (lambda x, w: torch.addmm(torch.ones(4), x, w), (3, 4), lambda w: w.T),
    "method addmm": (lambda x, w: torch.ones(4).addmm(x, w), (3, 4), lambda w: w.T),
    "from the left": (lambda x, w: (w @ x.T).T, (4, 3), lambda w: w),
    "from the left, transposed": (lambda x, w: (w.T @ x.T).T, (3, 4), lambda w: w.T),
    "mm from the left": (lambda x, w: torch.mm(w, x.T).T, (4, 3), lambda w: w),
    "some rows": (lambda x, w: functional.linear(x, w[2:6]), (7, 3), lambda w: w[2:6]),
    "some columns": (lambda x, w: functional.linear(x, w[:, 1:4]), (4, 6), lambda w: w[:, 1:4]),
    "a part of a stack": (lambda x, w: x @ w[1], (2, 3, 4), lambda w: w[1].T),
    "by keywords": (lambda x, w: functional.linear(input=x, weight=w), (4, 3), lambda w: w),
    "reversed": (lambda x, w: w.T.__rmatmul__(x), (4, 3), lambda w: w),
    "addmm by keywords": (lambda x, w: torch.addmm(torch.ones(4), mat1=x, mat2=w), (3, 4),
                          lambda w: w.T),
    "aten.linear": (lambda x, w: aten.linear.default(x, w, None), (4, 3), lambda w: w),
    "aten.mm": (lambda x, w: aten.mm.default(x, w), (3, 4), lambda w: w.T),
    "aten.addmm": (lambda x, w: aten.addmm.default(torch.ones(4), x, w), (3, 4), lambda w: w.T),
    "detached": (lambda x, w: functional.linear(x, w.detach()), (4, 3), lambda w: w),
    "as a convolution": (lambda x, w: functional.conv1d(x[..., None], w[..., None])[..., 0],
                         (4, 3), lambda w: w)}


@pytest.mark.parametrize(("function", "shape", "units_first"), PRODUCTS.values(), ids=PRODUCTS)
def test_a_parameter_through_any_product(function, shape, units_first):
    model, x = own(function, *shape), rows(6, 3)
    weight = units_first(model.own)
    gave = model(x)
    torch.testing.assert_close(gave, x @ weight.T + ("addmm" in function.__code__.co_names))
    assert_importance(model, x, "own", weight, x, gave)
    usage = analyze(model, x)
    layer, = usage.layers.values()
    assert (layer.name.partition("[")[0], layer.kind, layer.units) == ("own", "Parameter", 4)
    assert unnamed(model, usage) == []


def test_a_weight_from_the_left_of_samples():
    model, x = own(lambda x, w: w @ x, 4, 3), rows(5, 3, 2)
    assert_importance(model, x, "own", model.own, flat(x.mT), flat(model(x).mT))


def slices(*cuts) -> Layers:
    return Layers(lambda model, x: torch.cat([functional.linear(x, model.own[cut])
                                              for cut in cuts], 1), own=nn.Parameter(tensor(6, 6)))


@pytest.mark.parametrize(("cuts", "names"), [
    ((slice(0, 2), slice(2, 6)), ["own[0:2]", "own[2:6]"]),
    (((slice(0, 6), slice(0, 3)), (slice(0, 6), slice(3, 6))), ["own[:, 0:3]", "own[:, 3:6]"])])
def test_slices_of_a_parameter_are_layers_of_their_own(cuts, names):
    model = slices(*cuts)
    x = rows(5, model.own[cuts[0]].shape[1])
    usage = analyze(model, x)
    outputs = [name for name, reason in usage.skipped.items() if "output" in reason]
    assert sorted([*usage.layers, *outputs]) == names
    importances = layer_importance(model, x, ["own"], "wanda")  # all slices of it
    assert list(importances) == names
    for name, cut in zip(names, cuts, strict=True):
        expected = (model.own[cut].abs() * x.square().sum(0).sqrt()).double()
        torch.testing.assert_close(importances[name], expected, rtol=1e-6, atol=0)
    assert list(layer_importance(model, x, names[1:])) == names[1:]


def test_a_slice_that_overlaps_another_is_named():
    usage = analyze(slices(slice(0, 3), slice(1, 6)), rows(5, 6))
    assert usage.layers["own[0:3]"].weights == 18
    assert usage.skipped == {
        "own[1:6]": "overlaps 'own[0:3]', which is counted",
        "own[...]": "18 of its 36 weights are in no product that is analysed"}


def test_a_vector_is_no_layer():
    model = nn.Sequential(own(lambda x, w: x + functional.linear(x, w)[:, None], 3),
                          nn.Linear(3, 2))
    usage = analyze(model, [rows(4, 3), rows(3, 3)])
    assert list(usage.layers) == ["1"]
    assert usage.skipped == {"0": "Layers is not a kind of layer that is analysed"}


class Masked(nn.Linear):
    """A subclass with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x * 2, self.weight) + self.bias


def test_a_subclass_with_a_forward_of_its_own():
    model, x = nn.Sequential(Masked(3, 4), nn.Linear(4, 2)), rows(5, 3)
    assert_importance(model, x, "0", model[0].weight, 2 * x, model[0](x))
    assert analyze(model, x).layers["0"].kind == "Masked"


@pytest.mark.parametrize("tied", [True, False], ids=["tied weights", "one module, two names"])
def test_a_weight_that_is_used_twice_is_one_layer_over_all_calls(tied):
    model = Layers(lambda model, x: model.head(model.second(torch.relu(model.first(x)))),
                   first=nn.Linear(3, 3), second=nn.Linear(3, 3), unused=nn.Linear(3, 5),
                   head=nn.Linear(3, 2))
    if tied:
        model.second.weight = model.first.weight
    else:
        model.second = model.first
    x = rows(5, 3)
    first = model.first(x)
    met, gave = torch.cat([x, first.relu()]), torch.cat([first, model.second(first.relu())])
    assert_importance(model, x, "first", model.first.weight, met, gave)
    usage = analyze(model, x)
    assert list(usage.layers) == ["first"]
    assert usage.skipped["second"] == "shares its weight with 'first', where it is counted"
    assert usage.skipped["unused"] == "never called in the forward" and unnamed(model, usage) == []


def test_a_head_that_is_the_embedding_is_counted_once_at_its_first_use():
    model = Layers(lambda model, ids: model.head(model.body(model.embed(ids))),
                   embed=nn.Embedding(20, 4), body=nn.Linear(4, 4),
                   head=nn.Linear(4, 20, bias=False))
    model.head.weight, ids = model.embed.weight, tokens(6)
    usage = analyze(model, ids)
    assert list(usage.layers) == ["embed", "body"]
    assert usage.skipped == {"head": "shares its weight with 'embed', where it is counted"}
    met = functional.one_hot(ids, 20).flatten(0, 1)
    assert_importance(model, ids, "embed", model.embed.weight.T, met, flat(model.embed(ids)))


@pytest.mark.parametrize("criterion", ["output", "input", "wanda"])
def test_an_expert_that_gets_no_rows_is_all_zeros_and_flagged(criterion):
    model = Layers(lambda model, x: model.head(torch.cat([
        model.experts[0](x[x[:, 0] > 0]), model.experts[1](x[:0])])), head=nn.Linear(4, 2),
        experts=nn.ModuleList([nn.Linear(3, 4), nn.Linear(3, 4)]))
    x = rows(6, 3)
    usage = analyze(model, x, criterion=criterion)
    assert usage.layers["experts.1"].dead and usage.layers["experts.1"].dead_units == 4
    real = x[x[:, 0] > 0]
    assert_importance(model, x, "experts.0", model.experts[0].weight, real, model.experts[0](real))


def gated(z: Tensor, b: Tensor) -> Tensor:
    return torch.where(z + b > 0, z + b, 0.0)


LATE = {
    "x @ W + b": (lambda x, w, b: x @ w.T + b, (4, 3), (4,)),
    "in place": (lambda x, w, b: (x @ w.T).add_(b), (4, 3), (4,)),
    "+=": (lambda x, w, b: operator.iadd(x @ w.T, b), (4, 3), (4,)),
    "torch.add": (lambda x, w, b: torch.add(b, functional.linear(x, w)), (4, 3), (4,)),
    "a row": (lambda x, w, b: x @ w.T + b, (4, 3), (1, 4)),
    "by name": (lambda x, w, b: torch.add(functional.linear(x, w), other=b), (4, 3), (4,)),
    "after what changes nothing": (lambda x, w, b: functional.dropout(
        (x @ w.T).contiguous(), 0.5, training=False) + b, (4, 3), (4,)),
    "from the left": (lambda x, w, b: (w @ x.T + b[:, None]).T, (4, 3), (4,)),
    "twice to one product": (lambda x, w, b: gated(x @ w.T, b), (4, 3), (4,)),
    "unsqueezed": (lambda x, w, b: functional.linear(x, w) + b[None], (4, 3), (4,))}
UNSEEN = [LATE[name][0] for name in ("from the left", "twice to one product")]
"""Whose ReLU is not one that is seen."""


def late(function, weight, bias) -> Layers:
    """A product with a bias that is added afterwards, and a ReLU."""
    return Layers(lambda model, x: model.head(torch.relu(function(x, model.own, model.bias))),
                  own=nn.Parameter(tensor(*weight)), head=nn.Linear(4, 2), bias=nn.Parameter(
                      torch.linspace(-9, 2, math.prod(bias)).reshape(bias)))


@pytest.mark.parametrize(("function", "weight", "bias"), LATE.values(), ids=LATE)
def test_a_bias_that_is_added_afterwards(function, weight, bias):
    model, x, y = late(function, weight, bias), rows(6, 3), torch.tensor([0, 1] * 3)
    fused = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), model.head)
    fused[0].weight, fused[0].bias = model.own, nn.Parameter(model.bias.detach().flatten())
    torch.testing.assert_close(model(x), fused(x))
    for criterion in ("output", "taylor"):
        options = {"criterion": criterion, "loss": functional.cross_entropy}
        layer = analyze(model, [(x, y)], layers=["own"], **options).layers["own"]
        expected = analyze(fused, [(x, y)], layers=["0"], **options).layers["0"]
        assert layer.unit_importance == pytest.approx(expected.unit_importance, rel=1e-6, abs=0)
        assert layer.entropy == pytest.approx(expected.entropy, rel=1e-6)
        if function not in UNSEEN:
            assert layer.dead_units == expected.dead_units > 0
        assert unnamed(model, analyze(model, [(x, y)], **options)) == []


def test_a_convolutions_bias_that_is_added_afterwards():
    class Conv(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(x, self.weight, None) + self.bias[:, None, None]

    late, plain = Conv(2, 3, 3), nn.Conv2d(2, 3, 3)
    plain.load_state_dict(late.state_dict())
    x = rows(2, 2, 5, 5)
    layer, expected = (analyze(nn.Sequential(conv, nn.Conv2d(3, 2, 1)), x).layers["0"]
                       for conv in (late, plain))
    assert layer.unit_importance == pytest.approx(expected.unit_importance, rel=1e-5, abs=1e-7)


def test_what_is_no_bias_of_its_units_is_not_added():
    model = late(lambda x, w, b: torch.relu(x @ w.T) + b + x @ w.T, (4, 3), (4,))
    x = rows(6, 3)
    importance = layer_importance(model, x, ["own"])["own"]
    mean = (x @ model.own.T).mean(0)  # without b: it is added to what a ReLU gave
    torch.testing.assert_close(importance, (model.own * mean[:, None]).abs().double(), rtol=1e-5,
                               atol=0)


def test_a_bias_with_more_dimensions_is_named():
    model = Layers(lambda model, x: model.head(model.first(x) + model.shift),
                   first=nn.Linear(3, 4, bias=False), head=nn.Linear(4, 2),
                   shift=nn.Parameter(torch.ones(1, 1, 4)))
    skipped = analyze(model, rows(6, 5, 3)).skipped
    assert "add" in skipped["shift"], skipped
