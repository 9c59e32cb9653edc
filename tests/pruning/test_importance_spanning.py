"""What a unit adds to those before it, against projections written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.pruning.selection_cases import greedy
from wua_mlflow.pruning.cut import cut, unit_groups
from wua_mlflow.pruning.importance import most_important, pivoted_cholesky, unit_importance


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def importance_of(model: nn.Module, x: Tensor, **options: object) -> dict[str, Tensor]:
    return unit_importance(model, unit_groups(model, x[:2]), (x, torch.zeros(len(x))),
                           criterion="spanning", **options)  # type: ignore[arg-type]


def test_the_order_is_the_greedy_one():
    rows = np.random.default_rng(0).normal(size=(50, 9)) @ np.random.default_rng(1).normal(
        size=(9, 9))
    centred = torch.from_numpy(rows - rows.mean(0))
    assert pivoted_cholesky(centred.T @ centred).numpy() == pytest.approx(greedy(rows), rel=1e-9)


def test_units_are_scaled_by_the_weights_that_read_them():
    model, x = mlp(), torch.randn(200, 5)
    found = importance_of(model, x)
    first = torch.relu(model[0](x)).detach().double().numpy()
    norms = model[2].weight.detach().double().norm(dim=0).numpy()
    assert found["0"].numpy() == pytest.approx(greedy(first * norms), rel=1e-5)
    assert list(found) == ["0", "2"] and found["2"].shape == (6,)


def test_a_copy_adds_nothing_however_large():
    model, x = mlp(), torch.randn(200, 5)
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3] = 10 * model[0].weight[6], 10 * model[0].bias[6]
    found = importance_of(model, x)["0"]
    assert found[6] < 1e-8 * found[3]
    taylor = unit_importance(model, unit_groups(model, x[:2]), (x, torch.randint(3, (200,))),
                             functional.cross_entropy)["0"]
    assert taylor.argmin() != 6
    kept = cut(model, x[:4], {"0": most_important(found, 7)})
    assert not torch.isin(model[0].weight[6], kept.model[0].weight).all()


def test_a_rescaled_network_has_the_same_importance():
    model, x = mlp(), torch.randn(100, 5)
    before = importance_of(model, x)["0"]
    with torch.no_grad():
        model[0].weight[2] *= 7
        model[0].bias[2] *= 7
        model[2].weight[:, 2] /= 7
    assert importance_of(model, x)["0"].numpy() == pytest.approx(before.numpy(), rel=1e-4)


def test_units_that_never_change_add_nothing():
    model, x = mlp(), torch.randn(100, 5)
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 0.0, 3.0
    assert importance_of(model, x)["0"][1] == 0


def test_channels_are_seen_at_every_position():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Flatten())
    x = torch.randn(8, 2, 9, 9)
    maps = torch.relu(model[0](x)).detach().double().movedim(1, -1).reshape(-1, 4).numpy()
    norms = model[2].weight.detach().double().transpose(0, 1).flatten(1).norm(dim=1).numpy()
    assert importance_of(model, x)["0"].numpy() == pytest.approx(greedy(maps * norms), rel=1e-5)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.forward_part = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head((x + self.forward_part(x)).mean(1))


def test_heads_are_taken_by_taylor():
    model, x, y = Heads(), torch.randn(20, 5, 8), torch.randint(3, (20,))
    structure = unit_groups(model, x[:2])
    kinds = {group.name: group.kind for group in structure.groups}
    assert "heads" in kinds.values() and len(kinds) > 1
    found = unit_importance(model, structure, (x, y), functional.cross_entropy,
                            criterion="spanning")
    taylor = unit_importance(model, structure, (x, y), functional.cross_entropy)
    for name, kind in kinds.items():
        assert torch.equal(found[name], taylor[name]) == (kind == "heads"), name
    with pytest.raises(ValueError, match="^loss: expected the mean loss"):
        unit_importance(model, structure, (x, y), criterion="spanning")


def test_the_model_is_left_as_found():
    model, x = mlp().train(), torch.randn(10, 5)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    importance_of(model, x)
    assert model.training and not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
