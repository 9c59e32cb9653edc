"""How important each unit of a group is: what decides which units are cut.

Tests: ``tests/pruning/test_importance.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wua_mlflow.data.batches import Batches
from wua_mlflow.hooks import evaluating, unwrapped
from wua_mlflow.pruning.activations import (
    measure_moments,
    outgoing_norms,
    run_over,
    sum_by_unit,
)
from wua_mlflow.pruning.layers import weight_dims
from wua_mlflow.pruning.unit_groups import UnitGroup, UnitGroups

__all__ = ["CRITERIA", "most_important", "pivoted_cholesky", "unit_importance"]


CRITERIA = ("spanning", "taylor", "magnitude", "random")
"""And every criterion of ``wua_mlflow.usage.criteria``, summed over the layers of a group."""
Loss = Callable[[Any, Any], Tensor]


def unit_importance(
    model: nn.Module, structure: UnitGroups, data: Any = None,
    loss: Loss | None = None, *, criterion: str = "taylor", seed: int = 0,
) -> dict[str, Tensor]:
    """The importance of every unit, by group; shape (units,), float64, on the CPU.

    ``spanning``: what each unit's activations add to those of more important ones. The activations
    as the next layers read them, centred, each times the norm of the weights that read it. The
    first unit is the one of the largest variance, each further one that of which most is left when
    those before it have explained it linearly; its importance is what was left. So of two units
    that say the same one is dispensable, however large both are. (The selection of the
    interpolative decomposition: Chee et al. 2022, arXiv 2108.00065; its correction of the next
    layer's weights is ``pruning.compensation``.) ``taylor`` for the groups whose activations cannot
    be seen (attention heads).

    ``taylor``: |mean of a·g|, a the unit's activation and g the loss's gradient with respect to
    it (Molchanov et al. 2017, arXiv 1611.06440, equation 8, without the square), taken from the
    weights that read it: Σ w·∂L/∂w over its columns. It does not change when a network is rescaled.
    ``magnitude``: the L2 norm of the weights that make and read the unit. ``random``: a control.

    Args:
        model: the one that ``structure`` was found in; left as found.
        structure: its groups.
        data: inputs and targets, as ``Batches`` takes them; not needed for magnitude and random.
        loss: the mean loss of (outputs, targets); for ``taylor``, and where ``spanning`` takes it.
        criterion: one of ``CRITERIA``, or a criterion of an analysis.
        seed: of ``random``.

    Raises:
        ValueError: unknown criterion, or data or loss are lacking.
    """
    model = unwrapped(model)
    groups = structure.groups
    if criterion == "random":
        generator = torch.Generator().manual_seed(seed)
        return {group.name: torch.rand(group.units, generator=generator, dtype=torch.float64)
                for group in groups}
    if criterion == "magnitude":
        return {group.name: _magnitude(model, group) for group in groups}
    if data is None:
        raise ValueError(f"data: expected inputs and targets for {criterion}, but got none")
    if criterion not in CRITERIA:
        return _by_usage(model, groups, data, criterion)
    importance = _spanning(model, groups, data) if criterion == "spanning" else {}
    others = [group for group in groups if group.name not in importance]
    if others:
        if loss is None:
            raise ValueError("loss: expected the mean loss of (outputs, targets) for taylor, but "
                             "got none")
        importance |= _taylor(model, others, data, loss)
    return {group.name: importance[group.name] for group in groups}


def most_important(importance: Tensor, count: int) -> list[int]:
    """The ``count`` most important units, in their order; of equal ones the first.

    >>> most_important(torch.tensor([0.1, 0.9, 0.5, 0.5]), 2)
    [1, 2]
    """
    order = importance.argsort(descending=True, stable=True)
    return sorted(order[:count].tolist())


def _spanning(
    model: nn.Module, groups: Sequence[UnitGroup], data: Any
) -> dict[str, Tensor]:
    """The criterion ``spanning``, of the groups whose activations can be observed."""
    measured, _ = measure_moments(model, groups, lambda: run_over(model, data))
    importance: dict[str, Tensor] = {}
    for group in groups:
        moments = [moments for _, moments in measured.get(group.name, ())]
        if moments and all(moment.count for moment in moments):
            scale = outgoing_norms(model, group)
            scatter = torch.stack([moment.scatter.cpu() for moment in moments]).sum(0)
            importance[group.name] = pivoted_cholesky(scatter * torch.outer(scale, scale))
    return importance


def pivoted_cholesky(scatter: Tensor) -> Tensor:
    """Each unit's unexplained sum of squares when greedy selection chooses it, the largest first.

    Args:
        scatter: of centred rows, symmetric, shape (units, units), float64.

    Returns:
        Shape (units,): the squared diagonal of its Cholesky factor with complete pivoting; 0 for
        units that those before them explain wholly.

    >>> rows = torch.tensor([[3.0, 3.0, 0.0], [-3.0, -3.0, 0.0], [0.0, 0.0, 1.0]]).double()
    >>> pivoted_cholesky(rows.T @ rows).round(decimals=6).tolist()
    [18.0, 0.0, 1.0]
    """
    from scipy.linalg.lapack import dpstrf

    factor, order, rank, _ = dpstrf(scatter.numpy())
    remainders = torch.zeros(len(scatter), dtype=torch.float64)
    chosen = torch.from_numpy(order[:rank] - 1).long()
    remainders[chosen] = torch.from_numpy(factor.diagonal()[:rank].copy()).square()
    return remainders


def _taylor(
    model: nn.Module, groups: Sequence[UnitGroup], data: Any, loss: Loss
) -> dict[str, Tensor]:
    names = sorted({reader.parameter for group in groups for reader in group.readers})
    weights = [model.get_parameter(name) for name in names]
    sums = [torch.zeros_like(weight, dtype=torch.float64) for weight in weights]
    samples = 0
    with evaluating(model, grad=True):
        for batch in Batches(data, model):
            value = loss(batch.call(model), batch.targets)
            gradients = torch.autograd.grad(value, weights, allow_unused=True)
            samples += batch.samples
            for total, gradient in zip(sums, gradients, strict=True):
                if gradient is not None:
                    total += gradient.double() * batch.samples
    products = {name: weight.detach().double() * total / max(1, samples) for name, weight, total
                in zip(names, weights, sums, strict=True)}
    return {group.name: sum_by_unit(group.readers, products).abs() for group in groups}


def _magnitude(model: nn.Module, group: UnitGroup) -> Tensor:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    weights = [slice_ for slice_ in (*group.makers, *group.readers)
               if slice_.parameter in parameters]
    return sum_by_unit(weights, {
        slice_.parameter: parameters[slice_.parameter].detach().double() ** 2
        for slice_ in weights}).sqrt()


def _by_usage(
    model: nn.Module, groups: Sequence[UnitGroup], data: Any, criterion: str
) -> dict[str, Tensor]:
    """A criterion of ``wua.analyze``, summed over a unit's weights in the layers that make it."""
    from wua_mlflow.usage.analyze import layer_importance

    modules = dict(model.named_modules())
    makers = {group.name: [maker for maker in group.makers if maker.attribute == "weight"
                           and weight_dims(modules[maker.module])] for group in groups}
    layers = dict.fromkeys(maker.module for of_group in makers.values() for maker in of_group)
    by_parameter = {f"{name}.weight": _like(importance.double(), modules[name]) for name, importance
                    in layer_importance(model, data, layers, criterion).items()}
    result = {}
    for group in groups:
        measured = [maker for maker in makers[group.name] if maker.parameter in by_parameter]
        result[group.name] = sum_by_unit(measured, by_parameter) if measured else \
            torch.zeros(group.units, dtype=torch.float64)
    return result


def _like(importance: Tensor, module: nn.Module) -> Tensor:
    """Importance of shape (units, ...) with the units along the weight's own dimension of them."""
    unit_dim, _ = weight_dims(module) or (0, 1)
    return importance.movedim(0, unit_dim)
