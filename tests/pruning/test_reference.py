"""The reference of a cut: norms over the units that stay, by hand and by narrower networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.networks import Layers, rows, snapshot
from wua_mlflow.pruning.cut import cut, unit_groups
from wua_mlflow.pruning.reference import outputs_without
from wua_mlflow.pruning.unit_groups import masked


def stream(norm: nn.Module) -> nn.Module:
    """A residual stream under a norm; takes (samples, 4)."""
    torch.manual_seed(0)
    return Layers(lambda net, x: net.head(net.norm(net.embed(x) + net.mixed(net.embed(x)))),
                  embed=nn.Linear(4, 6), mixed=nn.Linear(6, 6), norm=norm,
                  head=nn.Linear(6, 2)).eval()


def narrower(model: Any, kept: list[int], norm: nn.Module) -> nn.Module:
    """The same network, built with the units that stay and their weights."""
    small = Layers(lambda net, x: net.head(net.norm(net.embed(x) + net.mixed(net.embed(x)))),
                   embed=nn.Linear(4, len(kept)), mixed=nn.Linear(len(kept), len(kept)), norm=norm,
                   head=nn.Linear(len(kept), 2)).eval()
    with torch.no_grad():
        small.embed.weight.copy_(model.embed.weight[kept])
        small.embed.bias.copy_(model.embed.bias[kept])
        small.mixed.weight.copy_(model.mixed.weight[kept][:, kept])
        small.mixed.bias.copy_(model.mixed.bias[kept])
        small.head.weight.copy_(model.head.weight[:, kept])
        small.head.bias.copy_(model.head.bias)
        for name, weight in norm.named_parameters():
            weight.copy_(model.norm.get_parameter(name)[kept])
    return small


class ByHand(nn.Module):
    """As models write norms themselves; without weights."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "rms":
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        if self.how == "var_mean":
            variance, mean = torch.var_mean(x, -1, keepdim=True, correction=0)
            return (x - mean) / (variance + 1e-6).sqrt()
        return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


NORMS = {"layer norm": (nn.LayerNorm(6), lambda n: nn.LayerNorm(n)),
         "no weights": (nn.LayerNorm(6, elementwise_affine=False),
                        lambda n: nn.LayerNorm(n, elementwise_affine=False)),
         "rms norm": (nn.RMSNorm(6), nn.RMSNorm),
         "group norm": (nn.GroupNorm(1, 6), lambda n: nn.GroupNorm(1, n)),
         **{how: (ByHand(how), lambda n, how=how: ByHand(how))
            for how in ("rms", "var_mean", "l2")}}


@pytest.mark.parametrize(("norm", "smaller"), NORMS.values(), ids=NORMS)
def test_it_is_the_network_built_narrower(norm, smaller):
    with torch.no_grad():
        for weight in norm.parameters():
            weight.uniform_(0.5, 1.5)
    model, x, kept = stream(norm), rows(5, 4), [0, 2, 5]
    structure = unit_groups(model, x, ("stream",))
    group, = structure.groups
    with torch.no_grad():
        before = snapshot(model)
        found = outputs_without(model, structure, {group.name: group.others(kept)},
                                lambda: model(x))
        assert snapshot(model) == before
        expected = narrower(model, kept, smaller(3))(x)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        with masked(model, structure, {group.name: group.others(kept)}):
            assert not torch.allclose(model(x), expected, atol=1e-3), "zeros are not enough"
    pruned = cut(model, x, {group.name: kept}, structure).model
    torch.testing.assert_close(pruned(x), expected, rtol=1e-5, atol=1e-6)


def test_whole_groups_of_a_group_norm():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.GroupNorm(3, 6), nn.Conv2d(6, 2, 1)).eval()
    x = rows(2, 3, 5, 5)
    structure = unit_groups(model, x)
    group, = structure.groups
    kept = [0, 1, 4, 5]
    small = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        small[0].weight.copy_(model[0].weight[kept])
        small[0].bias.copy_(model[0].bias[kept])
        small[2].weight.copy_(model[2].weight[:, kept])
        small[2].bias.copy_(model[2].bias)
        found = outputs_without(model, structure, {group.name: [1]}, lambda: model(x))
        torch.testing.assert_close(found, small(x), rtol=1e-5, atol=1e-6)


def test_units_under_no_norm_are_silenced_where_they_are_read():
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 2)), rows(3, 4)
    structure = unit_groups(model, x)
    with torch.no_grad():
        expected = model[2](model[1](model[0](x)) * torch.tensor([1.0, 0, 1, 1, 0, 1]))
        found = outputs_without(model, structure, {"0": [1, 4]}, lambda: model(x))
    torch.testing.assert_close(found, expected)
