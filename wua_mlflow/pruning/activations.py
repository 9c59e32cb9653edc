"""What a group's readers read: its units' activations, to measure or to change.

May import: torch, chunks, dotted, hooks, slimming. Tests: ``tests/slimming/test_activations.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from wua_mlflow.device import rows_at_once
from wua_mlflow.hooks import evaluating, reading

if TYPE_CHECKING:
    from wua_mlflow.pruning.unit_groups import ParameterSlice, UnitGroup

__all__ = [
    "ConsumerInput", "Moments", "consumer_inputs", "forwards", "modified_inputs", "moments",
    "outgoing_norms",
]


_NUMBERS_AT_ONCE = 2**22


@dataclass(frozen=True)
class ConsumerInput:
    """Where a module's input holds a group's units.

    ``columns`` has shape (units, positions of a unit) and indexes the input's dimension ``dim``,
    counted from the end.
    """

    module: nn.Module
    columns: Tensor
    dim: int

    def rows(self, inputs: Tensor) -> Tensor:
        """The units' activations, shape (rows, units): one row a sample and position."""
        found = inputs.movedim(self.dim, -1)[..., self.columns.to(inputs.device)]
        return found.transpose(-1, -2).reshape(-1, len(self.columns))

    def with_rows(self, inputs: Tensor, rows: Tensor) -> Tensor:
        """A copy of the inputs that holds other rows."""
        changed = inputs.movedim(self.dim, -1).clone()
        shape = (*changed.shape[:-1], self.columns.shape[1], len(self.columns))
        changed[..., self.columns.to(inputs.device)] = \
            rows.reshape(shape).transpose(-1, -2).to(inputs.dtype)
        return changed.movedim(-1, self.dim)


@dataclass
class Moments:
    """Count, mean and scatter of rows, in float64, whatever the batches.

    ``scatter`` is the sum of the outer products of the rows' deviations from ``mean``.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    def add(self, rows: Tensor) -> None:
        """Take in rows of shape (rows, units) (Chan, Golub & LeVeque 1983)."""
        for piece in rows.split(max(1, _NUMBERS_AT_ONCE // max(1, rows.shape[1]))):
            some = piece.double()
            mean = some.mean(0)
            apart = some - mean
            shift = mean - self.mean
            total = self.count + len(some)
            self.scatter += apart.T @ apart
            self.scatter += torch.outer(shift, shift) * (self.count * len(some) / total)
            self.mean += shift * (len(some) / total)
            self.count = total


def consumer_inputs(model: nn.Module, group: UnitGroup) -> list[ConsumerInput] | str:
    """Where the group's readers take it in; or, in one line, why that cannot be seen.

    Weights with which a recurrent layer reads its own units are left out: the same activations
    come to the other readers.
    """
    if group.kind == "heads":
        return "its units are heads, not activations"
    found = []
    for reader in group.readers:
        owner, _, leaf = reader.parameter.rpartition(".")
        if leaf.startswith("weight_hh"):
            continue
        port = _port(model.get_submodule(owner), leaf, reader)
        if port is None:
            return f"what {reader.parameter} reads cannot be seen"
        found.append(port)
    return found or "nothing but itself reads it"


def outgoing_norms(model: nn.Module, group: UnitGroup) -> Tensor:
    """The norm of the weights that read each unit, over all readers; float64, shape (units,)."""
    total = torch.zeros(group.units, dtype=torch.float64)
    for reader in group.readers:
        weight = model.get_parameter(reader.parameter).detach().double().cpu()
        squares = weight.movedim(reader.dim, 0).flatten(1).square().sum(1)
        total += torch.stack([squares[list(columns)].sum() for columns in reader.columns])
    return total.sqrt()


def moments(
    model: nn.Module, groups: Mapping[str, list[ConsumerInput]], run: Callable[[], object]
) -> dict[str, list[Moments]]:
    """The moments of what comes to each port while ``run`` runs the model.

    A port that nothing comes to has a count of 0.
    """
    found = {name: [_nothing(port) for port in own] for name, own in groups.items()}
    taking: dict[nn.Module, list[Callable[[Tensor], None]]] = {}
    for name, own in groups.items():
        for port, one in zip(own, found[name], strict=True):
            taking.setdefault(port.module, []).append(_taker(port, one))

    def all_of(takers: list[Callable[[Tensor], None]]) -> Callable[[Tensor], None]:
        def take(inputs: Tensor) -> None:
            for taker in takers:
                taker(inputs)

        return take

    with reading({module: all_of(takers) for module, takers in taking.items()}):
        run()
    return found


def forwards(model: nn.Module, inputs: Tensor) -> None:
    """Run a model over the inputs, a few at a time; left as found."""
    with evaluating(model, grad=False):
        for rows in inputs.split(rows_at_once(inputs.shape)):
            model(rows.clone())


Change = tuple[ConsumerInput, Callable[[Tensor], Tensor]]
"""A port, and a function of its rows."""


def modified_inputs(changes: list[Change]) -> AbstractContextManager[None]:
    """A block in which each port's rows pass through its function before they are read."""
    by_module: dict[nn.Module, list[Change]] = {}
    for port, change in changes:
        by_module.setdefault(port.module, []).append((port, change))

    def changed(own: list[Change]) -> Callable[[Tensor], Tensor]:
        def change_all(inputs: Tensor) -> Tensor:
            for port, change in own:
                inputs = port.with_rows(inputs, change(port.rows(inputs)))
            return inputs

        return change_all

    return reading({module: changed(own) for module, own in by_module.items()})


def _port(module: nn.Module, leaf: str, reader: ParameterSlice) -> ConsumerInput | None:
    widths = {len(columns) for columns in reader.columns}
    dim = _dim(module, leaf)
    if dim is None or len(widths) != 1 or not math.prod(widths):
        return None
    return ConsumerInput(module, torch.tensor(reader.columns), dim)


def _dim(module: nn.Module, leaf: str) -> int | None:
    """Along which dimension, from the end, a module's input holds what the weight reads."""
    if isinstance(module, nn.RNNBase):
        return -1 if leaf in ("weight_ih_l0", "weight_ih_l0_reverse") else None
    if leaf != "weight":
        return None
    if isinstance(module, nn.modules.conv._ConvNd):
        return -1 - len(module.kernel_size) if module.groups == 1 else None
    if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
        return -1
    return None


def _nothing(port: ConsumerInput) -> Moments:
    device = next((parameter.device for parameter in port.module.parameters()), None)
    mean = torch.zeros(len(port.columns), dtype=torch.float64, device=device)
    return Moments(0, mean, torch.outer(mean, mean))


def _taker(port: ConsumerInput, found: Moments) -> Callable[[Tensor], None]:
    return lambda inputs: found.add(port.rows(inputs.detach()))
