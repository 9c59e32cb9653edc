"""Units: how concentrated their importance is, and which are dead; SciPy and brute force."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.networks import NETWORKS, labels, mlp, numpys, rows, tokens
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.usage.criteria import CRITERIA


@pytest.mark.parametrize("network", NETWORKS)
def test_the_usage_of_units_by_scipy(network):
    make, inputs_of = NETWORKS[network]
    usages = analyze(make(), [(inputs_of(30), labels(30))], criterion=list(CRITERIA),
                     loss=functional.cross_entropy)
    for usage in usages.values():
        for layer in usage.layers.values():
            found, importance = layer.unit_usage, layer.unit_importance
            assert importance.shape == (layer.units,)
            assert found.count == layer.units
            if not importance.any():  # the last layer's way back is not asked for its past
                assert (found.entropy, found.effective, layer.dead) == (0, 0, True)
                continue
            entropy = scipy.stats.entropy(importance)
            assert found.entropy == pytest.approx(entropy, rel=1e-9, abs=1e-12)
            assert found.effective == pytest.approx(math.exp(entropy), rel=1e-9)
            assert found.effective_share == pytest.approx(math.exp(entropy) / layer.units)
            held = np.sort(importance)[::-1].cumsum()
            count = np.searchsorted(held, 0.9 * held[-1] * (1 - 1e-12)) + 1
            assert found.top90_share == pytest.approx(count / layer.units)
            low = (importance < 0.01 * importance.mean()).mean()
            assert found.low_share == pytest.approx(low)


def test_units_of_a_layer_that_never_matters():
    model = mlp(3, 8, 2)
    with torch.no_grad():
        model[0].weight.zero_()
    found = analyze(model, rows(9, 3)).layers["0"].unit_usage
    assert (found.count, found.entropy, found.effective, found.effective_share) == (8, 0, 0, 0)
    assert found.top90_share == 0


def dead(model: nn.Module, data, name: str = "0", **options) -> int | None:
    return analyze(model, data, criterion="magnitude", layers=[name], **options).layers[
        name].dead_units


def units_at_zero(outputs: Tensor) -> int:
    return int((numpys(outputs).reshape(-1, outputs.shape[-1]) == 0).all(0).sum())


def units_never_above_zero(outputs: Tensor) -> int:
    return int((numpys(outputs).reshape(-1, outputs.shape[-1]) <= 0).all(0).sum())


def partly_dead(*between: nn.Module, units: int = 40) -> nn.Sequential:
    """Units with a range of biases, so that some are never above zero; three are always zero."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, units), *between, nn.Linear(units, 2))
    with torch.no_grad():
        model[0].bias.copy_(torch.linspace(-2, 2, units))
        model[0].weight[:3], model[0].bias[:3] = 0, 0
    return model.eval()


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


RELUS = {
    "nn.ReLU": nn.ReLU(), "in place": nn.ReLU(inplace=True),
    "F.relu6": Applied(functional.relu6), "nn.ReLU6": nn.ReLU6(),
    "clamp": Applied(lambda x: x.clamp(min=0)), "clamp_min": Applied(lambda x: x.clamp_min(0.0)),
    "F.relu": Applied(functional.relu), "torch.relu": Applied(torch.relu),
    "Tensor.relu": Applied(lambda x: x.relu()), "relu_": Applied(lambda x: x.relu_()),
    "F.relu, in place": Applied(lambda x: functional.relu(x, inplace=True)),
}


@pytest.mark.parametrize("relu", RELUS.values(), ids=RELUS)
@pytest.mark.parametrize("cut", [200, 9])
def test_units_never_above_zero_before_a_relu(relu, cut):
    model, inputs = partly_dead(relu), rows(200, 3)
    expected = units_never_above_zero(model[0](inputs))
    assert 3 < expected < 40
    assert dead(model, inputs.split(cut)) == expected


@pytest.mark.parametrize("after", [nn.Tanh(), nn.GELU(), nn.Identity(), nn.LeakyReLU()],
                         ids=lambda module: type(module).__name__)
def test_without_a_relu_only_units_that_are_always_zero(after):
    model, inputs = partly_dead(after), rows(200, 3)
    assert dead(model, inputs) == units_at_zero(model[0](inputs)) == 3


def test_batch_norm_before_the_relu_decides():
    torch.manual_seed(2)
    norm = nn.BatchNorm1d(40)
    norm.running_mean.uniform_(-3, 3)
    with torch.no_grad():
        norm.weight.uniform_(-1, 1)
    model, inputs = partly_dead(norm, nn.ReLU()), rows(200, 3)
    expected = units_never_above_zero(norm(model[0](inputs)))
    assert expected not in (units_never_above_zero(model[0](inputs)), 0)
    assert dead(model, inputs.split(7)) == expected


def test_units_of_a_convolution():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(2, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
                          nn.Flatten(), nn.Linear(12 * 4, 2)).eval()
    with torch.no_grad():
        model[0].bias.copy_(torch.linspace(-1.5, 1.5, 12))
    inputs = rows(30, 2, 6, 6)
    expected = units_never_above_zero(model[:2](inputs).movedim(1, -1))
    assert 0 < expected < 12
    assert dead(model, inputs.split(4)) == expected


