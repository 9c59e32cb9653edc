"""One forward watched: which layers come of it, what was the last, what else was computed with."""

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
from wua_mlflow.usage.tracing.sums import mask_of
from wua_mlflow.usage.tracing.tracer import WeightTracer

NEEDS = RequiredStats(powers=frozenset({1, 2}))


def watched(model: nn.Module, *batches, needs: RequiredStats = NEEDS, mask=None,
            wanted=lambda _: True) -> WeightTracer:
    watch = WeightTracer(model.eval(), needs, wanted)
    watch.mask = mask
    names = {module: name for name, module in watch.owners.modules.items()}
    with running(model, names) as state, torch.no_grad():
        watch.running = state.stack
        for batch in batches:
            with watch:
                model(batch)
    return watch


def test_layers_in_the_order_of_their_first_calls_and_the_last():
    watch = watched(mlp(3, 5, 4, 2), rows(6, 3), rows(2, 3))
    assert list(watch.layers) == ["0", "2", "4"]
    assert [one.calls for one in watch.layers.values()] == [2, 2, 2]
    assert [one.name for one in watch.last] == ["4"]
    assert watch.layers["0"].output.count == 8
    assert watch.layers["0"].bias.parameter == "0.bias"


def test_the_output_is_what_it_is_without_watching():
    model, x = mlp(3, 5, 2), rows(6, 3)
    plain = model(x)
    watch = WeightTracer(model, NEEDS, lambda _: True)
    with watch:
        assert model(x).equal(plain)
    assert _get_current_function_mode_stack() == []


def test_only_what_is_wanted_is_told_but_the_last_is_known():
    watch = watched(mlp(3, 5, 4, 2), rows(6, 3), wanted=lambda name: name == "2")
    assert list(watch.layers) == ["2"]
    assert watch.last == []


def test_no_activations_alone_make_a_layer():
    model = Layers(through(lambda model, h: (h @ h.T) @ h + functional.linear(h, h.T @ h)), **net())
    watch = watched(model, rows(6, 3))
    assert list(watch.layers) == ["first", "head"]
    assert watch.others == {}


@pytest.mark.parametrize(("run", "function"), [
    (lambda model, h: torch.einsum("bi,ij->bj", h, model.own), "einsum"),
    (lambda model, h: torch.bmm(h[None], model.own[None])[0], "bmm"),
    (lambda model, h: torch.cat([h @ (model.own + 1)], 1), "add"),
    (lambda model, h: h @ torch.cat([model.own[:2], model.own[2:]]), "cat"),
    (lambda model, h: h.matmul(model.own[0])[:, None].expand(-1, 4), "matmul")])
def test_other_functions_of_a_parameter_are_noted(run, function):
    watch = watched(Layers(through(run), **net(own=matrix(4, 4))), rows(6, 3))
    assert watch.others == {"own": function}
    assert list(watch.layers) == ["first", "head"]


def test_after_a_product_that_is_not_read_no_layer_is_the_last():
    def run(model: Layers, x: Tensor) -> Tensor:
        return torch.einsum("bi,ij->bj", model.head(model.first(x)), model.own)

    assert watched(Layers(run, **net(own=matrix(2, 2))), rows(6, 3)).last == []


RELUS = {
    "relu": lambda model, h: torch.relu(h),
    "in place": lambda model, h: functional.relu(h, inplace=True),
    "relu6": lambda model, h: functional.relu6(h),
    "method": lambda model, h: h.relu(),
    "after batch norm": lambda model, h: torch.relu(model.norm(h)),
    "after dropout": lambda model, h: functional.relu(functional.dropout(h, training=False)),
}


@pytest.mark.parametrize("relu", RELUS.values(), ids=RELUS)
def test_units_that_never_rise_above_zero_before_a_relu_are_dead(relu):
    parts = net(norm=nn.BatchNorm1d(4))
    with torch.no_grad():
        parts["first"].weight[1] = 0
        parts["first"].bias[1] = -1
    model = Layers(lambda model, x: model.head(relu(model, model.first(x))), **parts)
    x = rows(50, 3)
    expected = (model.eval().first(x) <= 0).all(0)
    assert watched(model, x).layers["first"].dead_units().equal(expected)
    assert expected[1]


@pytest.mark.parametrize("positions", [4, 5])  # as many as samples, too
def test_layers_of_a_block_with_positions_first_read_the_mask_so(positions):
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(4, 2, 6)
    given = torch.arange(positions) < torch.tensor([1, 3, positions, 2])[:, None]
    x = rows(positions, 4, 4)
    watch = watched(model, x, mask=mask_of(given.long()))
    expected = watched(model, x, mask=mask_of(torch.cat([given, given]).long()))  # fits nothing
    with torch.enable_grad():
        hidden = model.norm1(x + model.self_attn(x, x, x, need_weights=False)[0])
    real = hidden[given.T].square().sum(0).double()
    torch.testing.assert_close(watch.layers["linear1"].inputs[2].sums[0], real, rtol=1e-4,
                               atol=1e-5)
    assert watch.layers["linear1"].inputs[2].count == int(given.sum())
    assert expected.layers["linear1"].inputs[2].count == given.numel()


def test_sharing_a_kernel_both_ways_makes_one_layer():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(2, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return functional.conv_transpose1d(self.conv(x), self.conv.weight)

    watch = watched(Both(), rows(3, 2, 6))
    assert list(watch.layers) == ["conv"]
    assert watch.layers["conv"].calls == 1
    assert watch.last == []


def test_used_weights_are_kept_for_gradients_only_where_they_are_computed():
    def run(model: Layers, h: Tensor) -> Tensor:
        return functional.linear(h, model.own * 2)

    watch = watched(Layers(through(run), **net(own=matrix(4, 4))), rows(6, 3),
                    needs=RequiredStats(gradient=True))
    assert [(layer.name, weight.shape) for layer, weight in watch.used] == [("", (4, 4))]
    assert watch.layers[""].view is None
