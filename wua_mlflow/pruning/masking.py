"""The masked original: units removed in place, by the columns that read them, and put back.

May import: torch, slimming. Tests: ``tests/slimming/test_masked.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from wua_mlflow.pruning.unit_groups import UnitGroup, UnitGroups

__all__ = ["checked_units", "columns_of", "masked"]


@contextmanager
def masked(
    model: nn.Module, structure: UnitGroups, removed: Mapping[str, Sequence[int]]
) -> Iterator[nn.Module]:
    """The model without these units; afterwards its weights are bit for bit as before.

    Args:
        model: the one that ``structure`` was found in.
        structure: its groups.
        removed: by name of a group the units that go.

    Raises:
        ValueError: no such group, or no such unit of it.

    >>> from wua_mlflow.slimming import unit_groups
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 1, bias=False))
    >>> groups = unit_groups(net, torch.zeros(1, 2))
    >>> with masked(net, groups, {"0": [0, 1, 2]}):
    ...     net(torch.ones(1, 2)).tolist()
    [[0.0]]
    """
    columns = [(model.get_parameter(name), dim, places)
               for group, units in removed.items()
               for name, dim, places in columns_of(
                   structure.group(group), checked_units(structure.group(group), units))]
    before = [(parameter, parameter.detach().clone())
              for parameter in {id(one): one for one, _, _ in columns}.values()]
    try:
        with torch.no_grad():
            for parameter, dim, places in columns:
                parameter.index_fill_(dim, torch.tensor(places, device=parameter.device), 0)
        yield model
    finally:
        with torch.no_grad():
            for parameter, values in before:
                parameter.copy_(values)


def columns_of(
    group: UnitGroup, units: Sequence[int]
) -> Iterator[tuple[str, int, list[int]]]:
    """By reader the parameter, its dimension, and the positions that read these units."""
    for reader in group.readers:
        places = reader.of(units)
        if places:
            yield reader.parameter, reader.dim, places


def checked_units(group: UnitGroup, units: Sequence[int]) -> list[int]:
    """The units in order, each once.

    Raises:
        ValueError: the group has no such unit.
    """
    wrong = [unit for unit in units if not 0 <= unit < group.units]
    if wrong:
        raise ValueError(f"units: expected numbers below {group.units} for {group.name}, but got "
                         f"{wrong[0]}")
    return sorted(set(units))
