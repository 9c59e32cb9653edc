"""What reads units that are cut reads the others for them, as far as these tell: a linear fit.

The correction of the next weights that belongs to a selection by ``spanning``.
May import: torch, its own package. Tests: ``tests/slimming/test_folding.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wua_mlflow.pruning.activations import Moments, consumer_inputs, forwards, moments
from wua_mlflow.pruning.unit_groups import ParameterSlice, UnitGroups, names_by_tensor

__all__ = ["folded"]


_RIDGE = 1e-3
"""Added to the diagonal of the normal equations, a share of its mean."""


def folded(
    model: nn.Module,
    structure: UnitGroups,
    keep: Mapping[str, Sequence[int]],
    inputs: Tensor,
) -> nn.Module:
    """A copy whose units that stay are read for those that go, too; it still has all units.

    Each unit that goes is fitted to those of its group that stay, by least squares over all that
    the readers read; a reader's weights of it are added, by that fit, to its weights of the others,
    and what is left of the mean to its bias. Cut afterwards, the network computes what it did, as
    far as the fits hold (the correction of the interpolative decomposition: Chee et al. 2022, arXiv
    2108.00065, section 3). A convolution that pads, or has no bias, is fitted without the mean.

    Left as they are: readers whose input cannot be seen (attention heads, a recurrent layer's own
    weights), and weights that are tied to others.

    Args:
        model: unwrapped; left as found.
        structure: its groups.
        keep: by name of a group the units that stay.
        inputs: shape (samples, ...), of training data.

    >>> from wua_mlflow.slimming import unit_groups
    >>> net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> for weight, value in zip(net.parameters(), ([[1.0], [2.0]], [0.0, 0.0], [[5.0, 3.0]])):
    ...     _ = weight.data.copy_(torch.tensor(value))
    >>> groups, x = unit_groups(net, torch.zeros(2, 1)), torch.tensor([[0.5], [1.0]])
    >>> folded(net, groups, {"0": [1]}, x)[2].weight.round(decimals=2).tolist()
    [[5.0, 5.5]]
    """
    made = copy.deepcopy(model)
    groups = {name: structure.group(name) for name in keep}
    found = {name: consumer_inputs(made, group) for name, group in groups.items()}
    seen = {name: own for name, own in found.items() if not isinstance(own, str)}
    aliases = names_by_tensor(made)
    known = moments(made, seen, lambda: forwards(made, inputs)) if seen else {}
    for name, own in known.items():
        stay = sorted(keep[name])
        go = sorted(set(range(groups[name].units)) - set(stay))
        readers = [one for one in groups[name].readers
                   if not one.parameter.rpartition(".")[2].startswith("weight_hh")]
        for reader, one in zip(readers, own, strict=True):
            if go and one.count and len(aliases[reader.parameter]) == 1:
                _fold(made, reader, one, (stay, go))
    return made


def _fold(
    model: nn.Module, reader: ParameterSlice, seen: Moments, units: tuple[list[int], list[int]]
) -> None:
    stay, go = units
    module = model.get_submodule(reader.parameter.rpartition(".")[0])
    bias = getattr(module, "bias", None)
    shifts = isinstance(bias, nn.Parameter) and not _pads(module)
    mean, scatter = seen.mean.cpu(), seen.scatter.cpu()
    if not shifts:
        scatter = scatter + seen.count * torch.outer(mean, mean)
    fit = _fitted(scatter, stay, go)
    if fit is None:
        return
    weight = model.get_parameter(reader.parameter)
    rows = weight.detach().movedim(reader.dim, 0).double().cpu()  # by what they read
    places = torch.tensor(reader.columns)
    with torch.no_grad():
        for gone, kept in zip(places[go].T, places[stay].T, strict=True):
            if shifts:
                left = torch.tensordot(mean[go] - fit.T @ mean[stay], rows[gone], 1)
                bias += left.flatten(1).sum(1).to(bias) if left.dim() > 1 else left.to(bias)
            rows[kept] += torch.tensordot(fit, rows[gone], 1)
        weight.copy_(rows.movedim(0, reader.dim))


def _fitted(scatter: Tensor, stay: list[int], go: list[int]) -> Tensor | None:
    """How those that go come of those that stay, shape (stay, go); None where none varies."""
    own = scatter[stay][:, stay]
    ridge = _RIDGE * own.diagonal().mean()
    if not bool(ridge > 0):
        return None
    eye = torch.eye(len(stay), dtype=own.dtype)
    return torch.linalg.solve(own + ridge * eye, scatter[stay][:, go])


def _pads(module: Any) -> bool:
    """Whether some outputs of a convolution read zeros that stand for no activation."""
    if not isinstance(module, nn.modules.conv._ConvNd):
        return False
    padding = module.padding
    return module.transposed or (padding == "same" if isinstance(padding, str) else any(padding))
