"""One layer under observation: its weight, and what was summed of the activations that it met.

May import: torch, calls, owners. Tests: ``tests/watching/test_layer.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from wua_mlflow.watching.owners import View

__all__ = ["Alive", "Layer", "Total"]


_A_FEW = 64


@dataclass
class Total:
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


class Alive:
    """Which units were ever above zero (or other than zero); the decided ones cost nothing more.

    On a GPU the list of the undecided ones is read back after 1, 2, 4, 8, … batches only.
    """

    def __init__(self, units: int, device: torch.device, *, above: bool) -> None:
        self.flags = torch.zeros(units, dtype=torch.bool, device=device)
        self.above = above
        self.calls = 0
        self.last = 0
        self._undecided = torch.arange(units, device=device)

    def to(self, device: torch.device) -> Alive:
        """The same on another device, decided or not."""
        moved = Alive(len(self.flags), device, above=self.above)
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
class Layer:
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
    view: View | None = None
    computed: Tensor | None = None
    bias: View | None = None
    groups: int = 1
    gates: int = 1
    transposed: bool = False
    output: Total = field(default_factory=Total)
    inputs: dict[int, Total] = field(default_factory=lambda: {1: Total(), 2: Total()})
    hidden_input: bool = False
    hidden_output: bool = False
    calls: int = 0
    alive: Alive | None = None
    alive_after_relu: Alive | None = None
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
