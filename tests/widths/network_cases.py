"""Networks whose right width is known, and units removed by hand."""

from __future__ import annotations

import copy
from functools import cache

import torch
from torch import Tensor, nn

from tests.networks import mlp

Data = tuple[Tensor, Tensor]


def with_copies(*, read: bool) -> tuple[nn.Sequential, Data]:
    """32 hidden units that compute 3 functions, at other scales; its own classes are the targets.

    Args:
        read: whether all copies are read, or one of each alone.
    """
    draw = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))
    with torch.no_grad():
        scale = 2.0 ** torch.randint(-1, 2, (32, 1), generator=draw)
        model[0].weight.copy_(scale * torch.eye(3, 4).repeat(11, 1)[:32])
        model[0].bias.copy_(scale[:, 0] * torch.tensor([0.1, 0.2, 0.1]).repeat(11)[:32])
        model[2].weight.copy_(torch.randn(3, 32, generator=draw))
        if not read:
            model[2].weight[:, 3:] = 0
            model[2].weight[:, :3] = torch.eye(3) / scale[:3, 0]
        model[2].bias.copy_(torch.tensor([0.03, 0.0, -0.02]))  # no ties where all units are zero
    inputs = torch.randn(200, 4, generator=draw)
    return model, (inputs, model(inputs).argmax(1))


def trained(*widths: int, seed: int = 0) -> tuple[nn.Sequential, Data]:
    """An MLP trained on three rings of points, and 120 further points; trained once."""
    model, data = _trained(widths, seed)
    torch.manual_seed(seed)
    return copy.deepcopy(model), data


@cache
def _trained(widths: tuple[int, ...], seed: int) -> tuple[nn.Sequential, Data]:
    model = mlp(2, *widths, 3, seed=seed)
    inputs = torch.rand(360, 2) * 2 - 1
    targets = (inputs.norm(dim=1) * 2.5).long().clamp_max(2)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[:240]), targets[:240]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, (inputs[240:], targets[240:])


def without(model: nn.Sequential, removed: dict[int, list[int]]) -> nn.Sequential:
    """The MLP without units: rows of the layer at each index and columns of the next one."""
    layers = list(model)
    for index, units in removed.items():
        kept = [unit for unit in range(layers[index].out_features) if unit not in units]
        first, second = layers[index], layers[index + 2]
        layers[index] = _linear(first.weight[kept], first.bias[kept])
        layers[index + 2] = _linear(second.weight[:, kept], second.bias)
    return nn.Sequential(*layers)


def rescaled(model: nn.Sequential, factors: Tensor) -> nn.Sequential:
    """The same function: the first layer's units times factors, their readers divided by them."""
    first, relu, second, *others = model
    return nn.Sequential(_linear(first.weight * factors[:, None], first.bias * factors), relu,
                         _linear(second.weight / factors, second.bias), *others)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(*weight.T.shape)
    layer.weight, layer.bias = (nn.Parameter(part.detach().clone()) for part in (weight, bias))
    return layer