def test_one_batch_far_back_makes_a_unit_alive():
    model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight[:, 0] = torch.tensor([1.0, -1.0, 1.0])
        model[0].bias[:] = torch.tensor([0.0, 0.0, -5.0])
    below = [-torch.ones(4, 1)] * 70
    assert dead(model, below) == 2
    assert dead(model, [*below, torch.tensor([[-1.0], [1.0]]), *below]) == 1
    assert dead(model, [*below, torch.tensor([[-1.0], [6.0]]), *below]) == 0


def test_the_last_of_many_rows_makes_a_unit_alive():
    model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.zero_()
    inputs = -torch.ones(900, 1)
    assert dead(model, inputs) == 3
    inputs[-1] = 1
    assert dead(model, inputs) == 0


class Twice(nn.Module):
    """A layer whose output goes through a ReLU in the calls of these numbers only."""

    def __init__(self, *relu_in: int) -> None:
        super().__init__()
        self.relu_in = relu_in
        self.layer, self.head = nn.Linear(3, 3), nn.Linear(3, 2)
        with torch.no_grad():
            self.layer.weight.copy_(torch.eye(3))
            self.layer.bias.copy_(torch.tensor([-5.0, 0.0, 5.0]))

    def forward(self, x: Tensor) -> Tensor:
        for call in (0, 1):
            x = self.layer(x)
            x = x.relu() if call in self.relu_in else x
        return self.head(x)


@pytest.mark.parametrize(("relu_in", "expected"), [((), 0), ((0,), 0), ((1,), 0), ((0, 1), 1)])
def test_a_relu_in_one_of_two_calls_kills_nothing(relu_in, expected):
    """Where another call's output is used as it is, below zero is not dead."""
    assert dead(Twice(*relu_in), rows(50, 3), "layer") == expected


class Padded(nn.Module):
    def __init__(self, relu: bool) -> None:
        super().__init__()
        self.layer, self.head, self.relu = nn.Linear(1, 3), nn.Linear(3, 2), relu
        with torch.no_grad():
            self.layer.weight.fill_(1.0)
            self.layer.bias.zero_()

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.layer(x)
        return self.head(hidden.relu() if self.relu else hidden)


@pytest.mark.parametrize("relu", [False, True])
def test_what_is_padding_makes_no_unit_alive(relu):
    x = torch.zeros(4, 5, 1)
    mask = (torch.arange(5) < 3).expand(4, 5)
    x[:, 3:] = 1.0
    model = Padded(relu)
    assert dead(model, [{"x": x, "attention_mask": mask}], "layer") == 3
    assert dead(model, [{"x": x, "attention_mask": torch.ones(4, 5)}], "layer") == 0


def test_hidden_units_of_a_recurrent_layer_and_entries_of_an_embedding():
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(20, 5)
            self.rnn = nn.RNN(5, 6, batch_first=True, nonlinearity="relu")
            self.head = nn.Linear(6, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.rnn(self.embed(ids))[0][:, -1])

    torch.manual_seed(4)
    model, ids = Reader(), tokens(20)
    with torch.no_grad():
        model.embed.weight[:, 1:3] = 0
        model.rnn.bias_ih_l0.copy_(torch.linspace(-4, 4, 6))
    states = model.rnn(model.embed(ids))[0]
    expected = units_at_zero(states)
    assert 0 < expected < 6
    assert dead(model, ids.split(3), "embed") == 2
    assert dead(model, ids.split(3), "rnn.weight_ih_l0") == expected
    assert dead(model, ids.split(3), "rnn.weight_hh_l0") == expected


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_where_no_output_is_seen_nothing_is_said():
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(3, 5, batch_first=True, proj_size=2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][:, -1])

    torch.manual_seed(5)
    found = analyze(Projected(), rows(4, 6, 3), criterion="magnitude")
    assert found.layers["rnn.weight_ih_l0"].dead_units is None
    assert found.layers["rnn.weight_hr_l0"].dead_units == 0


class Residual(nn.Module):
    """What goes into the ReLU is a sum made in place; the layer alone is never above zero."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.out = nn.Linear(3, 3), nn.Linear(3, 2)
        self.hidden.weight.data.zero_()
        self.hidden.bias.data = torch.tensor([-0.5, -0.5, 0.0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.hidden(x)
        z += x
        return self.out(torch.relu(z))


def test_a_relu_after_a_sum_made_in_place_says_nothing_of_the_layer_alone():
    inputs = torch.tensor([[0.1, 0.9, -1.0], [0.2, 0.8, -1.0]])
    assert analyze(Residual(), inputs).layers["hidden"].dead_units == 1  # zero for all data


def test_a_positive_tensor_changed_in_place_is_summed_anew():
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.conv, self.out = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.relu(self.conv(x))
            h -= 1
            return self.out(h)

    model, inputs = Shifted(), torch.rand(4, 2, 5, 5, generator=torch.Generator().manual_seed(2))
    usage = analyze(model, inputs, criterion="input", layers=["out"])
    h = (torch.relu(model.conv(inputs)) - 1).abs().mean((0, 2, 3)).detach().double()
    expected = (model.out.weight.detach().double().abs().squeeze() * h).sum(1)
    assert usage.layers["out"].unit_importance == pytest.approx(expected.numpy(), rel=1e-6)
