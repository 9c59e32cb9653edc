"""One layer under observation: its weight, and what was summed of the activations that it met.

May import: torch, calls, owners. Tests: ``tests/watching/test_layer.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from wua_mlflow.usage.tracing.calls import WeightCall
from wua_mlflow.usage.tracing.parameters import ParameterView
from wua_mlflow.usage.tracing.recurrent import RecurrentCall
from wua_mlflow.usage.tracing.sums import PaddingMask, by_unit, input_sums, kept, output_sums
from wua_mlflow.usage.tracing.tags import tag, tag_of

__all__ = [
    "FiredUnits", "RequiredStats", "RunningSum", "TracedLayer", "ValidPositions", "add_bias",
    "add_call", "add_recurrent_call", "find_added_bias", "propagate_output", "propagate_units",
    "record_relu_input",
]


_A_FEW = 64


@dataclass
class RunningSum:
    """A sum over all batches: float64, whatever a batch was summed in."""

    sums: Tensor | None = None
    count: int = 0

    def add(self, sums: Tensor, count: int) -> None:
        exact = _off_mps(sums.detach()).double()
        self.sums = exact if self.sums is None else self.sums.add_(exact)
        self.count += count

    def mean(self) -> Tensor:
        """The sum ÷ the count; zeros where nothing was added."""
        if self.sums is None:
            raise ValueError("count: expected something added, but got nothing")
        return self.sums / max(1, self.count)


class FiredUnits:
    """Which units were ever above zero (or other than zero); the decided ones cost nothing more.

    On a GPU the list of the undecided ones is read back after 1, 2, 4, 8, … batches only.
    """

    def __init__(self, units: int, device: torch.device, *, above: bool) -> None:
        self.flags = torch.zeros(units, dtype=torch.bool, device=device)
        self.above = above
        self.calls = 0
        self.last = 0
        self._undecided = torch.arange(units, device=device)

    def to(self, device: torch.device) -> FiredUnits:
        """The same on another device, decided or not."""
        moved = FiredUnits(len(self.flags), device, above=self.above)
        moved.flags, moved.calls = self.flags.to(device, copy=True), self.calls
        moved.last = self.last
        return moved

    def see(self, rows: Tensor, call: int | None = None) -> None:
        """Take in what came of one call of the layer.

        Args:
            rows: outputs by unit, shape (rows, units) or (samples, units, positions).
            call: which one; the same once more is not counted again.
        """
        self.calls += call is None or call != self.last
        self.last = self.last if call is None else call
        if not self._undecided.numel():
            return
        few = _A_FEW if rows.dim() == 2 else 1
        for some in (rows[:few], rows[few:]):  # the first rows decide most units
            left = self._undecided
            if not left.numel() or not len(some):
                return
            chosen = some if len(left) == len(self.flags) else some.index_select(1, left)
            hits = chosen > 0 if self.above else chosen != 0
            self.flags[left] |= hits.any(0) if hits.dim() == 2 else hits.any(2).any(0)
            if not rows.is_cuda or not self.calls & (self.calls - 1):
                self._undecided = left[~self.flags[left]]


@dataclass
class TracedLayer:
    """A weight and its statistics; ``weight`` is a view of a parameter, or was ``computed``.

    ``operation`` is a product's, or ``recurrent`` with so many ``gates``. ``bias`` is a parameter's
    view, or None where there is none that could be told. ``overflow`` is the dtype that could not
    hold the squares of finite inputs, where that was seen. ``heads``: so many, of equally many
    units in a row, of an attention's query, key or value; 0 elsewhere; where one layer makes all
    three, in so many blocks of all heads (``head_parts``). ``flops`` are those of its products over
    all data. ``followed``: Σ a·g of its units is summed on its own (``Felt``).
    """

    name: str
    kind: str
    module: str
    operation: str
    units: int
    spatial: int = 0
    view: ParameterView | None = None
    computed: Tensor | None = None
    bias: ParameterView | None = None
    groups: int = 1
    gates: int = 1
    transposed: bool = False
    output: RunningSum = field(default_factory=RunningSum)
    inputs: dict[int, RunningSum] = field(
        default_factory=lambda: {1: RunningSum(), 2: RunningSum()}
    )
    hidden_input: bool = False
    hidden_output: bool = False
    calls: int = 0
    alive: FiredUnits | None = None
    alive_after_relu: FiredUnits | None = None
    changes: bool = False
    overflow: torch.dtype | None = None
    heads: int = 0
    head_parts: int = 1
    flops: int = 0
    followed: bool = False

    @property
    def covers(self) -> str | None:
        """The name of the parameter, where the weight is one's view."""
        return self.view.parameter if self.view else None

    @property
    def unit_dim(self) -> int:
        """The dimension of a product's output that counts units, from its end."""
        return -2 if self.operation == "left_matmul" else -1

    @property
    def by_column(self) -> bool:
        """Whether the weight of one input, not of one unit, lies together in memory."""
        if self.operation == "embedding":
            return True
        return self.view is not None and len(self.view.stride) == 2 \
            and self.view.stride[0] < self.view.stride[1]

    def units_first(self, tensor: Tensor) -> Tensor:
        """A tensor that lies as the weight does (itself, its gradient), as (units, ...)."""
        if self.operation == "embedding":
            return tensor.T
        if self.operation == "recurrent":
            return tensor.unflatten(0, (self.gates, -1)).transpose(0, 1)
        if self.transposed:
            grouped = tensor.unflatten(0, (self.groups, -1)).transpose(1, 2)
            return tensor.transpose(0, 1) if self.groups == 1 else grouped.flatten(0, 1)
        return tensor

    def of_fan_in(self, sums: Tensor) -> Tensor:
        """Statistics of inputs, shape (groups, in), for all weights of a unit, every gate's."""
        return sums.repeat(1, self.gates)

    def dead_units(self) -> Tensor | None:
        """Which units were zero for all data, or never above zero before a ReLU."""
        after = self.alive_after_relu
        if after is not None and after.calls == self.calls:
            return ~after.flags
        return None if self.alive is None else ~self.alive.flags


