"""Units by what each adds to what the others span: column subset selection.

May import: torch, scipy, its own package. Tests: ``tests/slimming/test_spanning.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from wua_mlflow.device import rows_at_once
from wua_mlflow.hooks import evaluating, unwrapped
from wua_mlflow.pruning.activations import consumer_inputs, forwards, moments, outgoing_norms
from wua_mlflow.pruning.unit_groups import ParameterSlice, UnitGroup, UnitGroups

__all__ = ["CRITERIA", "most_important", "pivoted", "spanning", "unit_importance"]


def spanning(
    model: nn.Module, groups: Sequence[UnitGroup], run: Callable[[], object]
) -> dict[str, Tensor]:
    """Importance by group, shape (units,), float64; groups that cannot be seen are left out.

    The activations as the next layers read them, centred, each times the norm of the weights that
    read it. The first unit is the one of the largest variance, each further one that of which most
    is left when those before it have explained it linearly; its importance is what was left. So of
    two units that say the same one is dispensable, however large both are. (The selection of the
    interpolative decomposition: Chee et al. 2022, arXiv 2108.00065; its correction of the next
    layer's weights is ``folding``.)

    Args:
        model: unwrapped.
        groups: the units.
        run: runs the model over the data.
    """
    known = {group.name: group for group in groups}
    found = {name: consumer_inputs(model, group) for name, group in known.items()}
    seen = {name: own for name, own in found.items() if not isinstance(own, str)}
    result: dict[str, Tensor] = {}
    for name, own in moments(model, seen, run).items() if seen else ():
        if all(one.count for one in own):
            scale = outgoing_norms(model, known[name])
            scatter = torch.stack([one.scatter.cpu() for one in own]).sum(0)
            result[name] = pivoted(scatter * torch.outer(scale, scale))
    return result


def pivoted(scatter: Tensor) -> Tensor:
    """What is left of each unit's sum of squares when it is chosen, the largest first.

    Args:
        scatter: of centred rows, symmetric, shape (units, units), float64.

    Returns:
        Shape (units,): the squared diagonal of its Cholesky factor with complete pivoting; 0 for
        units that those before them explain wholly.

    >>> rows = torch.tensor([[3.0, 3.0, 0.0], [-3.0, -3.0, 0.0], [0.0, 0.0, 1.0]]).double()
    >>> pivoted(rows.T @ rows).round(decimals=6).tolist()
    [18.0, 0.0, 1.0]
    """
    from scipy.linalg.lapack import dpstrf

    factor, order, rank, _ = dpstrf(scatter.numpy())
    found = torch.zeros(len(scatter), dtype=torch.float64)
    chosen = torch.from_numpy(order[:rank] - 1).long()
    found[chosen] = torch.from_numpy(factor.diagonal()[:rank].copy()).square()
    return found


CRITERIA = ("spanning", "taylor", "magnitude", "random")
"""And every criterion of ``wua_mlflow.usage.criteria``, summed over the layers of a group."""
Loss = Callable[[Tensor, Tensor], Tensor]


def unit_importance(
    model: nn.Module,
    structure: UnitGroups,
    data: tuple[Tensor, Tensor] | None = None,
    loss: Loss | None = None,
    *,
    criterion: str = "taylor",
    seed: int = 0,
) -> dict[str, Tensor]:
    """The importance of every unit, by group; shape (units,), float64, on the CPU.

    ``spanning``: what each unit's activations add to those before it, as ``slimming.spanning``
    says; ``taylor`` for the groups whose activations cannot be seen (attention heads).

    ``taylor``: |mean of a·g|, a the unit's activation and g the loss's gradient with respect to
    it (Molchanov et al. 2017, arXiv 1611.06440, equation 8, without the square), taken from the
    weights that read it: Σ w·∂L/∂w over its columns. It does not change when a network is rescaled.
    ``magnitude``: the L2 norm of the weights that make and read the unit. ``random``: a control.

    Args:
        model: the one that ``structure`` was found in; left as found.
        structure: its groups.
        data: inputs and targets, shape (samples, ...); not needed for magnitude and random.
        loss: the mean loss of (outputs, targets); for ``taylor``, and where ``spanning`` takes it.
        criterion: one of ``CRITERIA``, or a criterion of an analysis.
        seed: of ``random``.

    Raises:
        ValueError: unknown criterion, or data or loss are lacking.
    """
    plain = unwrapped(model)
    if criterion == "random":
        generator = torch.Generator().manual_seed(seed)
        return {one.name: torch.rand(one.units, generator=generator, dtype=torch.float64)
                for one in structure.groups}
    if criterion == "magnitude":
        return {one.name: _magnitude(plain, one) for one in structure.groups}
    if data is None:
        raise ValueError(f"data: expected inputs and targets for {criterion}, but got none")
    if criterion not in CRITERIA:
        return _analysed(plain, structure, data, criterion)
    found = {} if criterion == "taylor" else \
        spanning(plain, structure.groups, lambda: forwards(plain, data[0]))
    if len(found) == len(structure.groups):
        return found
    if loss is None:
        raise ValueError("loss: expected the mean loss of (outputs, targets) for taylor, but got "
                         "none")
    gradients = _mean_gradients(plain, structure, data, loss)
    return {one.name: found[one.name] if one.name in found else _taylor(plain, one, gradients)
            for one in structure.groups}


def most_important(importance: Tensor, count: int) -> list[int]:
    """The ``count`` most important units, in their order; of equal ones the first.

    >>> most_important(torch.tensor([0.1, 0.9, 0.5, 0.5]), 2)
    [1, 2]
    """
    order = importance.argsort(descending=True, stable=True)
    return sorted(order[:count].tolist())


def _mean_gradients(
    model: nn.Module, structure: UnitGroups, data: tuple[Tensor, Tensor], loss: Loss
) -> dict[str, Tensor]:
    """Of the mean loss with respect to every weight that reads units, float64."""
    names = {reader.parameter for group in structure.groups for reader in group.readers}
    inputs, targets = data
    rows = torch.arange(len(inputs), device=inputs.device).split(rows_at_once(inputs.shape))
    with evaluating(model, grad=True):
        weights = {name: model.get_parameter(name) for name in sorted(names)}
        found = {name: torch.zeros_like(one, dtype=torch.float64) for name, one in weights.items()}
        for chosen in rows:
            value = loss(model(inputs[chosen]), targets[chosen])
            gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
            for name, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    found[name] += gradient.double() * (len(chosen) / len(inputs))
    return found


def _taylor(model: nn.Module, group: UnitGroup, gradients: Mapping[str, Tensor]) -> Tensor:
    return _by_unit(group.readers, group.units, lambda name:
                    model.get_parameter(name).detach().double() * gradients[name]).abs()


def _magnitude(model: nn.Module, group: UnitGroup) -> Tensor:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    makers = [one for one in group.makers if one.parameter in parameters]
    return _by_unit((*makers, *group.readers), group.units, lambda name:
                    parameters[name].detach().double() ** 2).sqrt()


def _by_unit(
    places_in: Sequence[ParameterSlice], count: int, values: Callable[[str], Tensor]
) -> Tensor:
    """The sums of tensors over each unit's places in them."""
    total = torch.zeros(count, dtype=torch.float64)
    for one in places_in:
        found = values(one.parameter).movedim(one.dim, 0)
        matrix = found.reshape(len(found), -1).sum(1).cpu()
        places = [place for columns in one.columns for place in columns]
        units = [unit for unit, columns in enumerate(one.columns) for _ in columns]
        total.index_add_(0, torch.tensor(units), matrix[torch.tensor(places)])
    return total


def _analysed(
    model: nn.Module, structure: UnitGroups, data: tuple[Tensor, Tensor], criterion: str
) -> dict[str, Tensor]:
    from wua_mlflow.usage.analyze import layer_importance

    inputs, _ = data
    weights = {name: getattr(model.get_submodule(name), "weight", None)
               for group in structure.groups for name in group.layers}
    names = [name for name, weight in weights.items()
             if isinstance(weight, Tensor) and weight.dim() > 1]
    found = layer_importance(model, inputs, names, criterion)
    by_unit = {name: one.double().flatten(1).sum(1).cpu() for name, one in found.items()}
    return {group.name: torch.stack([by_unit.get(name, torch.zeros(group.units,
                                                                   dtype=torch.float64))
                                     for name in group.layers]).sum(0)
            for group in structure.groups}
