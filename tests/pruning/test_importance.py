"""The importance of units, against autograd and projections on forwards written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.networks import labels, mlp, numpys, rows, snapshot
from tests.pruning.cutting_cases import Stream, greedy, residual
from wua_mlflow.pruning.activations import consumer_inputs
from wua_mlflow.pruning.cut import cut, unit_groups
from wua_mlflow.pruning.importance import most_important, pivoted_cholesky, unit_importance
from wua_mlflow.pruning.unit_groups import UnitGroups
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


def read_by_the_norms(model: nn.Module, x: Tensor) -> list[Tensor]:
    """What each block and the head of ``cutting_cases.Stream`` reads, in that order."""
    read, x = [], model.stem(x)
    for norm, up, act, down in model.blocks:
        read.append(norm(x))
        x = x + down(act(up(read[-1])))
    return [*read, model.norm(x)]


def test_of_the_models_width_by_all_that_read_it_after_their_norms():
    torch.manual_seed(0)
    model, (x, y) = Stream().eval(), DATA
    structure = unit_groups(model, x[:4], ("stream",))
    assert [(group.name, group.kind, group.units) for group in structure.groups] == [
        ("stem", "stream", 12)]
    read = read_by_the_norms(model, x)
    weights = [model.blocks[0][1].weight, model.blocks[1][1].weight, model.head.weight]
    handed = [each.detach().requires_grad_() for each in read]
    hidden = model.stem(x)
    for each, (_, up, act, down) in zip(handed, model.blocks, strict=False):
        hidden = hidden + down(act(up(each)))
    by_head, = torch.autograd.grad(cross_entropy(model.head(handed[2]), y), handed[2:])
    expected = (handed[2] * by_head).sum(0)
    for place in (0, 1):  # what a block's reading does, through all that comes after
        hidden = model.stem(x)
        for number, (norm, up, act, down) in enumerate(model.blocks):
            given = handed[place] if number == place else norm(hidden)
            hidden = hidden + down(act(up(given)))
        gradient, = torch.autograd.grad(
            cross_entropy(model.head(model.norm(hidden)), y), [handed[place]])
        expected = expected + (handed[place] * gradient).sum(0)
    found = unit_importance(model, structure, DATA, cross_entropy)["stem"]
    torch.testing.assert_close(found, expected.abs().double(), rtol=1e-4, atol=1e-7)
    centred = [numpys(each - each.mean(0)) for each in read]
    norms = np.sqrt(sum(numpys(weight.square().sum(0)) for weight in weights))
    scatter = sum(each.T @ each for each in centred) * np.outer(norms, norms)
    torch.testing.assert_close(
        spanning_of(model, structure, x), pivoted_cholesky(torch.from_numpy(scatter).double()),
        rtol=1e-3, atol=1e-6)
    makers = [model.stem, *(block[3] for block in model.blocks)]
    squares = sum(maker.weight.square().sum(1) + maker.bias.square() for maker in makers) + sum(
        norm.weight.square() + norm.bias.square() for norm in model.modules()
        if isinstance(norm, nn.LayerNorm)) + sum(weight.square().sum(0) for weight in weights)
    torch.testing.assert_close(unit_importance(model, structure, criterion="magnitude")["stem"],
                               squares.sqrt().double(), rtol=1e-4, atol=1e-7)


def spanning_of(model: nn.Module, structure: UnitGroups, x: Tensor) -> Tensor:
    return unit_importance(model, structure, (x, torch.zeros(len(x))), criterion="spanning")["stem"]


def test_of_the_models_width_by_those_that_can_be_seen():
    """Attention's fused weight and a tied embedding cannot; the others are enough."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    encoder = nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 3)).eval()
    x = rows(20, 5, 4)
    group = unit_groups(encoder, x[:4], ("stream",)).groups[0]
    assert "1.self_attn.in_proj_weight" in [reader.parameter for reader in group.readers]
    seen = consumer_inputs(encoder, group)
    assert [consumer.reader.parameter for consumer in seen] == ["1.linear1.weight", "2.weight"]
    spans = unit_importance(encoder, UnitGroups((group,), {}), (x, torch.zeros(20)),
                            criterion="spanning")[group.name]
    assert spans.shape == (8,) and float(spans.max()) > 0
