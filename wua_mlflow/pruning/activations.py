"""The activations that the readers of a group's units take in, to measure or to change.

Tests: ``tests/pruning/test_activations.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wua_mlflow.data.batches import Batches
from wua_mlflow.hooks import evaluating, reading

if TYPE_CHECKING:
    from wua_mlflow.pruning.unit_groups import ParameterSlice, UnitGroup

__all__ = [
    "ConsumerInput", "Moments", "consumer_inputs", "measure_moments", "modified_inputs",
    "outgoing_norms", "run_over", "sum_by_unit",
]


_NUMBERS_AT_ONCE = 2**22


@dataclass(frozen=True)
class ConsumerInput:
    """Where a layer's input holds the units of a group that it reads.

    Attributes:
        module: the layer that reads them.
        columns: shape (units, positions of a unit); along the input's dimension ``dim``.
        dim: counted from the end.
        reader: the weights that read them.
    """

    module: nn.Module
    columns: Tensor
    dim: int
    reader: ParameterSlice

    def rows(self, inputs: Tensor) -> Tensor:
        """The units' activations, shape (rows, units): one row a sample and position."""
        activations = inputs.movedim(self.dim, -1)[..., self.columns.to(inputs.device)]
        return activations.transpose(-1, -2).reshape(-1, len(self.columns))

    def with_rows(self, inputs: Tensor, rows: Tensor) -> Tensor:
        """A copy of the inputs that holds other rows."""
        changed = inputs.movedim(self.dim, -1).clone()
        shape = (*changed.shape[:-1], self.columns.shape[1], len(self.columns))
        changed[..., self.columns.to(inputs.device)] = \
            rows.reshape(shape).transpose(-1, -2).to(inputs.dtype)
        return changed.movedim(-1, self.dim)


@dataclass
class Moments:
    """Running count, mean and scatter matrix of rows, in float64; the batch split does not matter.

    ``scatter`` is the sum of the outer products of the rows' deviations from ``mean``.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    def add(self, rows: Tensor) -> None:
        """Update with rows of shape (rows, units) (Chan, Golub & LeVeque 1983)."""
        for chunk in rows.detach().split(max(1, _NUMBERS_AT_ONCE // max(1, rows.shape[1]))):
            values = chunk.double()
            mean = values.mean(0)
            deviations = values - mean
            shift = mean - self.mean
            total = self.count + len(values)
            self.scatter += deviations.T @ deviations
            self.scatter += torch.outer(shift, shift) * (self.count * len(values) / total)
            self.mean += shift * (len(values) / total)
            self.count = total


def consumer_inputs(model: nn.Module, group: UnitGroup) -> list[ConsumerInput] | str:
    """The layer inputs that hold the group's units; or, in one line, why there are none to observe.

    Weights with which a recurrent layer reads its own units are left out: the same activations
    come to the other readers. So are, of the model's width, those whose inputs cannot be seen:
    every block reads it, each after a norm of its own.
    """
    if group.kind == "heads":
        return "its units are heads, not activations"
    consumers, unseen = [], ""
    for reader in group.readers:
        if reader.attribute.startswith("weight_hh"):
            continue
        module = model.get_submodule(reader.module)
        dim = _input_dim(module, reader.attribute)
        positions = {len(columns) for columns in reader.columns}
        if dim is None or len(positions) != 1 or positions == {0}:
            unseen = f"what {reader.parameter} reads cannot be seen"
            if group.kind != "stream":
                return unseen
            continue
        consumers.append(ConsumerInput(module, torch.tensor(reader.columns), dim, reader))
    return consumers or unseen or "nothing but itself reads it"


def _input_dim(module: nn.Module, attribute: str) -> int | None:
    """The dimension, from the end, of a module's input that holds the features of the weight."""
    if isinstance(module, nn.RNNBase):
        return -1 if attribute in ("weight_ih_l0", "weight_ih_l0_reverse") else None
    if attribute != "weight":
        return None
    if isinstance(module, nn.modules.conv._ConvNd):
        return -1 - len(module.kernel_size) if module.groups == 1 else None
    if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
        return -1
    return None


def outgoing_norms(model: nn.Module, group: UnitGroup) -> Tensor:
    """The L2 norm of each unit's outgoing weights, over all readers; float64, shape (units,)."""
    return sum_by_unit(group.readers, {
        reader.parameter: model.get_parameter(reader.parameter).detach().double().square()
        for reader in group.readers}).sqrt()


def sum_by_unit(slices: Sequence[ParameterSlice], values: Mapping[str, Tensor]) -> Tensor:
    """The sum over each unit's entries in tensors of the parameters' shapes."""
    total = torch.zeros(len(slices[0].columns), dtype=torch.float64)
    for slice_ in slices:
        along_dim = values[slice_.parameter].movedim(slice_.dim, 0)
        sums = along_dim.reshape(len(along_dim), -1).sum(1).cpu()
        total += torch.stack([sums[list(columns)].sum() for columns in slice_.columns])
    return total


Measured = dict[str, list[tuple[ConsumerInput, Moments]]]
"""By group the moments of what comes to each of its consumers; a count of 0 where nothing does."""


def measure_moments(
    model: nn.Module, groups: Iterable[UnitGroup], run: Callable[[], object]
) -> tuple[Measured, dict[str, str]]:
    """The moments of each group's activations; and the groups that have none, with the reason.

    Args:
        model: unwrapped.
        groups: the units.
        run: runs the model over the data.
    """
    measured: Measured = {}
    skipped: dict[str, str] = {}
    for group in groups:
        consumers = consumer_inputs(model, group)
        if isinstance(consumers, str):
            skipped[group.name] = consumers
            continue
        measured[group.name] = []
        for consumer in consumers:
            device = next(consumer.module.parameters()).device
            mean = torch.zeros(group.units, dtype=torch.float64, device=device)
            measured[group.name].append((consumer, Moments(0, mean, torch.outer(mean, mean))))
    if measured:
        with modified_inputs((consumer, moments.add) for pairs in measured.values()
                             for consumer, moments in pairs):
            run()
    return measured, skipped


def run_over(model: nn.Module, data: Any) -> None:
    """Run a model over data as ``Batches`` takes them; it is left as found."""
    with evaluating(model, grad=False):
        for batch in Batches(data, model):
            batch.call(model)


Change = tuple[ConsumerInput, Callable[[Tensor], Tensor | None]]
"""Where units are read, and a function of their rows; they stay where it returns None."""


@contextmanager
def modified_inputs(changes: Iterable[Change]) -> Iterator[None]:
    """A block in which a function observes or changes the activations that each consumer reads."""

    def visit(consumer: ConsumerInput, change: Callable[[Tensor], Tensor | None],
              inputs: Tensor) -> Tensor | None:
        rows = change(consumer.rows(inputs))
        return None if rows is None else consumer.with_rows(inputs, rows)

    with ExitStack() as hooks:
        for consumer, change in changes:
            hooks.enter_context(reading({consumer.module: partial(visit, consumer, change)}))
        yield
