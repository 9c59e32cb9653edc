"""Cutting units out of a trained network, and seeing that the cut is what was planned.

May import: torch, flops, hooks, slimming. Tests: ``tests/slimming/test_cutting.py``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from wua_mlflow.flops import count_parameters
from wua_mlflow.hooks import unwrapped
from wua_mlflow.pruning.dependency_graph import Graph
from wua_mlflow.pruning.find_groups import found_groups, makes_units, plain_copy
from wua_mlflow.pruning.heads import (
    ATTENTION,
    head_attribute_candidates,
    without_heads,
    without_projected_heads,
)
from wua_mlflow.pruning.masking import checked_units
from wua_mlflow.pruning.unit_groups import UnitGroup, UnitGroups
from wua_mlflow.pruning.verify import Removed, WrongCutError, check_cut, ties_of, worded
from wua_mlflow.rng import isolated

__all__ = ["Cut", "Specification", "cut", "cut_out", "rebuild", "unit_groups"]


TRIAL = "cut on trial"


@dataclass(frozen=True)
class Cut:
    """A network that was cut, and verified.

    Attributes:
        model: the cut network, on the device and in the modes of the original.
        specification: from which, with the factory, the module is made again.
        units: by group how many units there were and are.
        params_before: number of parameters of the original.
        params_after: of the cut network.
        flops_before: of a forward on the example.
        flops_after: the same of the cut network.
        fixed: layers whose units could not be cut, with the reason.
    """

    model: nn.Module = field(repr=False)
    specification: Specification
    units: Mapping[str, tuple[int, int]]
    params_before: int
    params_after: int
    flops_before: int
    flops_after: int
    fixed: Mapping[str, str]


def unit_groups(model: nn.Module, example: Any) -> UnitGroups:
    """The groups of units that can be cut, each tried out; and the layers that cannot, with why.

    Args:
        model: any module; left as found.
        example: a batch as the model takes it: a tensor, a tuple of arguments, a dict of keywords.

    Raises:
        ValueError: the model cannot be followed, or is an exported graph.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> found = unit_groups(net, torch.zeros(4, 2))
    >>> found.groups[0].name, found.groups[0].units, found.groups[0].readers[0].parameter
    ('0', 3, '2.weight')
    """
    with isolated():
        twin = plain_copy(model)
        structure = found_groups(copy.deepcopy(twin), example)
        structure, wrong = resolve_head_attributes(twin, example, structure)
        last = {one.name: [one.units - 1] for one in structure.groups
                if one.units > 1 and one.name not in wrong}
        wrong |= _wrong_groups(twin, example, structure, last)
    wrong |= {one.name: "it has one unit" for one in structure.groups if one.units == 1}
    groups = tuple(one for one in structure.groups if one.name not in wrong)
    left = {layer: wrong[one.name] for one in structure.groups if one.name in wrong
            for layer in one.layers
            if layer == one.name or makes_units(twin.get_submodule(layer))}
    return UnitGroups(groups, {**structure.fixed, **left})


def cut(model: nn.Module, example: Any, keep: Mapping[str, Sequence[int]]) -> Cut:
    """The network with these units of each group alone; groups that are not named keep all.

    Verified after the cut, at several batch sizes: shapes, parameters and FLOPs are what was
    planned, weights that were tied still are, and the outputs are those of the masked original.

    Args:
        model: any module; left as found.
        example: a batch as the model takes it.
        keep: by name of a group the units that stay.

    Raises:
        ValueError: no such group or unit, a group would be emptied, nothing would be cut, or the
            cut network is not what was planned.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> cut(net, torch.zeros(4, 2), {"0": [0, 2]}).model
    Sequential(
      (0): Linear(in_features=2, out_features=2, bias=True)
      (1): ReLU()
      (2): Linear(in_features=2, out_features=1, bias=True)
    )
    """
    structure = unit_groups(model, example)
    kept = {name: _kept(structure, name, units) for name, units in keep.items()}
    removed = {name: sorted(set(range(structure.group(name).units)) - set(units))
               for name, units in kept.items()}
    removed = {name: units for name, units in removed.items() if units}
    if not removed:
        raise ValueError("keep: expected fewer units than there are in at least one group, but "
                         "nothing would be cut")
    plain = unwrapped(model)
    with isolated():
        made = cut_out(plain, example, structure, removed)
        try:
            before, after = check_cut(plain, made, structure, removed, example)
        except WrongCutError as error:
            raise ValueError(f"model: cut as asked it is not what was planned: {error}") from error
    return Cut(made, Specification(({name: tuple(kept[name]) for name in removed},)),
               {one.name: (one.units, one.units - len(removed.get(one.name, ())))
                for one in structure.groups},
               count_parameters(plain), count_parameters(made), before.forward_flops,
               after.forward_flops, structure.fixed)


def cut_out(
    model: nn.Module, example: Any, structure: UnitGroups, removed: Removed
) -> nn.Module:
    """A copy without these units, not verified; modes, ties and ``requires_grad`` are kept."""
    made = copy.deepcopy(model)
    modes = {name: module.training for name, module in made.named_modules()}
    frozen = {name for name, one in made.named_parameters(remove_duplicate=False)
              if not one.requires_grad}
    ties = ties_of(made)
    made.eval().requires_grad_(True)
    groups = {name: structure.group(name) for name in removed}
    if any(one.kind != "heads" for one in groups.values()):
        graph = Graph(made, example)
        for name, units in removed.items():
            if groups[name].kind != "heads":
                layer = made.get_submodule(name)
                hidden = getattr(layer, "hidden_size", 0)
                both = [hidden + unit for unit in units] if \
                    getattr(layer, "bidirectional", False) else []
                graph.remove(name, [*units, *both])
    for name, units in removed.items():
        if isinstance(made.get_submodule(name), ATTENTION):
            kept = sorted(set(range(groups[name].units)) - set(units))
            without_heads(made, name, kept)
        elif groups[name].kind == "heads":
            without_projected_heads(made, groups[name], units)
    _tied(made, ties)
    for name, module in made.named_modules():
        module.training = modes.get(name, modes.get(name.rpartition(".")[0], False))
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
    for name, one in made.named_parameters(remove_duplicate=False):
        one.requires_grad_(name not in frozen)
        one.grad = None
    return made


def resolve_head_attributes(
    model: nn.Module, example: Any, structure: UnitGroups
) -> tuple[UnitGroups, dict[str, str]]:
    """The heads with the numbers of their modules that fall with them, by trial; and which fail.

    Modules of one class are alike: cut half of them at a time, since heads that other modules
    count on (a bias that a later layer takes over) show only where these keep theirs.
    """
    by_class: dict[type, list[UnitGroup]] = {}
    for one in structure.groups:
        module = model.get_submodule(one.name)
        if one.kind == "heads" and not isinstance(module, ATTENTION):
            by_class.setdefault(type(module), []).append(one)
    wrong: dict[str, str] = {}
    for alike in by_class.values():
        for some in ([alike], [[one] for one in alike]):
            tried = [_by_trial(model, example, structure, part) for part in some]
            if not any(why for _, why in tried):
                break
        for found, why in tried:
            chosen = {one.name: one for one in found}
            structure = replace(structure, groups=tuple(
                chosen.get(one.name, one) for one in structure.groups))
            wrong |= dict.fromkeys(chosen, f"{TRIAL}, {why}") if why else {}
    return structure, wrong


def _by_trial(
    model: nn.Module, example: Any, structure: UnitGroups, alike: Sequence[UnitGroup]
) -> tuple[Sequence[UnitGroup], str]:
    """These heads, in the first spelling that a cut succeeds in; else the likeliest, and why."""
    first: tuple[Sequence[UnitGroup], str] | None = None
    for way in zip(*(list(head_attribute_candidates(model, one)) for one in alike), strict=False):
        chosen = {one.name: one for one in way}
        found = replace(structure, groups=tuple(
            chosen.get(one.name, one) for one in structure.groups))
        halves = [half for half in (way[::2], way[1::2]) if half]
        why = next((why for half in halves if (why := _failure(
            model, example, found, {one.name: [one.units - 1] for one in half}))), "")
        if not why:
            return way, ""
        if first is None or not any(one.counts for one in first[0]):
            first = way, why
    assert first is not None
    return first


def _wrong_groups(
    model: nn.Module, example: Any, structure: UnitGroups, removed: Removed
) -> dict[str, str]:
    """The groups whose cut is not what was planned, alone or beside those before it."""
    if not removed or not _failure(model, example, structure, removed):
        return {}
    alone = {name: _failure(model, example, structure, {name: units})
             for name, units in removed.items()}
    wrong = {name: f"{TRIAL}, {why}" for name, why in alone.items() if why}
    good: dict[str, Sequence[int]] = {}

    def add(names: Sequence[str]) -> None:
        """Take them in: all at once, or else by halves."""
        more = {name: removed[name] for name in names}
        why = _failure(model, example, structure, {**good, **more}) if more else ""
        if not why:
            good.update(more)
        elif len(names) == 1:
            wrong[names[0]] = f"{TRIAL} together with others, {why}"
        else:
            add(names[:len(names) // 2])
            add(names[len(names) // 2:])

    add([name for name in removed if name not in wrong])
    return wrong


def _failure(model: nn.Module, example: Any, structure: UnitGroups, removed: Removed) -> str:
    try:
        made = cut_out(model, example, structure, removed)
        check_cut(model, made, structure, removed, example)
    except WrongCutError as error:
        return str(error)
    except Exception as error:  # of the library, which fails in many ways
        return worded(error)
    return ""


def _kept(structure: UnitGroups, name: str, units: Sequence[int]) -> list[int]:
    group = structure.group(name)
    kept = checked_units(group, list(units))
    if not kept:
        raise ValueError(f"keep: expected at least one unit of {name}, but got none: the layer "
                         f"would be empty")
    return kept


def _tied(model: nn.Module, ties: set[tuple[str, ...]]) -> None:
    """Tie parameters again that the library took apart, where they still are alike."""
    names = dict(model.named_parameters(remove_duplicate=False))
    for tie in ties:
        if not all(name in names for name in tie):
            continue
        first = names[tie[0]]
        for name in tie[1:]:
            other = names[name]
            if other is not first and other.shape == first.shape and torch.equal(other, first):
                parent, _, last = name.rpartition(".")
                setattr(model.get_submodule(parent), last, first)


FORMAT = 1
Kept = Mapping[str, tuple[int, ...]]
"""By group the units that stay."""


@dataclass(frozen=True)
class Specification:
    """The units that were kept, by group; a mapping for each time that the network was cut."""

    rounds: tuple[Kept, ...]

    @property
    def summary(self) -> str:
        """How many units stay, by group.

        >>> Specification(({"fc1": (0, 2, 5)},)).summary
        'fc1 3'
        """
        return ", ".join(f"{name} {count}" for name, count in self.left.items())

    @property
    def left(self) -> dict[str, int]:
        """By group that was cut, how many units are left."""
        return {name: len(units) for kept in self.rounds for name, units in kept.items()}

    def then(self, later: Specification) -> Specification:
        """This, and after it what was cut later."""
        return Specification((*self.rounds, *later.rounds))

    def to_json(self) -> str:
        """As text, from which ``from_json`` makes it again."""
        return json.dumps({"format": FORMAT, "kept": [
            {name: list(units) for name, units in kept.items()} for kept in self.rounds]})

    @classmethod
    def from_json(cls, text: str) -> Specification:
        """What ``to_json`` wrote.

        Raises:
            ValueError: it is no such text.

        >>> one = Specification(({"fc1": (0, 2)},))
        >>> Specification.from_json(one.to_json()) == one
        True
        """
        try:
            found = json.loads(text)
            if found["format"] != FORMAT:
                raise ValueError(f"format {found['format']}")
            return cls(tuple({str(name): tuple(map(int, units)) for name, units in kept.items()}
                             for kept in found["kept"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"structure: expected a specification of format {FORMAT}, but got "
                             f"{type(error).__name__}: {error}") from error


def rebuild(model: nn.Module, example: Any, specification: Specification) -> nn.Module:
    """The cut module, made again from what the factory makes; its weights mean nothing yet.

    Args:
        model: fresh from the factory; left as found.
        example: a batch as the model takes it.
        specification: what was cut.

    Raises:
        ValueError: the factory makes another network than the one that was cut.
    """
    pass

    for kept in specification.rounds:
        model = cut(model, example, kept).model
    return model
