"""Compensation of removed units in the layers that read them, by least squares.

The correction of the next weights that belongs to a selection by the criterion ``spanning``.
Tests: ``tests/pruning/test_compensation.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wua_mlflow.module_attributes import copied
from wua_mlflow.pruning.activations import Moments, measure_moments, run_over
from wua_mlflow.pruning.unit_groups import ParameterSlice, UnitGroups, tied_names

__all__ = ["compensated"]


_RIDGE = 1e-3
"""Added to the diagonal of the normal equations, a share of its mean."""


def compensated(
    model: nn.Module, structure: UnitGroups, keep: Mapping[str, Sequence[int]], data: Any
) -> nn.Module:
    """A copy whose next layers compensate for the units to be removed; it still has all units.

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
        data: training data, as ``Batches`` takes them.

    >>> from wua_mlflow.pruning.cut import unit_groups
    >>> net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> for weight, value in zip(net.parameters(), ([[1.0], [2.0]], [0.0, 0.0], [[5.0, 3.0]])):
    ...     _ = weight.data.copy_(torch.tensor(value))
    >>> groups, x = unit_groups(net, torch.zeros(2, 1)), torch.tensor([[0.5], [1.0]])
    >>> compensated(net, groups, {"0": [1]}, x)[2].weight.round(decimals=2).tolist()
    [[5.0, 5.5]]
    """
    result = copied(model)
    aliases = tied_names(result)
    groups = [structure.group(name) for name in keep]
    measured, _ = measure_moments(result, groups, lambda: run_over(result, data))
    for name, consumers in measured.items():
        kept = sorted(keep[name])
        removed = structure.group(name).others(kept)
        for consumer, moments in consumers:
            if removed and moments.count and len(aliases[consumer.reader.parameter]) == 1:
                _compensate(result, consumer.reader, moments, (kept, removed))
    return result


def _compensate(
    model: nn.Module, reader: ParameterSlice, moments: Moments, units: tuple[list[int], list[int]]
) -> None:
    """Add the weights of the removed units, times the fit, to those of the units that are kept."""
    kept, removed = units
    module = model.get_submodule(reader.module)
    bias = getattr(module, "bias", None)
    shifts = isinstance(bias, nn.Parameter) and not _pads(module)
    mean, scatter = moments.mean.cpu(), moments.scatter.cpu()
    if not shifts:
        scatter = scatter + moments.count * torch.outer(mean, mean)
    fit = _fit(scatter, kept, removed)
    if fit is None:
        return
    weight = model.get_parameter(reader.parameter)
    by_input = weight.detach().movedim(reader.dim, 0).double().cpu()
    columns = torch.tensor(reader.columns)
    with torch.no_grad():
        for lost, staying in zip(columns[removed].T, columns[kept].T, strict=True):
            if shifts:
                rest = torch.tensordot(mean[removed] - fit.T @ mean[kept], by_input[lost], 1)
                bias += rest.flatten(1).sum(1).to(bias) if rest.dim() > 1 else rest.to(bias)
            by_input[staying] += torch.tensordot(fit, by_input[lost], 1)
        weight.copy_(by_input.movedim(0, reader.dim))


def _fit(scatter: Tensor, kept: list[int], removed: list[int]) -> Tensor | None:
    """Least-squares coefficients, shape (kept, removed); None where no kept unit varies."""
    normal = scatter[kept][:, kept]
    ridge = _RIDGE * normal.diagonal().mean()
    if not bool(ridge > 0):
        return None
    eye = torch.eye(len(kept), dtype=normal.dtype)
    fit: Tensor = torch.linalg.solve(normal + ridge * eye, scatter[kept][:, removed])
    return fit


def _pads(module: Any) -> bool:
    """Whether a convolution reads padding, or outputs that only some kernel positions reach."""
    if not isinstance(module, nn.modules.conv._ConvNd):
        return False
    padding = module.padding
    return module.transposed or (padding == "same" if isinstance(padding, str) else any(padding))