def _off_mps(tensor: Tensor) -> Tensor:
    """On the CPU, where the tensor's device has no float64."""
    return tensor.cpu() if tensor.device.type == "mps" else tensor


@dataclass(frozen=True)
class RequiredStats:
    """What is gathered: sums of outputs, sums of |x|^power of inputs, gradients, sampled rows."""

    output: bool = True
    powers: frozenset[int] = frozenset()
    gradient: bool = False
    rows: bool = False


@dataclass(frozen=True)
class ValidPositions:
    """Which positions of the batch count, and whether they come before the samples just now.

    ``packed``: rows are of sequences of several lengths, and of no sample that could be told.
    """

    mask: PaddingMask | None = None
    time_first: bool = False
    packed: bool = False

    def masked(self, rows: Tensor, lead: Any) -> Tensor:
        """Activations by unit with those that do not count set to zero."""
        return kept(rows, lead, self.mask, time_first=self.time_first)[0]


def add_call(
    layer: TracedLayer,
    product: WeightCall,
    output: Tensor,
    needs: RequiredStats,
    positions: ValidPositions,
) -> None:
    """Add a product's sums to the layer's."""
    mask, first = positions.mask, positions.time_first
    layer.calls += 1
    layer.flops += product.flops(output)
    if layer.computed is not None and layer.calls == 2:
        layer.changes = not torch.equal(layer.computed, product.weight.detach())
    if needs.output:
        layer.output.add(*output_sums(product, output, mask, time_first=first))
    for power in needs.powers:
        sums, count = input_sums(product, output, power, mask, time_first=first)
        layer.inputs[power].add(sums, count)
        if power == 2:
            _see_overflow(layer, sums, product.inputs)
    rows = by_unit(output, product.spatial, product.unit_dim)
    if layer.alive is None:
        layer.alive = FiredUnits(layer.units, output.device, above=False)
    layer.alive.see(positions.masked(rows, product.lead(output)))


def add_recurrent_call(
    layer: TracedLayer, one: RecurrentCall, needs: RequiredStats, positions: ValidPositions
) -> None:
    """Add a recurrent layer's sums: of its hidden states, and of what its weight multiplies."""
    layer.calls += 1
    layer.flops += one.flops
    if one.outputs is not None:
        rows = one.outputs.reshape(-1, layer.units)
        if needs.output:
            layer.output.add(*_summed(one.outputs, 0, positions))
        layer.alive = layer.alive or FiredUnits(layer.units, rows.device, above=False)
        layer.alive.see(positions.masked(rows, one.outputs.shape[:-1]))
    met = one.met() if needs.powers else None
    for power in needs.powers if one.given is not None else ():
        if met is not None:
            sums, count = _summed(met, power, positions)
        else:
            sums, count = _of_packed_states(one, power)
        layer.inputs[power].add(sums.unsqueeze(0), count)
        if power == 2:
            _see_overflow(layer, sums, (cast(Tensor, one.given if met is None else met),))


