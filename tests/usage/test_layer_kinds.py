"""Layers that are a matrix product, an embedding or a bilinear form, by hand for each criterion."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.example_modules import Conv1D
from tests.networks import rows, tokens
from tests.references import assert_importance, flat, met_and_gave, unnamed
from wua_mlflow.usage.analyze import analyze, layer_importance


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def tensor(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


class Own(nn.Module):
    """``function(x, weight)``, with a weight of the model's own and a layer behind it."""

    def __init__(self, function, *shape: int) -> None:
        super().__init__()
        self.function, self.own = function, nn.Parameter(tensor(*shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.own)


@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 3), (2, 2, 2, 3)])
def test_a_linear_layer_over_any_leading_dimensions(shape):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    x = rows(*shape)
    assert_importance(model, x, "0", model[0].weight, flat(x), flat(model[0](x)))
    assert_importance(model, x, "1", model[1].weight, *met_and_gave(model, model[1], x))


def test_an_embedding_is_a_linear_layer_of_one_hot_inputs():
    model = nn.Sequential(nn.Embedding(20, 3), nn.Linear(3, 2))
    ids = tokens(5)
    met = functional.one_hot(ids, 20).flatten(0, 1)
    assert_importance(model, ids, "0", model[0].weight.T, met, flat(model[0](ids)))
    usage = analyze(model, ids)
    assert (usage.layers["0"].units, usage.layers["0"].kind) == (3, "Embedding")


class Forms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(3, 4)
        self.form = nn.Bilinear(2, 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self.left(x), self.right(x))


def test_a_bilinear_form_under_autocast_is_summed_as_without():
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.form = nn.Bilinear(3, 4, 5)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.form(left, right)

    model, data = Pairs(), [{"left": tensor(50, 3), "right": tensor(50, 4)}]
    for criterion in ("input", "wanda"):
        expected = layer_importance(model, data, ["form"], criterion)["form"]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = layer_importance(model, data, ["form"], criterion)["form"]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_a_bilinear_form_multiplies_pairs():
    model, x = Forms(), rows(6, 2, 3)
    a, b = flat(model.left(x)), flat(model.right(x))
    pairs = torch.stack([torch.outer(*both).flatten() for both in zip(a, b, strict=True)])
    gave = pairs @ model.form.weight.flatten(1).T + model.form.bias
    torch.testing.assert_close(gave, flat(model(x)))
    assert_importance(model, x, "form", model.form.weight.flatten(1), pairs, gave)


def test_the_conv1d_of_transformers_is_a_linear_layer_transposed():
    model = nn.Sequential(Conv1D(3, 4), nn.ReLU(), Conv1D(4, 2))
    for one in model[::2]:
        one.weight.data, one.bias.data = tensor(*one.weight.shape), tensor(*one.bias.shape)
    x = rows(5, 2, 3)
    assert_importance(model, x, "0", model[0].weight.T, flat(x), flat(model[0](x)))
    usage = analyze(model, x).layers["0"]
    assert (usage.kind, usage.units, usage.weights) == ("Conv1D", 4, 12)


PRODUCTS = {
    "linear": (lambda x, w: functional.linear(x, w), (4, 3), lambda w: w),
    "linear of a transpose": (lambda x, w: functional.linear(x, w.T), (3, 4), lambda w: w.T),
    "at": (lambda x, w: x @ w, (3, 4), lambda w: w.T),
    "at a transpose": (lambda x, w: x @ w.t(), (4, 3), lambda w: w),
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
    "detached": (lambda x, w: functional.linear(x, w.detach()), (4, 3), lambda w: w),
    "as a convolution": (lambda x, w: functional.conv1d(x[..., None], w[..., None])[..., 0],
                         (4, 3), lambda w: w),
}


@pytest.mark.parametrize(("function", "shape", "units_first"), PRODUCTS.values(), ids=PRODUCTS)
def test_a_parameter_through_any_product(function, shape, units_first):
    model, x = Own(function, *shape), rows(6, 3)
    weight = units_first(model.own)
    gave = model(x)
    torch.testing.assert_close(gave, x @ weight.T + ("addmm" in function.__code__.co_names))
    assert_importance(model, x, "own", weight, x, gave)
    usage = analyze(model, x)
    own, = usage.layers.values()
    assert (own.name.partition("[")[0], own.kind, own.units) == ("own", "Parameter", 4)
    assert unnamed(model, usage) == []


def test_a_weight_from_the_left_of_samples():
    model, x = Own(lambda x, w: w @ x, 4, 3), rows(5, 3, 2)
    assert_importance(model, x, "own", model.own, flat(x.mT), flat(model(x).mT))


class Slices(nn.Module):
    def __init__(self, *cuts) -> None:
        super().__init__()
        self.own, self.cuts = nn.Parameter(tensor(6, 6)), cuts

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([functional.linear(x, self.own[cut]) for cut in self.cuts], 1)


