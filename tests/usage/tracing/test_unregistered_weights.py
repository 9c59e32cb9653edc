"""Weights that a model does not register, and uses of a weight beside those that are analysed."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tests.model_forms import Layers, net, through
from tests.networks import rows
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.usage.results import ModelUsage


def used(run: Callable[..., Tensor], attributes=(), layers=None, **parts) -> ModelUsage:
    """The usage of first, then ``run``, then head."""
    model = Layers(through(run), **net(**parts))
    for name, value in dict(attributes).items():
        setattr(model, name, value)
    return analyze(model, rows(6, 3), criterion="wanda", layers=layers)


class Quantised(nn.Module):
    """Whole numbers and a scale, as weight-only quantisation leaves them."""

    def __init__(self, *, parameter: bool, bias: bool) -> None:
        super().__init__()
        codes = torch.randint(-3, 3, (4, 4), dtype=torch.int8)
        if parameter:
            self.qweight = nn.Parameter(codes, requires_grad=False)
        else:
            self.register_buffer("qweight", codes)
        self.register_buffer("scale", torch.full((4, 1), 0.1))
        self.bias = nn.Parameter(torch.ones(4)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.qweight.float() * self.scale, self.bias)


BESIDE = {
    "vmap": (lambda model, h: model.inner(h) + torch.vmap(model.inner)(h * 5),
             ["linear inside torch.func", "1 of 2 calls were not seen"]),
    "einsum": (lambda model, h: torch.einsum("bi,ij->bj", model.inner(h), model.inner.weight),
               ["also used through einsum, which is not counted"]),
    "transposed": (lambda model, h: functional.linear(model.inner(h), model.inner.weight.T),
                   ["also used through linear, which is not counted"]),
    "functorch": (lambda model, h: model.inner(h) + torch.vmap(
        lambda weight: torch.func.functional_call(model.inner, {"weight": weight}, (h,)))(
            model.inner.weight[None])[0], ["1 of 2 calls were not seen"])}


@pytest.mark.parametrize(("run", "reasons"), BESIDE.values(), ids=BESIDE)
@pytest.mark.parametrize("layers", [None, ["inner"]], ids=["all", "this layer"])
def test_other_uses_of_a_layer_are_named_beside_it(run, reasons, layers):
    usage = used(run, layers=layers, inner=nn.Linear(4, 4))
    assert "inner" in usage.layers
    for reason in reasons:
        assert reason in usage.skipped["inner.weight[...]"]


def test_a_table_that_is_looked_up_and_multiplied_is_named():
    usage = used(lambda model, h: torch.einsum(
        "bi,ji->bj", model.table(h[:, 0].long().clamp(0, 3)), model.table.weight),
        table=nn.Embedding(4, 4))
    assert "table" in usage.layers
    assert usage.skipped["table.weight[...]"] == "also used through einsum, which is not counted"


@pytest.mark.parametrize(("parameter", "bias"), [(False, False), (False, True), (True, False)])
def test_a_weight_made_of_whole_numbers_is_named_once(parameter, bias):
    usage = used(lambda model, h: model.inner(h), inner=Quantised(parameter=parameter, bias=bias))
    assert {name: why for name, why in usage.skipped.items() if name.startswith("inner")} == {
        "inner.qweight": "its weight is integer-quantised (int8)"}
    assert list(usage.layers) == ["first"]


PLAIN = "its weight is a plain tensor, not a parameter"
ELSEWHERE = "it is in a module that the model does not register"
HELD = {
    "plain": (lambda model, h: h @ model.held, torch.ones(4, 4), "held", PLAIN),
    "plain, transposed": (lambda model, h: functional.linear(h, model.held.T),
                          torch.randn(4, 4).T, "held", PLAIN),
    "list": (lambda model, h: model.held[1](h), [None, nn.Linear(4, 4)], "held[1]", ELSEWHERE),
    "dict": (lambda model, h: model.held["a"](h), {"a": nn.Linear(4, 4)}, "held[a]", ELSEWHERE),
    "object": (lambda model, h: h @ model.held.weight,
               SimpleNamespace(weight=torch.ones(4, 4)), "held.weight", PLAIN),
    "object's module": (lambda model, h: model.held.inner(h),
                        SimpleNamespace(inner=nn.Linear(4, 4)), "held.inner", ELSEWHERE)}


@pytest.mark.parametrize(("run", "value", "name", "reason"), HELD.values(), ids=HELD)
def test_what_is_not_registered_is_named_where_it_is_held(run, value, name, reason):
    # A model with a parameter of its own could have computed a plain tensor.
    for parts in [{}, {"gain": nn.Parameter(torch.ones(4))}][:2 if reason != PLAIN else 1]:
        usage = used(run, attributes={"held": value}, **parts)
        assert list(usage.layers) == ["first"] and usage.skipped[name] == reason


def test_a_parameter_registered_as_a_buffer_is_a_buffer():
    model = Layers(through(lambda model, h: h @ model.held), **net())
    model.register_buffer("held", nn.Parameter(torch.ones(4, 4)))
    usage = analyze(model, rows(6, 3), criterion="wanda")
    assert usage.skipped["held"] == "its weight is a buffer, not a parameter"


def test_any_other_weight_is_named_by_the_module_that_runs():
    hidden = Layers(lambda layer, x: functional.linear(x, torch.full((4, 4), 0.5)))
    usage = used(lambda model, h: model.inner(h), inner=hidden)
    assert usage.skipped["inner"] == "the weight of its linear is neither a parameter nor a buffer"


@pytest.mark.parametrize("criterion", ["wanda", "taylor"])
def test_what_runs_again_or_several_times_is_no_omission(criterion):
    model = Layers(through(lambda model, h: model.inner(
        checkpoint(model.inner, h, use_reentrant=False))), **net(inner=nn.Linear(4, 4)))
    model.same = [model.inner]
    data = [(rows(6, 3), torch.zeros(6, dtype=torch.long))] * 2
    usage = analyze(model, data, criterion=criterion, loss=functional.cross_entropy)
    assert list(usage.layers) == ["first", "inner"] and list(usage.skipped) == ["head"]
