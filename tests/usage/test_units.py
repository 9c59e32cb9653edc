"""Units: how concentrated their importance is, and which are dead; SciPy and brute force."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import scipy.stats
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.networks import NETWORKS, Layers, labels, numpys, rows, tokens
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.usage.criteria import CRITERIA


@pytest.mark.parametrize("network", NETWORKS)
def test_the_usage_of_units_by_scipy(network):
    make, inputs_of = NETWORKS[network]
    usages = analyze(make(), [(inputs_of(30), labels(30))], criterion=list(CRITERIA),
                     loss=functional.cross_entropy)
    for layer in (layer for usage in usages.values() for layer in usage.layers.values()):
        units, importance = layer.unit_usage, layer.unit_importance
        assert importance.shape == (layer.units,) == (units.count,)
        if not importance.any():  # the last layer's way back is not asked for its past
            assert (units.entropy, units.effective, layer.dead) == (0, 0, True)
            continue
        entropy = scipy.stats.entropy(importance)
        assert units.entropy == pytest.approx(entropy, rel=1e-9, abs=1e-12)
        assert units.effective_share == pytest.approx(math.exp(entropy) / layer.units)
        assert units.low_share == pytest.approx((importance < 0.01 * importance.mean()).mean())


def dead(model: nn.Module, data, name: str = "0", **options) -> int | None:
    return analyze(model, data, criterion="magnitude", layers=[name], **options).layers[
        name].dead_units


def units_at_zero(outputs: Tensor) -> int:
    return int((numpys(outputs).reshape(-1, outputs.shape[-1]) == 0).all(0).sum())


def units_never_above_zero(outputs: Tensor) -> int:
    return int((numpys(outputs).reshape(-1, outputs.shape[-1]) <= 0).all(0).sum())


def partly_dead(*between: nn.Module, units: int = 40) -> nn.Sequential:
    """Units with a range of biases, so that some are never above zero; three are always zero."""
    model = nn.Sequential(nn.Linear(3, units), *between, nn.Linear(units, 2))
    model[0].bias.data.copy_(torch.linspace(-2, 2, units))
    model[0].weight.data[:3], model[0].bias.data[:3] = 0, 0
    return model.eval()


def applied(function: Callable[[Tensor], Tensor]) -> Layers:
    return Layers(lambda model, x: function(x))


RELUS = {
    "nn.ReLU": nn.ReLU(), "in place": nn.ReLU(inplace=True), "nn.ReLU6": nn.ReLU6(),
    "clamp": applied(lambda x: x.clamp(min=0)), "clamp_min": applied(lambda x: x.clamp_min(0.0)),
    "clip": applied(lambda x: x.clip(min=0)),
    "maximum": applied(lambda x: torch.maximum(x, torch.zeros_like(x))),
    "maximum of zero": applied(lambda x: torch.maximum(torch.tensor(0.0), other=x)),
    "max": applied(lambda x: x.max(torch.zeros(()))),
    "fmax": applied(lambda x: torch.fmax(x, torch.zeros(40))),
    "torch.relu": applied(torch.relu), "relu_": applied(lambda x: x.relu_()),
    "by a threshold": applied(lambda x: functional.threshold(x, 0, value=0.0)),
    "hardtanh": nn.Hardtanh(0, 3), "nn.Threshold": nn.Threshold(0, 0.0),
    "by keywords": applied(lambda x: functional.hardtanh(x, min_val=0, max_val=3)),
    "clamp_": applied(lambda x: x.clamp_(min=0.0)),
    "twice in a row": applied(lambda x: x.relu().relu()),
    "with dropout between": applied(lambda x: functional.relu6(functional.dropout(
        x.relu(), 0.5, training=False))),
    "at two places": applied(lambda x: x.relu() + torch.relu(x))}


@pytest.mark.parametrize("relu", RELUS.values(), ids=RELUS)
def test_units_never_above_zero_before_a_relu(relu):
    model, inputs = partly_dead(relu), rows(200, 3)
    expected = units_never_above_zero(model[0](inputs))
    assert 3 < expected < 40 and dead(model, inputs.split(45)) == expected


def test_the_larger_of_two_products_is_neithers():
    model = Layers(lambda model, x: model.head(torch.maximum(model.first(x),
                                                             model.second(x)).relu()),
                   first=nn.Linear(3, 8), second=nn.Linear(3, 8), head=nn.Linear(8, 2))
    model.first.bias.data[:3] = -100.0
    assert dead(model, rows(50, 3), "first") == 0


@pytest.mark.parametrize("after", [
    nn.Tanh(), nn.GELU(), nn.Identity(), nn.LeakyReLU(), nn.Hardtanh(), nn.Threshold(0, 1.0),
    applied(lambda x: x.clamp(-1)), applied(lambda x: x.clamp(max=0)),
    applied(lambda x: torch.clamp(x, torch.zeros(40))),
    applied(lambda x: torch.maximum(x, torch.full((40,), -1.0))),
    applied(lambda x: torch.minimum(x, torch.zeros(40)))])
def test_without_a_relu_only_units_that_are_always_zero(after):
    model, inputs = partly_dead(after), rows(200, 3)
    assert dead(model, inputs) == units_at_zero(model[0](inputs)) == 3


def test_batch_norm_before_the_relu_decides():
    norm = nn.BatchNorm1d(40)
    norm.running_mean.uniform_(-3, 3)
    norm.weight.data.uniform_(-1, 1)
    model, inputs = partly_dead(norm, nn.ReLU()), rows(200, 3)
    expected = units_never_above_zero(norm(model[0](inputs)))
    assert expected not in (units_never_above_zero(model[0](inputs)), 0)
    assert dead(model, inputs.split(7)) == expected


def test_units_of_a_convolution():
    model = nn.Sequential(nn.Conv2d(2, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
                          nn.Flatten(), nn.Linear(12 * 4, 2)).eval()
    model[0].bias.data.copy_(torch.linspace(-1.5, 1.5, 12))
    inputs = rows(30, 2, 6, 6)
    expected = units_never_above_zero(model[:2](inputs).movedim(1, -1))
    assert 0 < expected < 12 and dead(model, inputs.split(4)) == expected


def test_one_batch_far_back_makes_a_unit_alive():
    model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
    model[0].weight.data[:, 0] = torch.tensor([1.0, -1.0, 1.0])
    model[0].bias.data[:] = torch.tensor([0.0, 0.0, -5.0])
    below = [-torch.ones(4, 1)] * 70
    assert dead(model, below) == 2
    assert dead(model, [*below, torch.tensor([[-1.0], [1.0]]), *below]) == 1
    assert dead(model, [*below, torch.tensor([[-1.0], [6.0]]), *below]) == 0


def test_the_last_of_many_rows_makes_a_unit_alive():
    model, inputs = ones(nn.ReLU()), -torch.ones(900, 1)
    assert dead(model, inputs) == 3
    inputs[-1] = 1
    assert dead(model, inputs) == 0


def ones(*after: nn.Module) -> nn.Sequential:
    """Three units that pass a number on."""
    model = nn.Sequential(nn.Linear(1, 3, bias=False), *after, nn.Linear(3, 2))
    nn.init.ones_(model[0].weight)
    return model


@pytest.mark.parametrize(("relu_in", "expected"), [((), 0), ((0,), 0), ((1,), 0), ((0, 1), 1)])
def test_a_relu_in_one_of_two_calls_kills_nothing(relu_in, expected):
    """Where another call's output is used as it is, below zero is not dead."""
    def run(model: Layers, x: Tensor) -> Tensor:
        for call in (0, 1):
            x = model.layer(x)
            x = x.relu() if call in relu_in else x
        return model.head(x)

    model = Layers(run, layer=nn.Linear(3, 3), head=nn.Linear(3, 2))
    nn.init.eye_(model.layer.weight)
    model.layer.bias.data = torch.tensor([-5.0, 0.0, 5.0])
    assert dead(model, rows(50, 3), "layer") == expected


