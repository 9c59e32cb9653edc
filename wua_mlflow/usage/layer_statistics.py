"""What is known of a layer when the data have passed, and its importance, tile by tile.

Tests: ``tests/usage/test_layer_statistics.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from wua_mlflow.usage.criteria import (
    CRITERIA,
    Criterion,
    WeightedImportance,
    inputs_of,
    taylor,
    taylor_units,
)
from wua_mlflow.usage.run import PassStatistics
from wua_mlflow.usage.statistics import is_finite
from wua_mlflow.usage.tracing.layer import RequiredStats, TracedLayer

__all__ = [
    "LayerStatistics", "layer_statistics", "rank_of", "reason_not_applicable", "required_stats",
    "resolve_criteria",
]


Part = Callable[[slice, slice], Tensor]
"""The importance of a tile: rows are units, columns a unit's weights."""
_EXACT_UP_TO = 2**20
"""Layers of up to so many weights get their importance in float64, larger ones in float32."""


@dataclass(frozen=True)
class LayerStatistics:
    """A layer's weight, shape (units, ...), and what its criteria need beside it.

    ``mean_output`` has shape (units,), ``mean_input`` and ``input_norm`` (groups, weights of a
    unit), ``gradient`` the weight's shape, ``bias`` and its gradient (units,). ``felt``,
    shape (units,), is the mean Σ a·g of the units where weight and bias do not tell it. ``name`` is
    the layer's.
    """

    weight: Tensor
    groups: int = 1
    mean_output: Tensor | None = None
    mean_input: Tensor | None = None
    input_norm: Tensor | None = None
    gradient: Tensor | None = None
    bias: Tensor | None = None
    bias_gradient: Tensor | None = None
    felt: Tensor | None = None
    group_of: Tensor | None = None
    name: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        """(units, weights of a unit)."""
        units = self.weight.shape[0]
        return units, self.weight.numel() // max(1, units)

    def importance(self, criterion: Criterion) -> Part:
        """The importance of any tile; a function of one's own is asked once, for all of them."""
        names, wide, matrix = inputs_of(criterion), self._wide(), _matrix(self.weight)
        product = self._product(names, wide, matrix) if criterion in CRITERIA.values() else None
        if product is not None and product.is_plain:
            return product

        def tile(rows: slice, columns: slice) -> Tensor:
            weight = self.weight[rows].flatten(1)[:, columns] if matrix is None else \
                matrix[rows, columns]
            given = {name: self._part(name, rows, columns).to(weight.device, wide)
                     for name in names}
            return criterion(weight.to(wide), **given)

        if criterion in CRITERIA.values():
            return tile
        self.refuse_broken()
        whole = tile(slice(None), slice(None))
        if not isinstance(whole, Tensor) or whole.shape != self.shape:
            got = tuple(whole.shape) if isinstance(whole, Tensor) else type(whole).__name__
            raise ValueError(f"criterion: expected importances of shape {self.shape}, but got "
                             f"{got}")
        return lambda rows, columns: whole[rows, columns]

    def _product(
        self, names: Sequence[str], wide: torch.dtype, matrix: Tensor | None
    ) -> WeightedImportance | None:
        """The importance as a product, without a copy of the weight's size."""
        if matrix is None or self.groups > 1 or wide != matrix.dtype:
            return None
        every, factor = slice(None), None
        for name in names:
            given = self._part(name, every, every)
            factor = given if given.shape == matrix.shape else given.to(matrix.device, wide)
        return WeightedImportance(matrix, factor)

    def of_units(self, criterion: Criterion) -> Tensor | None:
        """The units' importance where a criterion has its own, else None; shape (units,)."""
        signed = self._felt(criterion)
        return None if signed is None else signed.abs()

    def of_heads(
        self, criterion: Criterion, layer: TracedLayer, units: np.ndarray
    ) -> np.ndarray | None:
        """The importance of a layer's heads, shape (heads,), each of equally many units.

        The sum over a head's units, whose importance is ``units``; under ``taylor`` |Σ a·g| over
        all of the head's outputs (as Michel et al. 2019, arXiv 1905.10650, weigh heads, but the
        mean before the absolute value). None without heads.
        """
        if not layer.heads:
            return None
        shape = layer.head_parts, layer.heads, -1
        signed = self._felt(criterion)
        by_head: np.ndarray = units.reshape(shape).sum((0, 2)) if signed is None else \
            signed.reshape(shape).sum((0, 2)).abs().cpu().numpy()
        return by_head

    def _felt(self, criterion: Criterion) -> Tensor | None:
        """Σ a·g of each unit under ``taylor``, signed; None under any other criterion."""
        if criterion is not taylor or self.gradient is None:
            return None
        if self.felt is not None:
            return self.felt
        steps = range(0, self.shape[0], max(1, 2**20 // max(1, self.shape[1])))
        ends = [*steps, self.shape[0]]
        return torch.cat([taylor_units(
            self.weight[a:b].flatten(1), self.gradient[a:b].flatten(1),
            None if self.bias is None else self.bias[a:b],
            None if self.bias_gradient is None else self.bias_gradient[a:b])
            for a, b in zip(ends, ends[1:], strict=False)])

    def refuse_broken(self) -> None:
        """Raises ValueError: the weight is NaN or infinite.

        The built-in criteria show that in their sums; so it is looked for only to tell the cause,
        and before a criterion of one's own, which may hide it.
        """
        if not is_finite(self.weight):
            raise ValueError(f"layer {self.name}: expected a finite weight, but got NaN or "
                             "infinity")

    def sampled(self, units: Tensor) -> LayerStatistics:
        """The same of some units only, by number."""
        def some(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[units.to(tensor.device)]

        groups = units // max(1, self.shape[0] // self.groups)
        return replace(self, weight=self.weight[units.to(self.weight.device)],
                       mean_output=some(self.mean_output), gradient=some(self.gradient),
                       bias=some(self.bias), bias_gradient=some(self.bias_gradient),
                       felt=some(self.felt), group_of=groups)

    def _wide(self) -> torch.dtype:
        """What the importance is computed in."""
        if self.weight.numel() <= _EXACT_UP_TO and self.weight.device.type != "mps":
            return torch.float64
        return torch.promote_types(self.weight.dtype, torch.float32)

    def _part(self, name: str, rows: slice, columns: slice) -> Tensor:
        values: Tensor = getattr(self, name)
        if name == "mean_output":
            return values[rows].unsqueeze(1)
        if name == "gradient":
            return values[rows].flatten(1)[:, columns]
        if self.groups == 1:
            return values[:, columns]
        if self.group_of is not None:
            groups = self.group_of[rows]
        else:
            each = self.shape[0] // self.groups
            groups = torch.arange(self.shape[0])[rows] // each
        return values[groups.to(values.device)][:, columns]


def resolve_criteria(criteria: Sequence[str | Criterion]) -> dict[str, Criterion]:
    """Criteria by name; a function of one's own goes by its own name.

    Raises:
        ValueError: no such criterion, none at all, or two of one name.
    """
    if not isinstance(criteria, Iterable):
        raise ValueError(f"criterion: expected a name, a function, or several of them, but got "
                         f"{criteria!r}")
    found: dict[str, Criterion] = {}
    for criterion in criteria:
        if callable(criterion):
            inputs_of(criterion)
            name, rule = getattr(criterion, "__name__", type(criterion).__name__), criterion
        elif isinstance(criterion, str) and criterion in CRITERIA:
            name, rule = criterion, CRITERIA[criterion]
        else:
            raise ValueError(f"criterion: expected one of {', '.join(CRITERIA)}, or a function, "
                             f"but got {criterion!r}")
        if found.setdefault(name, rule) is not rule:
            raise ValueError(f"criterion: expected functions of different names, but got two of "
                             f"'{name}'")
    if not found:
        raise ValueError("criterion: expected at least one, but got none")
    return found


def required_stats(criteria: Sequence[Criterion], *, rows: bool) -> RequiredStats:
    """What one pass must gather for all of these criteria."""
    wanted = {name for criterion in criteria for name in inputs_of(criterion)}
    powers = {1} & ({1} if "mean_input" in wanted else set())
    powers |= {2} if "input_norm" in wanted else set()
    return RequiredStats(output="mean_output" in wanted or not powers, powers=frozenset(powers),
                 gradient="gradient" in wanted, rows=rows)


def reason_not_applicable(layer: TracedLayer, criterion: Criterion) -> str | None:
    """Why a criterion makes no sense for a layer; None where it does."""
    asked = inputs_of(criterion)
    if layer.hidden_output and "mean_output" in asked:
        return "its units' outputs are hidden by a projection: no mean output"
    if layer.hidden_input and {"mean_input", "input_norm"} & set(asked):
        return "what its weights multiply is hidden within the cell"
    return None


def layer_statistics(layer: TracedLayer, seen: PassStatistics) -> LayerStatistics:
    """Gather a layer's weight and statistics; a sharded weight is gathered for as long as this.

    Raises:
        ValueError: its bias is NaN or infinite.
    """
    weight = _weight(layer, seen)
    if layer.bias is not None and not is_finite(whole(seen.parameters[layer.bias.parameter])):
        raise ValueError(f"layer {layer.name}: expected a finite bias, but got NaN or infinity")
    ones, squares = layer.inputs[1], layer.inputs[2]
    found = LayerStatistics(
        weight,
        name=layer.name,
        groups=layer.groups,
        mean_output=layer.output.mean() if layer.output.sums is not None else None,
        mean_input=layer.of_fan_in(ones.mean()) if ones.sums is not None else None,
        input_norm=layer.of_fan_in(squares.sums).sqrt() if squares.sums is not None else None)
    if seen.gradients is None:
        return found
    bias = bias_gradient = None
    if layer.bias is not None and layer.operation != "recurrent":
        bias = layer.bias.of(whole(seen.parameters[layer.bias.parameter])).reshape(-1)
        bias_gradient = seen.gradients.of_bias(layer)
    return replace(found, gradient=seen.gradients.of_weight(layer), bias=bias,
                   bias_gradient=bias_gradient, felt=seen.gradients.of_units(layer))


def _matrix(weight: Tensor) -> Tensor | None:
    """The weight as (units, weights of a unit), without a copy; None where it lies otherwise."""
    try:
        return weight.view(weight.shape[0], -1)
    except RuntimeError:
        return None


def whole(parameter: Tensor) -> Tensor:
    """A parameter's values; of a sharded one, gathered from all processes."""
    detached = parameter.detach()
    full = getattr(detached, "full_tensor", None)
    return full() if full is not None else detached


def _weight(layer: TracedLayer, seen: PassStatistics) -> Tensor:
    if layer.view is not None:
        return layer.units_first(layer.view.of(whole(seen.parameters[layer.view.parameter])))
    if layer.computed is None:
        raise ValueError(f"layer {layer.name}: expected a weight of this process, but it was only "
                         "seen by another")
    return layer.units_first(layer.computed)


def rank_of(layer: TracedLayer, seen: PassStatistics) -> float | None:
    """The effective rank of a layer's activations, scaled by the norm of what reads them.

    Where no layer is seen to read the units in place, the layer's own outputs, not scaled.
    """
    if seen.sampler is None or layer.name not in seen.sampler.given:
        return None
    readers = [seen.layers[name] for name in seen.sampler.readers.get(layer.name, ())
               if name in seen.layers]
    squares = [_outgoing(one, layer, seen) for one in readers]
    known = [one for one in squares if one is not None]
    if layer.name in seen.sampler.taken and known:
        scale = torch.stack(known).sum(0).sqrt()
        return seen.sampler.taken[layer.name].effective_rank(scale)
    return seen.sampler.given[layer.name].effective_rank()


def _outgoing(reader: TracedLayer, source: TracedLayer, seen: PassStatistics) -> Tensor | None:
    """Σ w² of the weights that read each unit; None where they cannot be told apart."""
    weight = _weight(reader, seen).double()
    if reader.groups > 1:
        weight = weight.unflatten(0, (reader.groups, -1)).transpose(0, 1).flatten(1, 2)
    per_input = weight.square().sum([0, *range(2, weight.dim())])
    if len(per_input) % source.units:
        return None
    return per_input.reshape(source.units, -1).sum(1)
