"""A layer's statistics after the pass over the data, and its importance, tile by tile.

Tests: ``tests/usage/test_layer_statistics.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

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
from wua_mlflow.usage.statistics import Part, is_finite
from wua_mlflow.usage.tracing.layer import RequiredStats, TracedLayer

__all__ = [
    "LayerStatistics", "layer_statistics", "rank_of", "reason_not_applicable", "required_stats",
    "resolve_criteria",
]


_EXACT_UP_TO = 2**20
"""Layers of up to so many weights get their importance in float64, larger ones in float32."""


@dataclass(frozen=True)
class LayerStatistics:
    """A layer's weight, shape (units, ...), and what its criteria need beside it.

    ``mean_output`` has shape (units,), ``mean_input`` and ``input_norm`` (groups, weights of a
    unit), ``gradient`` the weight's shape, ``bias`` and its gradient (units,). ``unit_taylor``,
    shape (units,), is the mean Σ a·g of the units where weight and bias do not give it. ``name`` is
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
    unit_taylor: Tensor | None = None
    group_of: Tensor | None = None
    name: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        """(units, weights of a unit)."""
        units = self.weight.shape[0]
        return units, self.weight.numel() // max(1, units)

    def importance(self, criterion: Criterion) -> Part:
        """The importance of any tile; a criterion of the user's own is called once, for all."""
        names, dtype = inputs_of(criterion), self._dtype()

        def tile(rows: slice, columns: slice) -> Tensor:
            weight = self.weight[rows].flatten(1)[:, columns].to(dtype)
            return criterion(weight, **{name: self._evidence_tile(name, rows, columns).to(
                weight.device, dtype) for name in names})

        if criterion in CRITERIA.values():
            return self._weighted_importance(names) or tile
        self.refuse_broken()
        importance = tile(slice(None), slice(None))
        if not isinstance(importance, Tensor) or importance.shape != self.shape:
            is_tensor = isinstance(importance, Tensor)
            result = tuple(importance.shape) if is_tensor else type(importance).__name__
            raise ValueError(f"criterion: expected importances of shape {self.shape}, but got "
                             f"{result}")
        return lambda rows, columns: importance[rows, columns]

    def _weighted_importance(self, names: Sequence[str]) -> WeightedImportance | None:
        """The importance as weight times factor, without a copy of the weight's size.

        None for small and for grouped layers, and where one of the two is no contiguous float32
        matrix on a CPU.
        """
        if self.groups > 1 or self._dtype() != torch.float32 or not self.weight.is_contiguous():
            return None
        matrix, factor = self.weight.flatten(1), None
        for name in names:
            factor = self._evidence_tile(name, slice(None), slice(None))
            if factor.shape != matrix.shape:
                factor = factor.to(matrix.device, torch.float32)
        is_plain = all(tensor.dtype == torch.float32 and tensor.device.type == "cpu"
                       and tensor.is_contiguous()
                       for tensor in (matrix, factor) if tensor is not None)
        return WeightedImportance(matrix, factor) if is_plain else None

    def signed_units(self, criterion: Criterion) -> Tensor | None:
        """Σ a·g of each unit under ``taylor``, shape (units,); None under any other criterion.

        Its absolute value is the units' importance.
        """
        if criterion is not taylor or self.gradient is None:
            return None
        if self.unit_taylor is not None:
            return self.unit_taylor
        size = max(1, 2**20 // max(1, self.shape[1]))
        return torch.cat([taylor_units(
            self.weight[block].flatten(1), self.gradient[block].flatten(1),
            None if self.bias is None else self.bias[block],
            None if self.bias_gradient is None else self.bias_gradient[block])
            for block in (slice(start, start + size) for start in range(0, self.shape[0], size))])

    def refuse_broken(self) -> None:
        """Raise ValueError if the weight is NaN or infinite.

        The built-in criteria show that in their sums, so this check only names the cause. It also
        comes before a criterion of the user's own, which may hide it.
        """
        if not is_finite(self.weight):
            raise ValueError(f"layer {self.name}: expected a finite weight, but got NaN or "
                             "infinity")

    def sampled(self, units: Tensor) -> LayerStatistics:
        """The statistics of these units only, by index."""
        by_unit = {name: getattr(self, name) for name in (
            "weight", "mean_output", "gradient", "bias", "bias_gradient", "unit_taylor")}
        return replace(self, group_of=units // max(1, self.shape[0] // self.groups), **{
            name: tensor[units.to(tensor.device)] for name, tensor in by_unit.items()
            if tensor is not None})

    def _dtype(self) -> torch.dtype:
        """The dtype that the importance is computed in."""
        if self.weight.numel() <= _EXACT_UP_TO and self.weight.device.type != "mps":
            return torch.float64
        return torch.promote_types(self.weight.dtype, torch.float32)

    def _evidence_tile(self, name: str, rows: slice, columns: slice) -> Tensor:
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
            units_a_group = self.shape[0] // self.groups
            groups = torch.arange(self.shape[0])[rows] // units_a_group
        return values[groups.to(values.device)][:, columns]


