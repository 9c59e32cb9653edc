"""Which units go together: groups as plain data, read from the pruning library's dependency graph.

May import: torch, dotted. Tests: ``tests/slimming/test_groups.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from wua_mlflow.errors import did_you_mean

__all__ = ["ParameterSlice", "UnitGroup", "UnitGroups", "names_by_tensor"]


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

    def of(self, units: Sequence[int]) -> list[int]:
        """All positions of these units."""
        return [place for unit in units for place in self.columns[unit]]


@dataclass(frozen=True)
class UnitGroup:
    """Units that exist once in the network, whichever layers make them.

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


@dataclass(frozen=True)
class UnitGroups:
    """The groups of a model, and the layers whose units cannot be cut, with the reason."""

    groups: tuple[UnitGroup, ...]
    fixed: Mapping[str, str]

    def group(self, name: str) -> UnitGroup:
        """The group of that name.

        Raises:
            ValueError: there is none.
        """
        for one in self.groups:
            if one.name == name:
                return one
        names = [one.name for one in self.groups]
        why = f" ({self.fixed[name]})" if name in self.fixed else did_you_mean(name, names)
        raise ValueError(f"group: expected one of {', '.join(names) or 'none'}, but got "
                         f"'{name}'{why}")


def names_by_tensor(model: nn.Module) -> dict[str, list[str]]:
    """By each name of a parameter all names of the same tensor.

    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    >>> net[1].weight = net[0].weight
    >>> names_by_tensor(net)["1.weight"]
    ['0.weight', '1.weight']
    """
    by_tensor: dict[int, list[str]] = {}
    for name, one in model.named_parameters(remove_duplicate=False):
        by_tensor.setdefault(id(one), []).append(name)
    return {name: names for names in by_tensor.values() for name in names}