def _see_overflow(layer: TracedLayer, sums: Tensor, inputs: Sequence[Tensor]) -> None:
    """Are sums infinite though the inputs are finite? A GPU would have to wait: not asked there."""
    if sums.is_cuda or math.isfinite(float(sums.detach().sum())):  # none is below 0
        return
    if not bool(sums.isfinite().all()) and all(bool(one.isfinite().all()) for one in inputs):
        layer.overflow = sums.dtype


def _of_packed_states(one: RecurrentCall, power: int) -> tuple[Tensor, int]:
    """All states and the one before them, without the last ones; never below zero by rounding."""
    given, (first, last) = cast(Tensor, one.given), cast(tuple[Tensor, Tensor], one.ends)
    sums, count = _summed(given, power, ValidPositions())
    before, after = (_summed(end, power, ValidPositions())[0] for end in (first, last))
    return (sums + before - after).clamp_min(0), count


def _summed(tensor: Tensor, power: int, positions: ValidPositions) -> tuple[Tensor, int]:
    """Σ x (power 0) or Σ |x|^power of the last dimension's entries."""
    product, first = WeightCall("linear", tensor, (tensor,)), positions.time_first
    if power == 0:
        return output_sums(product, tensor, positions.mask, time_first=first)
    sums, count = input_sums(product, tensor, power, positions.mask, time_first=first)
    return sums.squeeze(0), count


def find_added_bias(terms: Sequence[Any]) -> tuple[Tensor, TracedLayer, Tensor] | None:
    """Of what is added up a product, its layer, and what may be its bias; None where neither is."""
    for product, bias in (terms, terms[::-1]) if len(terms) == 2 else ():
        layer = tag_of(product, "product")
        if layer is not None and isinstance(bias, Tensor) and _is_by_unit(layer, bias):
            return product, layer, bias
    return None


def _is_by_unit(layer: TracedLayer, tensor: Tensor) -> bool:
    """Whether a tensor has one number a unit, in the dimension that counts a layer's units."""
    place = tensor.dim() - 1 - layer.spatial if layer.unit_dim == -1 else tensor.dim() - 2
    return place >= 0 and tensor.shape[place] == layer.units == tensor.numel()


def add_bias(
    layer: TracedLayer,
    bias: Tensor,
    result: Tensor,
    needs: RequiredStats,
    positions: ValidPositions,
) -> None:
    """A product's own bias was added to it afterwards: as if the product had had it."""
    rows = by_unit(result.detach(), layer.spatial, layer.unit_dim)
    shape = result.shape
    lead = shape[:-1] if layer.unit_dim == -1 else (*shape[:-2], shape[-1])
    if needs.output:
        count = kept(rows, lead, positions.mask, time_first=positions.time_first)[1]
        layer.output.add(bias.detach().reshape(-1).double() * count, 0)
    if layer.alive is not None:
        layer.alive.see(positions.masked(rows, lead))
    if layer.unit_dim == -1:
        tag(result, layer=layer, call=layer.calls, product=None)


def propagate_units(
    layer: TracedLayer, result: Tensor, *, flat: bool, call: int | None = None
) -> None:
    """After a function that leaves a layer's units in their places.

    Args:
        layer: whose units the function was given.
        result: what it made of them.
        flat: whether it laid images out in rows, or was given such rows.
        call: of which call of the layer they came.
    """
    if flat and layer.spatial > 0:
        if result.dim() == 2:
            tag(result, layer=layer, call=call, product=None, flat=True)
    else:
        tag(result, layer=layer, call=call, product=None)


def propagate_output(given: Tensor, result: Tensor) -> None:
    """After a view that leaves a product's rows whole: a bias may still be added to it."""
    layer = tag_of(given, "product")
    if layer is not None and not layer.spatial and layer.unit_dim == -1 \
            and result.shape[-1:] == given.shape[-1:]:
        tag(result, layer=layer, call=tag_of(given, "call"), product=layer)


def record_relu_input(tensor: Any, positions: ValidPositions) -> None:
    """A ReLU is about to be applied to what a layer gave: is any of its units above zero?"""
    layer = tag_of(tensor, "layer")
    if layer is None or tag_of(tensor, "flat"):
        return
    rows = by_unit(tensor.detach(), layer.spatial)
    if rows.shape[1] == layer.units:
        if layer.alive_after_relu is None:
            layer.alive_after_relu = FiredUnits(layer.units, tensor.device, above=True)
        layer.alive_after_relu.see(
            positions.masked(rows, tensor.shape[:-1]), tag_of(tensor, "call")
        )