@pytest.mark.parametrize(("cuts", "names"), [
    ((slice(0, 2), slice(2, 6)), ["own[0:2]", "own[2:6]"]),
    (((slice(0, 6), slice(0, 3)), (slice(0, 6), slice(3, 6))), ["own[:, 0:3]", "own[:, 3:6]"]),
])
def test_slices_of_a_parameter_are_layers_of_their_own(cuts, names):
    model = Slices(*cuts)
    width = model.own[cuts[0]].shape[1]
    x = rows(5, width)
    usage = analyze(model, x, layers=None)
    found = [*usage.layers, *(name for name, why in usage.skipped.items() if "output" in why)]
    assert sorted(found) == names
    seen = layer_importance(model, x, ["own"], "wanda")  # all slices of it
    assert list(seen) == names
    for name, cut in zip(names, cuts, strict=True):
        expected = (model.own[cut].abs() * x.square().sum(0).sqrt()).double()
        torch.testing.assert_close(seen[name], expected, rtol=1e-6, atol=0)
    assert list(layer_importance(model, x, names[1:])) == names[1:]


def test_a_slice_that_overlaps_another_is_named():
    usage = analyze(Slices(slice(0, 3), slice(1, 6)), rows(5, 6))
    assert list(usage.layers) == ["own[0:3]"]
    assert usage.skipped == {
        "own[1:6]": "overlaps 'own[0:3]', which is counted",
        "own[...]": "18 of its 36 weights are in no product that is analysed"}


def test_what_no_product_uses_of_a_parameter_is_named():
    usage = analyze(Slices(slice(0, 3)), rows(5, 6))
    assert usage.layers["own[0:3]"].weights == 18
    assert usage.skipped == {"own[...]": "18 of its 36 weights are in no product that is analysed"}


def test_a_vector_is_no_layer():
    model = nn.Sequential(Own(lambda x, w: x + functional.linear(x, w)[:, None], 3),
                          nn.Linear(3, 2))
    usage = analyze(model, [rows(4, 3), rows(3, 3)])
    assert list(usage.layers) == ["1"]
    assert usage.skipped == {"0": "Own is not a kind of layer that is analysed"}


class Masked(nn.Linear):
    """A subclass with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x * 2, self.weight) + self.bias


def test_a_subclass_with_a_forward_of_its_own():
    model, x = nn.Sequential(Masked(3, 4), nn.Linear(4, 2)), rows(5, 3)
    assert_importance(model, x, "0", model[0].weight, 2 * x, model[0](x))
    assert analyze(model, x).layers["0"].kind == "Masked"


class Twice(nn.Module):
    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        if tied:
            self.second.weight = self.first.weight
        else:
            self.second = self.first
        self.unused, self.head = nn.Linear(3, 5), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(torch.relu(self.first(x))))


@pytest.mark.parametrize("tied", [True, False], ids=["tied weights", "one module, two names"])
def test_a_weight_that_is_used_twice_is_one_layer_over_all_calls(tied):
    model, x = Twice(tied=tied), rows(5, 3)
    first = model.first(x)
    met, gave = torch.cat([x, first.relu()]), torch.cat([first, model.second(first.relu())])
    assert_importance(model, x, "first", model.first.weight, met, gave)
    usage = analyze(model, x)
    assert list(usage.layers) == ["first"]
    assert usage.skipped["second"] == "shares its weight with 'first', where it is counted"
    assert usage.skipped["unused"] == "never called in the forward"
    assert unnamed(model, usage) == []


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body = nn.Embedding(20, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(self.embed(ids)))


def test_a_head_that_is_the_embedding_is_counted_once_at_its_first_use():
    model, ids = Language(), tokens(6)
    usage = analyze(model, ids)
    assert list(usage.layers) == ["embed", "body"]
    assert usage.skipped == {"head": "shares its weight with 'embed', where it is counted"}
    met = functional.one_hot(ids, 20).flatten(0, 1)
    assert_importance(model, ids, "embed", model.embed.weight.T, met, flat(model.embed(ids)))


class Experts(nn.Module):
    """The second expert gets nothing at all; the first some rows."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(3, 4), nn.Linear(3, 4)])
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        kept = x[:, 0] > 0
        chosen = [self.experts[0](x[kept]), self.experts[1](x[:0])]
        return self.head(torch.cat(chosen))


@pytest.mark.parametrize("criterion", ["output", "input", "wanda"])
def test_an_expert_that_gets_no_rows_is_all_zeros_and_flagged(criterion):
    model, x = Experts(), rows(6, 3)
    usage = analyze(model, x, criterion=criterion)
    assert usage.layers["experts.1"].dead
    assert usage.layers["experts.1"].dead_units == 4
    kept = x[x[:, 0] > 0]
    assert_importance(model, x, "experts.0", model.experts[0].weight, kept, model.experts[0](kept))
