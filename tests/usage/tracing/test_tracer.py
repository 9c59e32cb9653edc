"""Which layers one forward has, which of them make its outputs, and what else used a parameter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import _get_current_function_mode_stack

from tests.model_forms import Layers, matrix, net, through
from tests.networks import mlp, rows
from wua_mlflow.hooks import running
from wua_mlflow.usage.tracing.layer import RequiredStats
from wua_mlflow.usage.tracing.registry import LayerRegistry
from wua_mlflow.usage.tracing.tracer import WeightTracer


def traced(model: nn.Module, x: Tensor, requested=lambda _: True) -> WeightTracer:
    registry = LayerRegistry(model.eval(), requested)
    tracer = WeightTracer(registry, RequiredStats())
    names = {module: name for name, module in registry.index.modules.items()}
    with running(model, names) as state, torch.no_grad():
        plain = model(x)
        registry.index.running = state.stack
        with tracer:
            assert model(x).equal(plain)
    assert _get_current_function_mode_stack() == []
    return tracer


def test_layers_in_the_order_of_their_calls_and_the_one_of_the_outputs():
    tracer = traced(mlp(3, 5, 4, 2), rows(6, 3))
    layers = tracer.registry.layers
    assert list(layers) == ["0", "2", "4"]
    assert [layer.name for layer in tracer.output_layers] == ["4"]
    assert (layers["0"].bias.parameter, layers["0"].output.count) == ("0.bias", 6)


def test_a_layer_that_is_not_requested_may_make_the_outputs():
    tracer = traced(mlp(3, 5, 4, 2), rows(6, 3), lambda name: name == "2")
    assert list(tracer.registry.layers) == ["2"]
    assert tracer.output_layers == []
    assert tracer.registry.not_requested == {"0", "4"}


@pytest.mark.parametrize(("run", "other_uses"), [
    (lambda model, h: (h @ h.T) @ h + functional.linear(h, h.T @ h), {}),  # of activations alone
    (lambda model, h: torch.einsum("bi,ij->bj", h, model.own), {"own": "einsum"}),
    (lambda model, h: torch.bmm(h[None], model.own[None])[0], {"own": "bmm"}),
    (lambda model, h: torch.cat([h @ (model.own + 1)], 1), {"own": "add"}),
    (lambda model, h: h @ torch.cat([model.own[:2], model.own[2:]]), {"own": "cat"}),
    (lambda model, h: h.matmul(model.own[0])[:, None].expand(-1, 4), {"own": "matmul"})])
def test_other_uses_of_a_parameter(run, other_uses):
    parts = dict.fromkeys(other_uses, matrix(4, 4))
    tracer = traced(Layers(through(run), **net(**parts)), rows(6, 3))
    assert tracer.registry.other_uses == other_uses
    assert list(tracer.registry.layers) == ["first", "head"]


def test_after_a_product_that_is_not_analysed_no_layer_makes_the_outputs():
    def run(model: Layers, x: Tensor) -> Tensor:
        return torch.einsum("bi,ij->bj", model.head(model.first(x)), model.own)

    assert traced(Layers(run, **net(own=matrix(2, 2))), rows(6, 3)).output_layers == []
