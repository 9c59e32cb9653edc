"""The importance of units, against autograd and projections on forwards written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.networks import labels, mlp, numpys, rows, snapshot
from tests.pruning.cutting_cases import greedy, residual
from wua_mlflow.pruning.cut import cut, unit_groups
from wua_mlflow.pruning.importance import most_important, pivoted_cholesky, unit_importance
from wua_mlflow.usage.analyze import analyze

DATA = rows(50, 4), labels(50, 3)


def spanning(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return unit_importance(model, unit_groups(model, x[:2]), (x, torch.zeros(len(x))),
                           criterion="spanning")


def test_taylor_is_the_mean_product_of_activation_and_gradient():
    model = mlp(4, 6, 5, 3)
    importance = unit_importance(model, unit_groups(model, DATA[0][:4]), DATA, cross_entropy)
    first = model[0](DATA[0]).relu()
    second = model[2](first).relu()
    loss = cross_entropy(model[4](second), DATA[1])
    activations = {"0": first, "2": second}
    for (name, units), gradient in zip(
            activations.items(), torch.autograd.grad(loss, [first, second]), strict=True):
        torch.testing.assert_close(importance[name], (units * gradient).sum(0).abs().double(),
                                   rtol=1e-4, atol=1e-8)


def test_of_units_that_several_layers_read():
    """A residual sum: what the block reads and what the head reads, together."""
    model, data = residual(5, 4).eval(), (rows(12, 3, 6, 6), labels(12, 4))
    inputs, targets = data
    skip = model.bn0(model.stem(inputs)).relu()
    read = skip.clone()
    inner = model.bn1(model.conv1(read)).relu()
    out = (skip + model.bn2(model.conv2(inner))).relu()
    loss = cross_entropy(model.head(out.mean((2, 3))), targets)
    by_read, by_out = torch.autograd.grad(loss, [read, out])
    expected = ((read * by_read).sum((0, 2, 3)) + (out * by_out).sum((0, 2, 3))).abs()
    importance = unit_importance(model, unit_groups(model, inputs[:4]), data, cross_entropy)
    torch.testing.assert_close(importance["stem"], expected.double(), rtol=1e-3, atol=1e-7)


def test_a_rescaled_network_has_the_same_importance_and_is_left_as_found():
    model = mlp(4, 6, 3)
    structure = unit_groups(model, DATA[0][:4])
    model.train()

    def importances():
        before = snapshot(model)
        result = [unit_importance(model, structure, DATA, cross_entropy, criterion=criterion)["0"]
                  for criterion in ("taylor", "spanning", "magnitude")]
        assert snapshot(model) == before
        return result

    taylor, spanned, magnitude = importances()
    factors = torch.tensor([0.1, 10.0, 3.0, 1.0, 0.5, 7.0])
    with torch.no_grad():
        model[0].weight.mul_(factors[:, None])
        model[0].bias.mul_(factors)
        model[2].weight.div_(factors)
    after = importances()
    torch.testing.assert_close(after[0], taylor, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(after[1], spanned, rtol=1e-4, atol=1e-9)
    assert not torch.allclose(after[2], magnitude, rtol=0.1)


def test_magnitude_is_the_norm_of_all_weights_of_a_unit_and_random_is_the_seeds():
    model = mlp(4, 6, 3)
    structure = unit_groups(model, DATA[0][:4])
    made, read = model[0].weight.double(), model[2].weight.double()
    expected = (made.square().sum(1) + model[0].bias.double() ** 2 + read.square().sum(0)).sqrt()
    importance = unit_importance(model, structure, criterion="magnitude")
    torch.testing.assert_close(importance["0"], expected.detach())
    once, again, other = (unit_importance(nn.Identity(), structure, criterion="random", seed=seed)
                          for seed in (1, 1, 2))
    assert torch.equal(once["0"], again["0"]) and not torch.equal(once["0"], other["0"])


@pytest.mark.parametrize("criterion", ["output", "input", "wanda"])
def test_other_criteria_are_the_analysis_summed_over_the_groups_layers(criterion):
    model = residual(5, 4).eval()
    inputs = rows(12, 3, 6, 6)
    usage = analyze(model, inputs, criterion=criterion)
    importance = unit_importance(model, unit_groups(model, inputs[:4]), (inputs, labels(12, 4)),
                                 criterion=criterion)
    units = {name: torch.as_tensor(layer.unit_importance) for name, layer in usage.layers.items()}
    for name, expected in (("stem", units["stem"] + units["conv2"]), ("conv1", units["conv1"])):
        torch.testing.assert_close(importance[name], expected, rtol=1e-5, atol=1e-9)


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


def test_spanning_is_the_greedy_order_of_units_scaled_by_the_weights_that_read_them():
    values = np.random.default_rng(0).normal(size=(50, 9)) @ np.random.default_rng(1).normal(
        size=(9, 9))
    centred = torch.from_numpy(values - values.mean(0))
    assert pivoted_cholesky(centred.T @ centred).numpy() == pytest.approx(greedy(values), rel=1e-9)
    model, x = mlp(5, 8, 6, 3), torch.randn(200, 5)
    importance = spanning(model, x)
    expected = greedy(numpys(model[0](x).relu()) * np.linalg.norm(numpys(model[2].weight), axis=0))
    assert importance["0"].numpy() == pytest.approx(expected, rel=1e-5)
    assert list(importance) == ["0", "2"] and importance["2"].shape == (6,)


def test_a_copy_and_a_constant_add_nothing_however_large():
    model, x = mlp(5, 8, 3), torch.randn(200, 5)
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3] = 10 * model[0].weight[6], 10 * model[0].bias[6]
        model[0].weight[1], model[0].bias[1] = 0.0, 3.0
    importance = spanning(model, x)["0"]
    assert importance[1] == 0
    assert importance[6] < 1e-8 * importance[3]
    taylor = unit_importance(model, unit_groups(model, x[:2]), (x, torch.randint(3, (200,))),
                             cross_entropy)["0"]
    assert taylor.argmin() != 6
    result = cut(model, x[:4], {"0": most_important(importance, 6)})
    assert not torch.isin(model[0].weight[[1, 6]], result.model[0].weight).any()


def test_channels_are_seen_at_every_position():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Flatten())
    x = torch.randn(8, 2, 9, 9)
    maps = numpys(model[0](x).relu().movedim(1, -1).reshape(-1, 4))
    norms = numpys(model[2].weight.transpose(0, 1).flatten(1).norm(dim=1))
    assert spanning(model, x)["0"].numpy() == pytest.approx(greedy(maps * norms), rel=1e-5)


def test_spanning_takes_heads_by_taylor():
    model, x = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).eval(), torch.randn(20, 5, 8)
    data, structure = (x, torch.randint(8, (20, 5))), unit_groups(model, x[:2])

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs.flatten(0, 1), targets.flatten())

    kinds = {group.name: group.kind for group in structure.groups}
    assert set(kinds.values()) == {"heads", "units"}
    importance = unit_importance(model, structure, data, loss, criterion="spanning")
    taylor = unit_importance(model, structure, data, loss)
    for name, kind in kinds.items():
        assert torch.equal(importance[name], taylor[name]) == (kind == "heads"), name
    with pytest.raises(ValueError, match="^loss: expected the mean loss"):
        unit_importance(model, structure, data, criterion="spanning")
