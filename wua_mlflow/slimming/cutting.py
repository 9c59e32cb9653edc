"""Cutting units out of a trained network, and seeing that the cut is what was planned.

May import: torch, flops, hooks, slimming. Tests: ``tests/slimming/test_cutting.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from wua_mlflow.hooks import unwrapped
from wua_mlflow.randomness import isolated
from wua_mlflow.slimming.checking import Removed, WrongCutError, check_cut, ties_of, worded
from wua_mlflow.slimming.graph import Graph
from wua_mlflow.slimming.grouping import found_groups, makes_units, plain_copy
from wua_mlflow.slimming.groups import Structure
from wua_mlflow.slimming.heads import without_heads
from wua_mlflow.slimming.masked import checked_units
from wua_mlflow.slimming.specification import Specification

__all__ = ["Cut", "cut", "cut_out", "unit_groups"]


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


def unit_groups(model: nn.Module, example: Any) -> Structure:
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
        last = {one.name: [one.units - 1] for one in structure.groups if one.units > 1}
        wrong = _wrong_groups(twin, example, structure, last)
    wrong |= {one.name: "it has one unit" for one in structure.groups if one.units == 1}
    groups = tuple(one for one in structure.groups if one.name not in wrong)
    left = {layer: wrong[one.name] for one in structure.groups if one.name in wrong
            for layer in one.layers
            if layer == one.name or makes_units(twin.get_submodule(layer))}
    return Structure(groups, {**structure.fixed, **left})


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
        made = cut_out(plain, example, removed)
        try:
            before, after = check_cut(plain, made, structure, removed, example)
        except WrongCutError as error:
            raise ValueError(f"model: cut as asked it is not what was planned: {error}") from error
    return Cut(made, Specification(({name: tuple(kept[name]) for name in removed},)),
               {one.name: (one.units, one.units - len(removed.get(one.name, ())))
                for one in structure.groups},
               _parameters(plain), _parameters(made), before.forward_flops, after.forward_flops,
               structure.fixed)


def cut_out(model: nn.Module, example: Any, removed: Removed) -> nn.Module:
    """A copy without these units, not verified; modes, ties and ``requires_grad`` are kept."""
    made = copy.deepcopy(model)
    modes = {name: module.training for name, module in made.named_modules()}
    frozen = {name for name, one in made.named_parameters(remove_duplicate=False)
              if not one.requires_grad}
    ties = ties_of(made)
    made.eval().requires_grad_(True)
    heads = {name: units for name, units in removed.items() if _is_attention(made, name)}
    if set(removed) - set(heads):
        graph = Graph(made, example)
        for name, units in removed.items():
            if name not in heads:
                layer = made.get_submodule(name)
                hidden = getattr(layer, "hidden_size", 0)
                both = [hidden + unit for unit in units] if \
                    getattr(layer, "bidirectional", False) else []
                graph.remove(name, [*units, *both])
    for name, units in heads.items():
        attention: Any = made.get_submodule(name)
        without_heads(made, name, [head for head in range(attention.num_heads)
                                   if head not in units])
    _tied(made, ties)
    for name, module in made.named_modules():
        module.training = modes.get(name, modes.get(name.rpartition(".")[0], False))
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
    for name, one in made.named_parameters(remove_duplicate=False):
        one.requires_grad_(name not in frozen)
        one.grad = None
    return made


def _wrong_groups(
    model: nn.Module, example: Any, structure: Structure, removed: Removed
) -> dict[str, str]:
    """The groups whose cut is not what was planned: tried all at once, then one by one."""
    if not removed or not _failure(model, example, structure, removed):
        return {}
    found = {name: _failure(model, example, structure, {name: units})
             for name, units in removed.items()}
    wrong = {name: f"tried out, the cut network is not what was planned: {why}"
             for name, why in found.items() if why}
    if not wrong:
        why = _failure(model, example, structure, removed)
        return dict.fromkeys(removed, f"cut together with others it fails: {why}")
    return wrong


def _failure(model: nn.Module, example: Any, structure: Structure, removed: Removed) -> str:
    try:
        check_cut(model, cut_out(model, example, removed), structure, removed, example)
    except WrongCutError as error:
        return str(error)
    except Exception as error:  # of the library, which fails in many ways
        return worded(error)
    return ""


def _kept(structure: Structure, name: str, units: Sequence[int]) -> list[int]:
    group = structure.group(name)
    kept = checked_units(group, list(units))
    if not kept:
        raise ValueError(f"keep: expected at least one unit of {name}, but got none: the layer "
                         f"would be empty")
    return kept


def _is_attention(model: nn.Module, name: str) -> bool:
    module = model.get_submodule(name)
    return isinstance(module, nn.MultiheadAttention) or type(module).__name__ == "FewerHeads"


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


def _parameters(model: nn.Module) -> int:
    return sum(one.numel() for one in model.parameters())
