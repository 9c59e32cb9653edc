"""Groups of units that are pruned together, as plain data, and pruning by masking weights.

Tests: ``tests/pruning/test_cut.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from wua_mlflow.errors import did_you_mean

__all__ = ["ParameterSlice", "UnitGroup", "UnitGroups", "masked", "tied_names"]


@dataclass(frozen=True)
class ParameterSlice:
    """Where a parameter or buffer holds the units of a group.

    Attributes:
        parameter: its name in the model.
        dim: the dimension of it along which the units lie.
        columns: by unit its positions along ``dim``.
    """

    parameter: str
    dim: int
    columns: tuple[tuple[int, ...], ...] = field(repr=False)

    @property
    def module(self) -> str:
        """The name of the module that holds the parameter."""
        return self.parameter.rpartition(".")[0]

    @property
    def attribute(self) -> str:
        """The name of the parameter in its module."""
        return self.parameter.rpartition(".")[2]

    def positions(self, units: Sequence[int]) -> list[int]:
        """All positions of these units."""
        return [position for unit in units for position in self.columns[unit]]


@dataclass(frozen=True)
class UnitGroup:
    """Units (neurons, channels, heads) that can only be pruned together.

    To remove a unit is to set ``columns[unit]`` of every reader to zero: exact, whatever
    activation stands between. Where the network is cut, these columns go, and the units' rows in
    the layers that make them.

    Attributes:
        name: of the first layer that makes the units.
        layers: all that do (several, where sums tie them), and norms over each unit alone.
        readers: all weights that read them.
        units: how many there are: neurons, channels, heads or hidden units.
        kind: ``units``, ``heads`` or ``hidden`` (of a recurrent layer).
        makers: the parameters and buffers with a place for each unit in the layers that make them.
        counts: attributes of the module ``name`` that fall with the number of units.
    """

    name: str
    layers: tuple[str, ...]
    readers: tuple[ParameterSlice, ...]
    units: int
    kind: str = "units"
    makers: tuple[ParameterSlice, ...] = field(default=(), repr=False)
    counts: tuple[str, ...] = field(default=(), repr=False)

    def check_units(self, units: Sequence[int]) -> list[int]:
        """The units sorted, each once.

        Raises:
            ValueError: the group has no such unit.
        """
        wrong = [unit for unit in units if not 0 <= unit < self.units]
        if wrong:
            raise ValueError(f"units: expected numbers below {self.units} for {self.name}, but got "
                             f"{wrong[0]}")
        return sorted(set(units))

    def others(self, units: Sequence[int]) -> list[int]:
        """All units but these, in order."""
        return sorted(set(range(self.units)) - set(units))


@dataclass(frozen=True)
class UnitGroups:
    """The groups of a model, and the layers whose units cannot be cut, with the reason."""

    groups: tuple[UnitGroup, ...]
    not_prunable: Mapping[str, str]

    def group(self, name: str) -> UnitGroup:
        """The group of that name.

        Raises:
            ValueError: there is none.
        """
        groups = {group.name: group for group in self.groups}
        if name not in groups:
            raise ValueError(f"group: expected one of {', '.join(groups) or 'none'}, but got "
                             f"'{name}'{self._hint(name, groups)}")
        return groups[name]

    def group_of_layer(self, name: str, *, argument: str) -> UnitGroup:
        """The group with a layer of that name.

        Raises:
            ValueError: there is none; the message begins with ``argument``.
        """
        by_layer = {layer: group for group in self.groups for layer in (group.name, *group.layers)}
        if name not in by_layer:
            raise ValueError(f"{argument}: expected layers whose units can be cut, but got "
                             f"'{name}'{self._hint(name, by_layer)}")
        return by_layer[name]

    def _hint(self, name: str, names: Mapping[str, object]) -> str:
        reason = self.not_prunable.get(name)
        return f" ({reason})" if reason else did_you_mean(name, names)


def tied_names(model: nn.Module) -> dict[str, list[str]]:
    """All names of the tensor of each parameter: several where weights are tied.

    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    >>> net[1].weight = net[0].weight
    >>> tied_names(net)["1.weight"]
    ['0.weight', '1.weight']
    """
    by_tensor: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        by_tensor.setdefault(id(parameter), []).append(name)
    return {name: names for names in by_tensor.values() for name in names}


@contextmanager
def masked(
    model: nn.Module, structure: UnitGroups, removed: Mapping[str, Sequence[int]]
) -> Iterator[nn.Module]:
    """The model without these units while the block runs: their outgoing weights are zero.

    Afterwards its weights are bit for bit as before.

    Args:
        model: the one that ``structure`` was found in.
        structure: its groups.
        removed: by name of a group the units that go.

    Raises:
        ValueError: no such group, or no such unit of it.

    >>> from wua_mlflow.pruning.cut import unit_groups
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 1, bias=False))
    >>> groups = unit_groups(net, torch.zeros(1, 2))
    >>> with masked(net, groups, {"0": [0, 1, 2]}):
    ...     net(torch.ones(1, 2)).tolist()
    [[0.0]]
    """
    masks = []
    for name, units in removed.items():
        group = structure.group(name)
        units = group.check_units(units)
        masks += [(model.get_parameter(reader.parameter), reader.dim, reader.positions(units))
                  for reader in group.readers]
    before = {parameter: parameter.detach().clone() for parameter, _, _ in masks}
    try:
        with torch.no_grad():
            for parameter, dim, positions in masks:
                index = torch.tensor(positions, dtype=torch.long, device=parameter.device)
                parameter.index_fill_(dim, index, 0)
        yield model
    finally:
        with torch.no_grad():
            for parameter, values in before.items():
                parameter.copy_(values)
