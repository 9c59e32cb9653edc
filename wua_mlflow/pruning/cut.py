"""Cutting units out of a trained network; each cut is verified to be what was planned.

Tests: ``tests/pruning/test_cut.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from wua_mlflow.display import Displayed, Summary
from wua_mlflow.errors import group_by_reason
from wua_mlflow.flops import count_parameters
from wua_mlflow.hooks import unwrapped
from wua_mlflow.module_attributes import copied
from wua_mlflow.pruning.computed_weights import plain_weights
from wua_mlflow.pruning.configuration import Reload
from wua_mlflow.pruning.find_groups import KINDS, find_groups, makes, prunable_copy
from wua_mlflow.pruning.heads import (
    ATTENTION,
    counting_modules,
    head_attribute_candidates,
    width_attribute_candidates,
)
from wua_mlflow.pruning.slicing import slice_units
from wua_mlflow.pruning.unit_groups import UnitGroup, UnitGroups
from wua_mlflow.pruning.verify import (
    Removed,
    WrongCutError,
    check_cut,
    check_trial,
    describe_failure,
)
from wua_mlflow.rng import isolated
from wua_mlflow.verdict.text import ratio_words

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Cut", "Specification", "cut", "rebuild", "remove_units", "unit_groups"]


TRIAL = "cut on trial"


@dataclass(frozen=True, repr=False)
class Cut(Displayed):
    """A pruned network, verified to be what was planned, and what was cut.

    Attributes:
        model: the cut network, on the device and in the modes of the original.
        specification: from which, with the factory, the module is made again.
        units: by group how many units there were and are.
        params_before: number of parameters of the original.
        params_after: of the cut network.
        flops_before: of a forward on the example.
        flops_after: the same of the cut network.
        fixed: layers whose units could not be cut, with the reason.
        unverified: batches that the original itself refuses, so that the cut is not verified there.
        reload: whether ``from_pretrained`` makes it again, of ``slim`` on a model of transformers.
    """

    model: nn.Module
    specification: Specification
    units: Mapping[str, tuple[int, int]]
    params_before: int
    params_after: int
    flops_before: int
    flops_after: int
    fixed: Mapping[str, str]
    unverified: tuple[str, ...] = ()
    reload: Reload | None = None

    def summary(self) -> Summary:
        """What is shown of it: a group of units a row, then parameters and FLOPs."""
        params, flops = ((self.params_before, self.params_after),
                         (self.flops_before, self.flops_after))
        fewer = [ratio_words(before / after, "fewer", "more") if after else "no"
                 for before, after in (params, flops)]
        return Summary(
            f"Cut: {fewer[0]} parameters, {fewer[1]} FLOPs of a forward",
            ("units of", "before", "after", "kept", "ratio"),
            [(name, *_change(*units)) for name, units in self.units.items()],
            [("parameters", *_change(*params)), ("FLOPs, forward", *_change(*flops))],
            [*(f"not cut: {names}: {why}" for names, why in group_by_reason(self.fixed)),
             *self.caveats, *([str(self.reload)] if self.reload else [])])

    @property
    def caveats(self) -> tuple[str, ...]:
        """What the verification leaves out, in a line; none where the original takes all of it."""
        if not self.unverified:
            return ()
        return (f"not verified on {', '.join(self.unverified)}: the original itself does not take "
                f"{'it' if len(self.unverified) == 1 else 'them'}",)

    def table(self) -> pd.DataFrame:
        """By group how many units there were and are, and the share that is kept."""
        import pandas as pd

        units = pd.DataFrame.from_dict(dict(self.units), orient="index",
                                       columns=["before", "after"]).rename_axis("group")
        return units.assign(kept=units["after"] / units["before"])


def _change(before: int, after: int) -> tuple[str, str, str, str]:
    return (f"{before:,}", f"{after:,}", f"{after / before:.1%}" if before else "–",
            f"{before / after:.2f}×" if after else "–")


def unit_groups(
    model: nn.Module, example: Any, what: Sequence[str] = ("units", "heads")
) -> UnitGroups:
    """The groups of units that can be cut, by trial; and the layers that cannot, with reasons.

    Args:
        model: any module; left as found.
        example: a batch as the model takes it: a tensor, a tuple of arguments, a dict of keywords.
        what: which kinds of units: ``units``, ``heads``, ``stream`` (what norms go over).

    Raises:
        ValueError: the model cannot be followed, or is an exported graph.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> group = unit_groups(net, torch.zeros(4, 2)).groups[0]
    >>> group.name, group.units, group.readers[0].parameter
    ('0', 3, '2.weight')
    """
    with isolated():
        plain = prunable_copy(model)
        trial = _Trial(plain, example)
        structure = find_groups(copied(plain), example, what)
        structure, refused = resolve_head_attributes(trial, structure)
        every_other = {group.name: group.others(range(0, group.units, 2))
                       for group in structure.groups
                       if group.units > 1 and group.name not in refused}
        together = _TogetherOnTrial(trial, structure, every_other)
        together.add(list(every_other))
    structure, refused = together.structure, refused | together.failing
    refused |= {group.name: "it has one unit" for group in structure.groups if group.units == 1}
    not_prunable = {layer: refused[group.name] for group in structure.groups
                    if group.name in refused for layer in group.layers
                    if layer == group.name or makes(plain, layer)}
    return UnitGroups(tuple(group for group in structure.groups if group.name not in refused),
                      {**structure.not_prunable, **not_prunable})


def cut(
    model: nn.Module, example: Any, keep: Mapping[str, Sequence[int]],
    structure: UnitGroups | None = None,
) -> Cut:
    """A copy of the network with only these units of each group; groups not named keep all.

    Verified after the cut, at several batch sizes: shapes, parameters and FLOPs are what was
    planned, weights that were tied still are, and the outputs are those of the masked original.
    Batches that the original itself does not take are left out of that, and named.

    Args:
        model: any module; left as found.
        example: a batch as the model takes it.
        keep: by name of a group the units that stay.
        structure: the groups of this network, where ``unit_groups`` has found them already.

    Raises:
        ValueError: no such group or unit, a group would be emptied, nothing would be cut, or the
            cut network is not what was planned.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> cut(net, torch.zeros(4, 2), {"0": [0, 2]}).model
    Sequential(
      (0): Linear(in_features=2, out_features=2, bias=True)
      (1): ReLU()
      (2): Linear(in_features=2, out_features=1, bias=True)
    )
    """
    structure = structure or unit_groups(model, example)
    kept: dict[str, tuple[int, ...]] = {}
    removed: dict[str, list[int]] = {}
    for name, units in keep.items():
        group = structure.group(name)
        staying = group.check_units(units)
        if not staying:
            raise ValueError(f"keep: expected at least one unit of {name}, but got none: the layer "
                             f"would be empty")
        if len(staying) < group.units:
            kept[name], removed[name] = tuple(staying), group.others(staying)
    if not removed:
        raise ValueError("keep: expected fewer units than there are in at least one group, but "
                         "nothing would be cut")
    original = plain_weights(unwrapped(model))
    with isolated():
        pruned = remove_units(original, structure, removed)
        try:
            checked = check_cut(original, pruned, structure, removed, example)
        except WrongCutError as error:
            raise ValueError(f"model: cut as asked it is not what was planned: {error}") from error
    units_of = {group.name: (group.units, len(kept.get(group.name, range(group.units))))
                for group in structure.groups}
    return Cut(pruned, Specification((kept,)), units_of, count_parameters(original),
               count_parameters(pruned), checked.before.forward_flops,
               checked.after.forward_flops, structure.not_prunable, checked.refused)


def remove_units(model: nn.Module, structure: UnitGroups, removed: Removed) -> nn.Module:
    """A copy without these units, not verified; modes, ties and ``requires_grad`` are kept."""
    pruned = copied(model)
    slice_units(pruned, [(structure.group(name), units) for name, units in removed.items()])
    for parameter in pruned.parameters():
        parameter.grad = None
    return pruned


@dataclass
class _Trial:
    """A network whose units are cut on trial."""

    model: nn.Module
    example: Any

    def failure(self, structure: UnitGroups, removed: Removed) -> str:
        """What is wrong with the network without these units; "" where it is as planned."""
        try:
            pruned = remove_units(self.model, structure, removed)
            check_trial(self.model, pruned, structure, removed, self.example)
        except WrongCutError as error:
            return str(error)
        except Exception as error:  # whatever the cut made of the forward
            return describe_failure(error)
        return ""


def resolve_head_attributes(
    trial: _Trial, structure: UnitGroups
) -> tuple[UnitGroups, dict[str, str]]:
    """Find by trial which attributes of a module (as ``num_heads``) must change when heads are cut.

    Returns the structure with these, and the groups for which no choice works, with the reason.

    Modules of one class are alike: cut half of them at a time, since heads that other modules
    count on (a bias that a later layer takes over) show only where these keep theirs.
    """
    by_class: dict[type, list[UnitGroup]] = {}
    for group in structure.groups:
        if group.kind != "heads":
            continue
        modules = counting_modules(trial.model, group)
        if not any(isinstance(module, ATTENTION) for module in modules):
            by_class.setdefault(type(modules[-1]), []).append(group)
    refused: dict[str, str] = {}
    for alike in by_class.values():
        results = [_resolve_by_trial(trial, structure, alike)]
        if results[0][1]:
            results = [_resolve_by_trial(trial, structure, [group]) for group in alike]
        for groups, failure in results:
            structure = _with_groups(structure, groups)
            if failure:
                refused |= {group.name: f"{TRIAL}, {failure}" for group in groups}
    return structure, refused


def _resolve_by_trial(
    trial: _Trial, structure: UnitGroups, alike: Sequence[UnitGroup]
) -> tuple[Sequence[UnitGroup], str]:
    """The groups with the first attributes that work; else the likeliest ones, and the error."""
    results: list[tuple[Sequence[UnitGroup], str]] = []
    candidates = (list(head_attribute_candidates(trial.model, group)) for group in alike)
    for groups in zip(*candidates, strict=False):
        resolved = _with_groups(structure, groups)
        failure = next(filter(None, (
            trial.failure(resolved, {group.name: [group.units - 1] for group in half})
            for half in (groups[::2], groups[1::2]) if half)), "")
        if not failure:
            return groups, ""
        results.append((groups, failure))
    return next((result for result in results if any(group.counts for group in result[0])),
                results[-1])


def _with_groups(structure: UnitGroups, groups: Sequence[UnitGroup]) -> UnitGroups:
    """The structure with these groups instead of those of the same names."""
    by_name = {group.name: group for group in (*structure.groups, *groups)}
    return replace(structure, groups=tuple(by_name.values()))


@dataclass
class _TogetherOnTrial:
    """Groups that are cut on trial together, added as many at a time as work.

    Attributes:
        trial: the network.
        structure: its groups, with the numbers of modules that fall with them as they are found.
        removed: by name of a group the units that go on trial.
        working: the same of those that work together.
        failing: by name of the others what goes wrong.
        learned: by class of the modules around a group the numbers that had to fall with one.
    """

    trial: _Trial
    structure: UnitGroups
    removed: Removed
    working: dict[str, Sequence[int]] = field(default_factory=dict)
    failing: dict[str, str] = field(default_factory=dict)
    learned: dict[tuple[type, ...], tuple[str, ...]] = field(default_factory=dict)

    def add(self, names: Sequence[str]) -> None:
        """Add these groups to those that work: all at once, or else by halves."""
        if not names:
            return
        self._apply_learned(names)
        failure = self._failure(self.structure, names)
        if not failure:
            self.working |= {name: self.removed[name] for name in names}
        elif len(names) > 1:
            self.add(names[:len(names) // 2])
            self.add(names[len(names) // 2:])
        elif not self._resolved(names[0]):
            alone = self.trial.failure(self.structure, {names[0]: self.removed[names[0]]}) \
                if self.working else failure
            where = TRIAL if alone else f"{TRIAL} together with others"
            self.failing[names[0]] = f"{where}, {alone or failure}"

    def _failure(self, structure: UnitGroups, names: Sequence[str]) -> str:
        added = {name: self.removed[name] for name in names}
        return self.trial.failure(structure, {**self.working, **added})

    def _resolved(self, name: str) -> bool:
        """Whether the group works once numbers of modules around it fall."""
        for group in width_attribute_candidates(self.trial.model, self.structure.group(name)):
            resolved = _with_groups(self.structure, [group])
            if not self._failure(resolved, [name]):
                self.structure = resolved
                self.working[name] = self.removed[name]
                self.learned[self._around(group)] = group.counts
                return True
        return False

    def _apply_learned(self, names: Sequence[str]) -> None:
        """What had to fall with one group falls with those in modules of the same classes."""
        for name in names:
            group = self.structure.group(name)
            counts = self.learned.get(self._around(group), ())
            if counts and not group.counts:
                known = next((each for each in width_attribute_candidates(
                    self.trial.model, group) if each.counts == counts), None)
                self.structure = _with_groups(self.structure, [known] if known else [])

    def _around(self, group: UnitGroup) -> tuple[type, ...]:
        """The classes of the two modules around what makes its units."""
        path = group.makers[0].module.split(".") if group.makers else []
        names = [".".join(path[:depth]) for depth in (len(path) - 1, len(path) - 2) if depth >= 0]
        return tuple(type(self.trial.model.get_submodule(name)) for name in names)


FORMAT = 1
Keep = Mapping[str, tuple[int, ...]]
"""By group the units that stay."""


@dataclass(frozen=True)
class Specification:
    """The units that were kept, by group; a mapping for each time that the network was cut."""

    rounds: tuple[Keep, ...]

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
        return {name: len(units) for keep in self.rounds for name, units in keep.items()}

    def then(self, later: Specification) -> Specification:
        """This, followed by a later specification."""
        return Specification((*self.rounds, *later.rounds))

    def to_json(self) -> str:
        """As text, from which ``from_json`` makes it again."""
        return json.dumps({"format": FORMAT, "kept": [
            {name: list(units) for name, units in keep.items()} for keep in self.rounds]})

    @classmethod
    def from_json(cls, text: str) -> Specification:
        """What ``to_json`` wrote.

        Raises:
            ValueError: it is no such text.

        >>> specification = Specification(({"fc1": (0, 2)},))
        >>> Specification.from_json(specification.to_json()) == specification
        True
        """
        try:
            content = json.loads(text)
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}")
            return cls(tuple({str(name): tuple(map(int, units)) for name, units in keep.items()}
                             for keep in content["kept"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"structure: expected a specification of format {FORMAT}, but got "
                             f"{type(error).__name__}: {error}") from error


def rebuild(model: nn.Module, example: Any, specification: Specification) -> nn.Module:
    """The pruned architecture again, from a new network of the factory; its weights mean nothing.

    Args:
        model: fresh from the factory; left as found.
        example: a batch as the model takes it.
        specification: what was cut.

    Raises:
        ValueError: the factory makes another network than the one that was cut.
    """
    for keep in specification.rounds:
        structure = unit_groups(model, example)
        if not all(name in {group.name for group in structure.groups} for name in keep):
            structure = unit_groups(model, example, KINDS)
        model = cut(model, example, keep, structure).model
    return model
