"""Weights that hooks compute are baked into the copy that is cut; the model itself keeps them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import wua_mlflow as wua
from wua_mlflow.pruning.computed_weights import plain_weights
from wua_mlflow.pruning.cut import cut, rebuild, unit_groups

X = torch.rand(40, 4, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 2).long()
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")


def masked(layer: nn.Module) -> nn.Module:
    return prune.random_unstructured(layer, "weight", amount=0.4)


def twice(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(prune.l1_unstructured(layer, "bias", amount=0.3), "weight",
                                 amount=0.3)


class Symmetric(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.tanh() + weight.exp()


def parametrised_twice(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return parametrize.register_parametrization(layer, "bias", Symmetric())


NORMS = {"mask": masked, "masks": twice, "weight norm": nn.utils.weight_norm,
         "spectral norm": nn.utils.spectral_norm,
         "weight norm, parametrised": parametrizations.weight_norm,
         "spectral norm, parametrised": parametrizations.spectral_norm,
         "orthogonal": parametrizations.orthogonal, "parametrised twice": parametrised_twice}


def net(norm) -> nn.Sequential:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    norm(model[0])
    norm(model[2])
    model(X)
    return model.eval()


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_a_plain_copy_computes_the_same(norm):
    model = net(norm)
    before = model(X)
    names = [name for name, _ in model.named_parameters()]
    plain = plain_weights(model)
    assert torch.allclose(plain(X), before, atol=1e-6) and torch.equal(model(X), before)
    assert [name for name, _ in model.named_parameters()] == names, "left as found"
    assert not any(module._forward_pre_hooks or parametrize.is_parametrized(module)
               for module in plain.modules())
    assert plain_weights(plain) is plain


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_it_is_cut_and_rebuilt(norm):
    model = net(norm)
    narrower = wua.slim(model, (X, Y), widths={"0": 5, "2": 3})
    assert narrower.model[0].weight.shape == (5, 4) and narrower.model[4].weight.shape == (2, 3)
    again = rebuild(net(norm), X[:4], narrower.specification)
    again.load_state_dict(narrower.model.state_dict())
    assert torch.equal(again(X), narrower.model(X))
    structure = unit_groups(model, X[:4])
    assert [group.name for group in structure.groups] == ["0", "2"]
    kept = cut(model, X[:4], {"0": range(7)}, structure)
    assert kept.units["0"] == (8, 7)
    assert set(wua.recommend_widths(model, (X, Y), method="rank").widths) == {"0", "2"}