def resolve_criteria(criteria: Sequence[str | Criterion]) -> dict[str, Criterion]:
    """Criteria by name; a function of the user's own is named by its ``__name__``.

    Raises:
        ValueError: no such criterion, none at all, or two of one name.
    """
    if not isinstance(criteria, Iterable):
        raise ValueError(f"criterion: expected a name, a function, or several of them, but got "
                         f"{criteria!r}")
    by_name: dict[str, Criterion] = {}
    for criterion in criteria:
        if callable(criterion):
            inputs_of(criterion)
            name, rule = getattr(criterion, "__name__", type(criterion).__name__), criterion
        elif isinstance(criterion, str) and criterion in CRITERIA:
            name, rule = criterion, CRITERIA[criterion]
        else:
            raise ValueError(f"criterion: expected one of {', '.join(CRITERIA)}, or a function, "
                             f"but got {criterion!r}")
        if by_name.setdefault(name, rule) is not rule:
            raise ValueError(f"criterion: expected functions of different names, but got two of "
                             f"'{name}'")
    if not by_name:
        raise ValueError("criterion: expected at least one, but got none")
    return by_name


def required_stats(criteria: Sequence[Criterion], *, rows: bool) -> RequiredStats:
    """The statistics that one pass must gather for all of these criteria."""
    names = {name for criterion in criteria for name in inputs_of(criterion)}
    powers = frozenset(power for name, power in (("mean_input", 1), ("input_norm", 2))
                       if name in names)
    return RequiredStats(output="mean_output" in names or not powers, powers=powers,
                         gradient="gradient" in names, rows=rows)


def reason_not_applicable(layer: TracedLayer, criterion: Criterion) -> str | None:
    """Why a criterion does not apply to a layer; None if it does."""
    names = inputs_of(criterion)
    if layer.hidden_output and "mean_output" in names:
        return "its units' outputs are hidden by a projection: no mean output"
    if layer.hidden_input and {"mean_input", "input_norm"} & set(names):
        return "what its weights multiply is hidden within the cell"
    return None


def layer_statistics(layer: TracedLayer, pass_stats: PassStatistics) -> LayerStatistics:
    """A layer's weight and the statistics of the pass; a sharded weight is gathered first.

    Raises:
        ValueError: its bias is NaN or infinite.
    """
    weight = _gathered_weight(layer, pass_stats)
    bias = None if layer.bias is None else _gathered(pass_stats.parameters[layer.bias.parameter])
    if bias is not None and not is_finite(bias):
        raise ValueError(f"layer {layer.name}: expected a finite bias, but got NaN or infinity")
    absolute, squares = layer.inputs[1], layer.inputs[2]
    statistics = LayerStatistics(
        weight,
        name=layer.name,
        groups=layer.groups,
        mean_output=layer.output.mean() if layer.output.sums is not None else None,
        mean_input=layer.of_fan_in(absolute.mean()) if absolute.sums is not None else None,
        input_norm=layer.of_fan_in(squares.sums).sqrt() if squares.sums is not None else None)
    if pass_stats.gradients is None:
        return statistics
    statistics = replace(statistics, gradient=pass_stats.gradients.of_weight(layer),
                         unit_taylor=pass_stats.gradients.of_units(layer))
    if layer.bias is None or bias is None or layer.operation == "recurrent":
        return statistics
    return replace(statistics, bias=layer.bias.of(bias).reshape(-1),
                   bias_gradient=pass_stats.gradients.of_bias(layer.bias))


def _gathered(parameter: Tensor) -> Tensor:
    """A parameter's values; a sharded one is gathered from all processes."""
    detached = parameter.detach()
    full = getattr(detached, "full_tensor", None)
    return full() if full is not None else detached


def _gathered_weight(layer: TracedLayer, pass_stats: PassStatistics) -> Tensor:
    if layer.view is not None:
        parameter = _gathered(pass_stats.parameters[layer.view.parameter])
        return layer.units_first(layer.view.of(parameter))
    if layer.computed is None:
        raise ValueError(f"layer {layer.name}: expected a weight of this process, but it was only "
                         "seen by another")
    return layer.units_first(layer.computed)


def rank_of(layer: TracedLayer, pass_stats: PassStatistics) -> float | None:
    """The effective rank of a layer's activations, scaled by the norm of their outgoing weights.

    If no layer was seen to take the units as input, that of the layer's own outputs, unscaled.
    """
    sampler = pass_stats.sampler
    if sampler is None or layer.name not in sampler.outputs:
        return None
    readers = [pass_stats.layers[name] for name in sampler.readers.get(layer.name, ())
               if name in pass_stats.layers]
    squares = [of_reader for reader in readers
               if (of_reader := _outgoing_squares(reader, layer, pass_stats)) is not None]
    if layer.name in sampler.received and squares:
        scale = torch.stack(squares).sum(0).sqrt()
        return sampler.received[layer.name].effective_rank(scale)
    return sampler.outputs[layer.name].effective_rank()


def _outgoing_squares(
    reader: TracedLayer, source: TracedLayer, pass_stats: PassStatistics
) -> Tensor | None:
    """Σ w² of each unit's outgoing weights; None where they cannot be assigned to units."""
    weight = _gathered_weight(reader, pass_stats)
    weight = (weight.cpu() if weight.device.type == "mps" else weight).double()
    if reader.groups > 1:
        weight = weight.unflatten(0, (reader.groups, -1)).transpose(0, 1).flatten(1, 2)
    per_input = weight.square().sum([0, *range(2, weight.dim())])
    if len(per_input) % source.units:
        return None
    return per_input.reshape(source.units, -1).sum(1)
