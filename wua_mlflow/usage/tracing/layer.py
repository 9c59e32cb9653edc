"""A traced layer: one weight of the model, and the sums of the activations that it met.

Tests: ``tests/usage/tracing/test_layer.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wua_mlflow.usage.tracing.calls import WeightCall
from wua_mlflow.usage.tracing.parameters import ParameterView
from wua_mlflow.usage.tracing.recurrent import RecurrentCall
from wua_mlflow.usage.tracing.sums import (
    Sums,
    ValidPositions,
    by_unit,
    feature_sums,
    input_sums,
    is_cheaper_by_inputs,
    masked_rows,
    output_sums_by_inputs,
    unit_sums,
)
from wua_mlflow.usage.tracing.tags import tag, tag_of

__all__ = ["FiredUnits", "RequiredStats", "RunningSum", "TracedLayer"]


_FIRST_ROWS = 64


@dataclass(frozen=True)
class RequiredStats:
    """Which statistics are gathered.

    Attributes:
        output: sums of outputs.
        powers: sums of |x|^power of inputs, for these powers.
        gradient: gradients of a loss.
        rows: a sample of activations.
    """

    output: bool = True
    powers: frozenset[int] = frozenset()
    gradient: bool = False
    rows: bool = False


@dataclass
class RunningSum:
    """A sum over all batches: float64, whatever a batch was summed in."""

    sums: Tensor | None = None
    count: int = 0

    def add(self, sums: Tensor, count: int) -> None:
        """Add a batch's sums over so many samples and positions."""
        sums = sums.detach()
        exact = (sums.cpu() if sums.device.type == "mps" else sums).double()  # MPS: no float64
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
        self.last_call = 0
        self._undecided = torch.arange(units, device=device)

    def to(self, device: torch.device) -> FiredUnits:
        """A copy on another device."""
        moved = FiredUnits(len(self.flags), device, above=self.above)
        moved.flags, moved.calls = self.flags.to(device, copy=True), self.calls
        moved.last_call = self.last_call
        return moved

    def update(self, rows: Tensor, call: int | None = None) -> None:
        """Take in the outputs of one call of the layer.

        Args:
            rows: outputs by unit, shape (rows, units) or (samples, units, positions).
            call: which one; the same once more is not counted again.
        """
        self.calls += call is None or call != self.last_call
        self.last_call = self.last_call if call is None else call
        if not self._undecided.numel():
            return
        first = _FIRST_ROWS if rows.dim() == 2 else 1
        for part in (rows[:first], rows[first:]):  # the first rows decide most units
            undecided = self._undecided
            if not undecided.numel() or not len(part):
                return
            values = part if len(undecided) == len(self.flags) else part.index_select(1, undecided)
            hits = values > 0 if self.above else values != 0
            self.flags[undecided] |= hits.any(0) if hits.dim() == 2 else hits.any(2).any(0)
            if not rows.is_cuda or not self.calls & (self.calls - 1):
                self._undecided = undecided[~self.flags[undecided]]


