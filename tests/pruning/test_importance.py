"""The importance of units, against autograd on forwards written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tests.networks import kept_streams, labels, mlp, rows, snapshot
from tests.pruning.cutting_cases import Residual
from wua_mlflow.pruning.cut import unit_groups
from wua_mlflow.pruning.importance import most_important, unit_importance
from wua_mlflow.usage.analyze import analyze


@pytest.fixture(autouse=True)
def _seeded():
    with kept_streams():
        torch.manual_seed(0)
        yield


DATA = rows(50, 4), labels(50, 3)


def products(model, data):
    """Mean over the samples of activation · gradient, after each ReLU."""
    inputs, targets = data
    first = model[0](inputs).relu()
    first.retain_grad()
    second = model[2](first).relu()
    second.retain_grad()
    cross_entropy(model[4](second), targets).backward()
    model.zero_grad(set_to_none=True)
    return {"0": (first * first.grad).sum(0).abs(), "2": (second * second.grad).sum(0).abs()}


def test_taylor_is_the_mean_product_of_activation_and_gradient():
    model = mlp(4, 6, 5, 3)
    before = snapshot(model)
    found = unit_importance(model, unit_groups(model, DATA[0][:4]), DATA, cross_entropy)
    assert snapshot(model) == before
    for name, expected in products(model, DATA).items():
        torch.testing.assert_close(found[name], expected.double(), rtol=1e-4, atol=1e-8)


def test_of_units_that_several_layers_read():
    """A residual sum: what the block reads and what the head reads, together."""
    model, data = Residual(5, 4).eval(), (rows(12, 3, 6, 6), labels(12, 4))
    inputs, targets = data
    skip = model.bn0(model.stem(inputs)).relu()
    read = skip.clone()
    read.retain_grad()
    inner = model.bn1(model.conv1(read)).relu()
    out = (skip + model.bn2(model.conv2(inner))).relu()
    out.retain_grad()
    cross_entropy(model.head(out.mean((2, 3))), targets).backward()
    expected = ((read * read.grad).sum((0, 2, 3)) + (out * out.grad).sum((0, 2, 3))).abs()
    found = unit_importance(model, unit_groups(model, inputs[:4]), data, cross_entropy)
    torch.testing.assert_close(found["stem"], expected.detach().double(), rtol=1e-3, atol=1e-7)


def test_taylor_does_not_change_when_the_network_is_rescaled():
    model = mlp(4, 6, 3)
    structure = unit_groups(model, DATA[0][:4])
    before = unit_importance(model, structure, DATA, cross_entropy)["0"]
    magnitude = unit_importance(model, structure, criterion="magnitude")["0"]
    with torch.no_grad():
        factors = torch.tensor([0.1, 10.0, 3.0, 1.0, 0.5, 7.0])
        model[0].weight.mul_(factors[:, None])
        model[0].bias.mul_(factors)
        model[2].weight.div_(factors)
    after = unit_importance(model, structure, DATA, cross_entropy)["0"]
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-9)
    assert not torch.allclose(
        unit_importance(model, structure, criterion="magnitude")["0"], magnitude, rtol=0.1)


def test_magnitude_is_the_norm_of_all_weights_of_a_unit():
    model = mlp(4, 6, 3)
    made, read = model[0].weight.double(), model[2].weight.double()
    expected = (made.square().sum(1) + model[0].bias.double() ** 2 + read.square().sum(0)).sqrt()
    found = unit_importance(model, unit_groups(model, DATA[0][:4]), criterion="magnitude")
    torch.testing.assert_close(found["0"], expected.detach())


@pytest.mark.parametrize("criterion", ["output", "input", "wanda"])
def test_other_criteria_are_the_analysis_summed_over_the_groups_layers(criterion):
    model = Residual(5, 4).eval()
    inputs = rows(12, 3, 6, 6)
    usage = analyze(model, inputs, criterion=criterion)
    found = unit_importance(model, unit_groups(model, inputs[:4]), (inputs, labels(12, 4)),
                            criterion=criterion)
    units = {name: torch.as_tensor(layer.unit_importance) for name, layer in usage.layers.items()}
    torch.testing.assert_close(found["stem"], units["stem"] + units["conv2"], rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(found["conv1"], units["conv1"], rtol=1e-5, atol=1e-9)


def test_random_is_the_seeds():
    structure = unit_groups(mlp(4, 6, 3), DATA[0][:4])
    once, again, other = (unit_importance(nn.Identity(), structure, criterion="random", seed=seed)
                          for seed in (1, 1, 2))
    assert torch.equal(once["0"], again["0"]) and not torch.equal(once["0"], other["0"])


@pytest.mark.parametrize(("options", "message"), [
    ({}, "data: expected inputs and targets for taylor, but got none"),
    ({"data": DATA}, "loss: expected the mean loss of (outputs, targets) for taylor, but got none"),
    ({"data": DATA, "criterion": "tailor"}, "criterion: expected"),
    ({"criterion": "wanda"}, "data: expected inputs and targets for wanda, but got none"),
])
def test_what_is_refused(options, message):
    model = mlp(4, 6, 3)
    with pytest.raises(ValueError) as raised:
        unit_importance(model, unit_groups(model, DATA[0][:4]), **options)
    assert str(raised.value).startswith(message)


def test_the_first_of_equal_units_stay():
    assert most_important(torch.tensor([1.0, 2.0, 1.0, 0.5]), 2) == [0, 1]
    assert most_important(torch.ones(4), 3) == [0, 1, 2]
