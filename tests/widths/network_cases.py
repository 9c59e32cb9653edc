"""Networks whose right width is known, and units removed by hand."""

from __future__ import annotations

import copy
from functools import cache

import torch
from torch import Tensor, nn


def with_copies(*, read: bool) -> tuple[nn.Sequential, tuple[Tensor, Tensor]]:
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


def trained(
    *widths: int, seed: int = 0, steps: int = 150
) -> tuple[nn.Sequential, tuple[Tensor, Tensor]]:
    """An MLP trained on three rings of points, and 120 further points; trained once."""
    torch.manual_seed(seed)
    model, data = _trained(widths, seed, steps)
    return copy.deepcopy(model), data


@cache
def _trained(
    widths: tuple[int, ...], seed: int, steps: int
) -> tuple[nn.Sequential, tuple[Tensor, Tensor]]:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for left, right in zip((2, *widths), (*widths, 3), strict=True):
        layers += [nn.Linear(left, right), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    inputs = torch.rand(360, 2) * 2 - 1
    targets = (inputs.norm(dim=1) * 2.5).long().clamp_max(2)
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[:240]), targets[:240]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, (inputs[240:], targets[240:])


def without(model: nn.Sequential, removed: dict[int, list[int]]) -> nn.Sequential:
    """The MLP without units: rows of the layer at each index and columns of the next one."""
    found = list(model)
    for index, units in removed.items():
        kept = [unit for unit in range(found[index].out_features) if unit not in units]
        first, second = found[index], found[index + 2]
        found[index] = _linear(first.weight[kept], first.bias[kept])
        found[index + 2] = _linear(second.weight[:, kept], second.bias)
    return nn.Sequential(*found)


def rescaled(model: nn.Sequential, index: int, factors: Tensor) -> nn.Sequential:
    """The same function: a layer's units times factors, their readers divided by them."""
    found = list(model)
    first, second = found[index], found[index + 2]
    found[index] = _linear(first.weight * factors[:, None], first.bias * factors)
    found[index + 2] = _linear(second.weight / factors, second.bias)
    return nn.Sequential(*found)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(
        bias.detach().clone())
    return layer