@dataclass
class TracedLayer:
    """A weight and its statistics.

    Attributes:
        name: of the layer.
        kind: of its module, like ``Linear``.
        module: the name of the module that holds the weight.
        operation: as in ``WeightCall``, or ``recurrent``.
        units: how many.
        spatial: the number of a convolution's spatial dimensions, else 0.
        view: of the parameter that the weight is; None where a module computes the weight.
        computed: the weight that a module computed, at the first call.
        bias: a parameter's view; None where there is none that is known.
        groups: of a convolution.
        gates: of a recurrent layer.
        transposed: whether a convolution is.
        output: Σ of the units' outputs.
        inputs: Σ |x|^power of what each weight multiplies, by power.
        hidden_input: whether what the weight multiplies cannot be seen.
        hidden_output: whether the units' outputs cannot be seen.
        calls: how often it was called.
        fired: which units were ever other than zero.
        fired_in_relu: which units were ever above zero where a ReLU read them.
        changes: whether a computed weight was another for other data.
        overflow: the dtype that could not hold the squares of finite inputs, where that was seen.
        heads: how many, of equally many units in a row, where it makes an attention's queries,
            keys or values; 0 elsewhere.
        head_parts: where it makes all three, in how many blocks of all heads.
        flops: of its products, over all data.
        has_own_taylor: whether Σ a·g of its units is summed by hooks (``UnitTaylor``).
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
    fired: FiredUnits | None = None
    fired_in_relu: FiredUnits | None = None
    changes: bool = False
    overflow: torch.dtype | None = None
    heads: int = 0
    head_parts: int = 1
    flops: int = 0
    has_own_taylor: bool = False

    @property
    def parameter(self) -> str | None:
        """The name of the parameter, where the weight is one's view."""
        return self.view.parameter if self.view else None

    @property
    def unit_dim(self) -> int:
        """The dimension of the output that counts units, from its end; a convolution's: -1."""
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
            by_gate: Tensor = tensor.unflatten(0, (self.gates, -1))
            return by_gate.transpose(0, 1)
        if self.transposed:
            grouped: Tensor = tensor.unflatten(0, (self.groups, -1))
            return grouped.transpose(1, 2).flatten(0, 1)
        return tensor

    def of_fan_in(self, sums: Tensor) -> Tensor:
        """Statistics of inputs, shape (groups, in), for all weights of a unit, every gate's."""
        return sums.repeat(1, self.gates)

    def dead_units(self) -> Tensor | None:
        """Which units were zero for all data, or never above zero before a ReLU."""
        in_relu = self.fired_in_relu
        if in_relu is not None and in_relu.calls == self.calls:
            return ~in_relu.flags
        return None if self.fired is None else ~self.fired.flags

    def rows(self, output: Tensor, positions: ValidPositions) -> Sums:
        """The outputs by unit, zero at positions that do not count, and how many count."""
        rows = by_unit(output, self.spatial, self.unit_dim)
        lead = output.shape[:-1] if self.unit_dim == -1 else (*output.shape[:-2], output.shape[-1])
        return masked_rows(rows, lead, positions)

    def add_call(
        self, call: WeightCall, output: Tensor, required: RequiredStats, positions: ValidPositions
    ) -> None:
        """Add a product of the weight to the sums.

        Args:
            call: the product.
            output: what it gave, detached.
            required: which sums.
            positions: those of the batch that count.
        """
        self.calls += 1
        self.flops += call.flops(output)
        if self.computed is not None and self.calls == 2:
            self.changes = not torch.equal(self.computed, call.weight.detach())
        sums = output_sums_by_inputs(call, output) if required.output and positions.mask is None \
            and is_cheaper_by_inputs(call, output) else None
        self._add_output(output, required, positions, sums)
        for power in required.powers:
            self._add_inputs(power, *input_sums(call, output, power, positions), call.inputs)

    def add_recurrent_call(
        self, call: RecurrentCall, required: RequiredStats, positions: ValidPositions
    ) -> None:
        """Add the hidden states of a recurrent layer, and what its weight multiplied, to the sums.

        Args:
            call: of the weight.
            required: which sums.
            positions: those of the batch that count.
        """
        self.calls += 1
        self.flops += call.flops
        if call.outputs is not None:
            self._add_output(call.outputs, required, positions)
        if call.inputs is None:
            return
        multiplied = call.multiplied() if required.powers else None
        for power in required.powers:
            sums, count = _packed_state_sums(call, power) if multiplied is None else \
                feature_sums(multiplied, power, positions)
            inputs = call.inputs if multiplied is None else multiplied
            self._add_inputs(power, sums.unsqueeze(0), count, [inputs])

    def _add_output(
        self, output: Tensor, required: RequiredStats, positions: ValidPositions,
        sums: Tensor | None = None,
    ) -> None:
        """Add outputs, of which the sums by unit may be known."""
        rows, count = self.rows(output, positions)
        if required.output:
            self.output.add(unit_sums(rows) if sums is None else sums, count)
        if self.fired is None:
            self.fired = FiredUnits(self.units, rows.device, above=False)
        self.fired.update(rows)

    def _add_inputs(self, power: int, sums: Tensor, count: int, inputs: Sequence[Tensor]) -> None:
        """Add sums of inputs; note where they are infinite though the inputs are finite.

        A GPU would have to wait for the answer: it is not asked there.
        """
        self.inputs[power].add(sums, count)
        if power == 2 and not sums.is_cuda and not bool(sums.isfinite().all()) \
                and all(bool(tensor.isfinite().all()) for tensor in inputs):
            self.overflow = sums.dtype

    def add_bias(
        self, bias: Tensor, result: Tensor, required: RequiredStats, positions: ValidPositions
    ) -> None:
        """Take in a bias that was added after the product, as if the product had had it.

        Args:
            bias: one number a unit.
            result: of the sum.
            required: which sums.
            positions: those of the batch that count.
        """
        rows, count = self.rows(result.detach(), positions)
        if required.output:
            self.output.add(bias.detach().reshape(-1).double() * count, 0)
        if self.fired is not None:
            self.fired.update(rows)
        if self.unit_dim == -1:
            tag(result, layer=self, call=self.calls, product=None)

    def record_relu_input(self, tensor: Tensor, positions: ValidPositions) -> None:
        """Note which units are above zero where a ReLU is about to read them."""
        rows, _ = self.rows(tensor.detach(), positions)
        if rows.shape[1] == self.units:
            if self.fired_in_relu is None:
                self.fired_in_relu = FiredUnits(self.units, tensor.device, above=True)
            self.fired_in_relu.update(rows, tag_of(tensor).call)


def _packed_state_sums(call: RecurrentCall, power: int) -> Sums:
    """Σ |h|^power of the states before each step of packed sequences.

    That is all states and the one before them, without the last; never below zero by rounding.
    """
    assert call.inputs is not None and call.border_states is not None, "states are not hidden"
    (states, count), (first, _), (last, _) = (
        feature_sums(tensor, power, ValidPositions())
        for tensor in (call.inputs, *call.border_states))
    return (states + first - last).clamp_min(0), count