@pytest.mark.parametrize("after", [nn.Identity(), nn.ReLU()])
def test_what_is_padding_makes_no_unit_alive(after):
    x, mask = torch.zeros(4, 5, 1), (torch.arange(5) < 3).expand(4, 5)
    x[:, 3:] = 1.0
    model = Layers(lambda model, x, attention_mask: model.layers(x), layers=ones(after))
    assert dead(model, [{"x": x, "attention_mask": mask}], "layers.0") == 3
    assert dead(model, [{"x": x, "attention_mask": torch.ones(4, 5)}], "layers.0") == 0


def test_hidden_units_of_a_recurrent_layer_and_entries_of_an_embedding():
    model = Layers(lambda model, ids: model.head(model.rnn(model.embed(ids))[0][:, -1]),
                   embed=nn.Embedding(20, 5), head=nn.Linear(6, 2),
                   rnn=nn.RNN(5, 6, batch_first=True, nonlinearity="relu"))
    ids = tokens(20)
    model.embed.weight.data[:, 1:3] = 0
    model.rnn.bias_ih_l0.data.copy_(torch.linspace(-4, 4, 6))
    expected = units_at_zero(model.rnn(model.embed(ids))[0])
    assert 0 < expected < 6
    assert dead(model, ids.split(3), "embed") == 2
    assert dead(model, ids.split(3), "rnn.weight_ih_l0") == expected
    assert dead(model, ids.split(3), "rnn.weight_hh_l0") == expected


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_where_no_output_is_seen_nothing_is_said():
    model = Layers(lambda model, x: model.head(model.rnn(x)[0][:, -1]), head=nn.Linear(2, 2),
                   rnn=nn.LSTM(3, 5, batch_first=True, proj_size=2))
    layers = analyze(model, rows(4, 6, 3), criterion="magnitude").layers
    assert layers["rnn.weight_ih_l0"].dead_units is None
    assert layers["rnn.weight_hr_l0"].dead_units == 0


def test_a_relu_after_a_sum_made_in_place_says_nothing_of_the_layer_alone():
    def run(model: Layers, x: Tensor) -> Tensor:
        z = model.hidden(x)
        z += x
        return model.head(torch.relu(z))

    model = Layers(run, hidden=nn.Linear(3, 3), head=nn.Linear(3, 2))
    nn.init.zeros_(model.hidden.weight)
    model.hidden.bias.data = torch.tensor([-0.5, -0.5, 0.0])
    inputs = torch.tensor([[0.1, 0.9, -1.0], [0.2, 0.8, -1.0]])
    assert dead(model, inputs, "hidden") == 1  # zero for all data
