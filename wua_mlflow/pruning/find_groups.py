"""The groups of units of a model, read from its axes; and the layers that have none.

Tests: ``tests/pruning/test_find_groups.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise, takewhile
from typing import Any

import numpy as np
import torch
from torch import nn

from wua_mlflow.errors import one_line
from wua_mlflow.hooks import evaluating, unwrapped
from wua_mlflow.module_attributes import copied
from wua_mlflow.pruning.axes import Axes, ParameterAxis, plain_operations, trace_axes
from wua_mlflow.pruning.computed_weights import plain_weights
from wua_mlflow.pruning.heads import ATTENTION, refused_attention
from wua_mlflow.pruning.layers import RECURRENT, caches_off, call_model, weight_dims
from wua_mlflow.pruning.tracer import OUTPUTS
from wua_mlflow.pruning.unit_groups import ParameterSlice, UnitGroup, UnitGroups, tied_names

__all__ = ["KINDS", "OUTPUTS", "find_groups", "makes", "makes_units", "prunable_copy"]


UNUSED = "how the network's output comes from it cannot be followed"


def prunable_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose parameters take gradients.

    Raises:
        ValueError: it is an exported graph, or holds weights that cannot be cut.
    """
    model = unwrapped(model)
    if isinstance(model, torch.fx.GraphModule):
        raise ValueError("model: expected a module with layers to cut, but got an exported graph "
                         "(pt2), which has none; name the module and its weights: "
                         "--model package.module:factory --state weights.safetensors")
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            raise ValueError(f"model: expected floating-point weights, but {name} is "
                             f"{str(parameter.dtype).removeprefix('torch.')}")
    plain = plain_weights(model)
    plain = copied(plain) if plain is model else plain
    return plain.eval().requires_grad_(True)


KINDS = ("units", "heads", "stream")
"""What can be cut: units of layers, heads of attention, and what a norm goes over."""


def find_groups(
    model: nn.Module, example: Any, what: Sequence[str] = ("units", "heads")
) -> UnitGroups:
    """All groups of units of a model, before any trial cut.

    Args:
        model: from ``prunable_copy``.
        example: a batch as the model takes it.
        what: which of ``KINDS``.

    Raises:
        ValueError: the model cannot be traced.
    """
    try:
        axes = axes_of(model, example)
    except Exception as error:  # the user's forward
        raise ValueError(f"model: its layers cannot be followed: {one_line(error)}") from error
    return _Grouping(model, axes, what).result()


def axes_of(model: nn.Module, example: Any) -> Axes:
    """The axes of a model in eval mode, by a forward of an example in operations that are known."""
    with evaluating(model, grad=False), caches_off(model), plain_operations():
        return trace_axes(model, partial(call_model, model, example))


def _by_unit(positions: np.ndarray, units: np.ndarray, count: int) -> tuple[tuple[int, ...], ...]:
    """The positions of each unit, from those of all; units are numbers below ``count``.

    >>> _by_unit(np.array([4, 5, 6]), np.array([1, 0, 1]), 2)
    ((5,), (4, 6))
    """
    ordered = positions[np.argsort(units, kind="stable")].tolist()
    held = np.bincount(units, minlength=count)
    if (held == 1).all():
        return tuple(zip(ordered, strict=True))
    return tuple(tuple(ordered[start:end]) for start, end in pairwise([0, *held.cumsum().tolist()]))


class _Grouping:
    """Groups of a model's units, by its axes."""

    def __init__(self, model: nn.Module, axes: Axes, what: Sequence[str]) -> None:
        self.model, self.axes, self.what = model, axes, what
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.parameters = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self.count = 1 + max((int(axis.units.max()) for axis in axes.axes), default=0)
        self.group_of = np.full(self.count, -1)
        self.place_of = np.zeros(self.count, int)
        self.refused: dict[str, str] = {}
        self.tied = tied_names(model)
        self.refused_attention = refused_attention(model)

    def result(self) -> UnitGroups:
        found = [units for axis in self._makers() for units in self._new_units(axis)]
        makers, readers = self._slices(found)
        groups, asked = [], set()
        for number, units in enumerate(found):
            group = self._group(units, makers[number], readers[number])
            impossible = self._reason(group)
            reason = impossible or self._not_asked(units, group)
            if reason:
                self.refused |= {layer: reason for layer in self._named(group)
                                 if layer not in self.refused}
            else:
                asked.add(id(group))
            if not impossible:
                groups.append(group)
        groups, shared = _without_head_widths(groups)
        self.refused |= {layer: reason for layer, reason in shared.items()
                         if layer not in self.refused}
        # named before those not asked for go: a name means the same group, whatever is asked for
        groups = [named for group, named in zip(groups, _with_names_of_their_own(groups),
                                                strict=True) if id(group) in asked]
        cut = {layer for group in groups for layer in (group.name, *group.layers)}
        left = {layer: reason for layer, reason in self.refused.items()
                if layer not in cut and (layer not in self.parameters or self._is_parameter(layer))}
        return UnitGroups(tuple(groups), {**left, **dict(self._others(cut | set(left)))})

    def _makers(self) -> Iterator[ParameterAxis]:
        """The dimensions along which layers make units."""
        for axis in self.axes.axes:
            if axis.name not in self.parameters:
                continue
            module = self._module(axis.name)
            dims = weight_dims(module)
            attribute = axis.name.rpartition(".")[2]
            if self.parameters[axis.name].dim() < 2 or not self._is_parameter(axis.name):
                continue
            if attribute == "weight" and (dims is not None or isinstance(module, nn.Embedding)):
                if axis.dim == (1 if isinstance(module, nn.Embedding) else dims[0]):  # type: ignore[index]
                    yield axis
            elif (axis.name, axis.dim) not in self.axes.read:
                yield axis

    def _is_parameter(self, name: str) -> bool:
        return isinstance(self.parameters[name], nn.Parameter)

    def _new_units(self, axis: ParameterAxis) -> Iterator[list[int]]:
        """By column the units that are in no group so far; nothing where they cannot be cut."""
        layer = self._layer(axis.name)
        for column in axis.units.T:
            units = [unit for unit in dict.fromkeys(column[column >= 0].tolist())
                     if self.group_of[unit] < 0]
            for unit in units:
                if unit in self.axes.frozen:
                    self.refused.setdefault(layer, self.axes.frozen[unit])
            for of_heads in (True, False):
                kind = [unit for unit in units if unit not in self.axes.frozen
                        and (unit in self.axes.heads) is of_heads]
                if kind:
                    number = int(self.group_of.max()) + 1
                    self.group_of[kind] = number
                    self.place_of[kind] = np.arange(len(kind))
                    yield kind

    def _slices(
        self, found: Sequence[Sequence[int]]
    ) -> tuple[list[list[ParameterSlice]], list[list[ParameterSlice]]]:
        """By group where parameters and buffers hold its units, and where they read them."""
        makers: list[list[ParameterSlice]] = [[] for _ in found]
        readers: list[list[ParameterSlice]] = [[] for _ in found]
        for axis in self.axes.axes:
            of_read = (axis.name, axis.dim) in self.axes.read
            known = axis.units >= 0
            groups = np.where(known, self.group_of[np.maximum(axis.units, 0)], -1)
            for number in np.unique(groups[groups >= 0]):
                held = np.nonzero(groups == number)
                columns = _by_unit(held[0], self.place_of[axis.units[held]], len(found[number]))
                slice_ = ParameterSlice(axis.name, axis.dim, columns)
                (readers if of_read else makers)[number].append(slice_)
        return makers, readers

    def _group(
        self, units: Sequence[int], makers: Sequence[ParameterSlice],
        readers: Sequence[ParameterSlice],
    ) -> UnitGroup:
        layers = tuple(dict.fromkeys([
            *(self._layer(maker.parameter) for maker in makers),
            *(layer for slice_ in (*makers, *readers) for layer in self._tied_makers(slice_))]))
        making = [layer for layer in layers if self._makes(layer)] or list(layers)
        making.sort(key=lambda layer: layer in self.parameters)  # layers first
        kind, name = "units", making[0] if making else ""
        if any(unit in self.axes.reduced for unit in units):
            kind = "stream"
        elif all(unit in self.axes.heads for unit in units):
            kind, name = "heads", self._attention(making)
            layers = tuple(making)
        elif isinstance(self._module_or_none(name), RECURRENT):
            kind = "hidden"
        return UnitGroup(name, layers, tuple(readers), len(units), kind, tuple(makers))

    def _reason(self, group: UnitGroup) -> str:
        """Why a group cannot be cut; "" where it may be."""
        attention = next((reason for name, reason in self.refused_attention.items()
                          for slice_ in (*group.makers, *group.readers)
                          if f"{slice_.parameter}.".startswith(f"{name}.")), "")
        return attention or ("" if group.readers else "no weights read these units")

    def _not_asked(self, units: Sequence[int], group: UnitGroup) -> str:
        """Why a group is none of those that are asked for; "" where it is one."""
        where = next((self.axes.reduced[unit] for unit in units if unit in self.axes.reduced), "")
        if group.kind == "stream" and "stream" not in self.what:
            return f"{where} normalises over these units: without some the others change"
        if group.kind == "heads" and "heads" not in self.what:
            return "heads are not asked for"
        if group.kind in ("units", "hidden") and "units" not in self.what:
            return "units are not asked for"
        return ""

    def _attention(self, layers: Sequence[str]) -> str:
        """The module that these layers make the heads of."""
        modules = [layer if isinstance(self._module_or_none(layer), ATTENTION)
                   else layer.rpartition(".")[0] for layer in layers]
        parts = zip(*(module.split(".") for module in modules), strict=False)
        name = ".".join(names[0] for names in takewhile(lambda names: len(set(names)) == 1, parts))
        around = self.modules[name]
        several = not name or isinstance(around, (nn.ModuleList, nn.ModuleDict, nn.Sequential))
        return modules[0] if several else name

    def _tied_makers(self, slice_: ParameterSlice) -> Iterator[str]:
        """Layers whose weight is another's, or is read too, and that make units along it."""
        for name in self.tied.get(slice_.parameter, ()):
            module = self._module(name)
            unit_dim = 1 if isinstance(module, nn.Embedding) else (weight_dims(module) or (-1,))[0]
            other = module is not self._module(slice_.parameter) or name == slice_.parameter
            if slice_.dim == unit_dim and name.endswith("weight") and other:
                yield self._layer(name)

    def _named(self, group: UnitGroup) -> Iterator[str]:
        for layer in group.layers:
            is_buffer = layer in self.parameters and not self._is_parameter(layer)
            if (self._makes(layer) or layer == group.name) and not is_buffer:
                yield layer

    def _layer(self, parameter: str) -> str:
        """The module that holds a parameter; one that is no layer's has its own name."""
        owner = parameter.rpartition(".")[0]
        if parameter not in self.parameters:
            return owner
        return owner if owner and parameter.rpartition(".")[2] in (
            "weight", "bias", "running_mean", "running_var", "in_proj_weight", "in_proj_bias") or \
            isinstance(self._module(parameter), RECURRENT) else parameter

    def _module(self, parameter: str) -> nn.Module:
        return self.model.get_submodule(parameter.rpartition(".")[0])

    def _module_or_none(self, name: str) -> nn.Module | None:
        return self.modules.get(name)

    def _makes(self, name: str) -> bool:
        module = self._module_or_none(name)
        return name in self.parameters if module is None else \
            makes_units(module) or isinstance(module, ATTENTION)

    def _others(self, known: set[str]) -> Iterator[tuple[str, str]]:
        """Layers, and weight matrices outside layers, that nothing was said of."""
        for name, module in self.model.named_modules():
            if makes_units(module):
                if name not in known:
                    yield name, self._why_unknown(module)
                continue
            if isinstance(module, ATTENTION):
                continue
            for parameter_name, parameter in module.named_parameters(name, recurse=False):
                if parameter.dim() > 1 and parameter_name not in known and name not in known and \
                        ".parametrizations." not in parameter_name:
                    yield parameter_name, "no kind of layer that can be cut holds it"


    def _why_unknown(self, module: Any) -> str:
        """Of a layer that no axis is of: its weight is another's, it has one unit, or is unused."""
        dims = (1, 0) if isinstance(module, nn.Embedding) else weight_dims(module)
        if dims is None:
            return UNUSED
        tied = (axis for axis in self.axes.axes
                if self.parameters.get(axis.name) is module.weight and axis.dim == dims[0])
        reasons = [self.axes.frozen[unit] for axis in tied for unit in axis.units.ravel().tolist()
                   if unit in self.axes.frozen]
        if reasons or module.weight.shape[dims[0]] > 1:
            return next(iter(reasons), UNUSED)
        reads_one = any(self.parameters[name].shape[dim] == 1 for name, dim in self.axes.read
                        if self.parameters[name].dim() > 1)
        return "it has one unit" if reads_one else OUTPUTS


def _without_head_widths(
    groups: Sequence[UnitGroup],
) -> tuple[list[UnitGroup], dict[str, str]]:
    """Without the places within heads, which share layers with the heads; and why, by layer.

    Of two ways to divide the same layers into heads it is that of more layers.
    """
    heads: list[UnitGroup] = []
    for group in sorted((group for group in groups if group.kind == "heads"),
                        key=lambda group: -len(group.makers)):
        if not any(_share_makers(group, other) for other in heads):
            heads.append(group)
    kept: list[UnitGroup] = []
    reasons: dict[str, str] = {}
    for group in groups:
        others = [other for other in heads if _share_makers(group, other)]
        if group in heads or not others:
            kept.append(group)
        else:
            reasons |= dict.fromkeys(group.layers, f"all heads of {others[0].name} read them")
    return kept, reasons


def _share_makers(one: UnitGroup, other: UnitGroup) -> bool:
    return bool({maker.parameter for maker in one.makers}
                & {maker.parameter for maker in other.makers})


def _with_names_of_their_own(groups: Sequence[UnitGroup]) -> list[UnitGroup]:
    """Two groups of heads of one module are called by their first layers; others are numbered.

    Streams come after the others, so that these have the same names where no stream is cut.
    """
    names = Counter(group.name for group in groups)
    numbers: Counter[str] = Counter()
    result = list(groups)
    for place in sorted(range(len(groups)), key=lambda place: groups[place].kind == "stream"):
        group = groups[place]
        alone = names[group.name] == 1 or group.kind != "heads"
        name = group.name if alone else group.layers[0]
        numbers[name] += 1
        result[place] = replace(
            group, name=f"{name}:{numbers[name]}" if numbers[name] > 1 else name)
    return result


def makes(model: nn.Module, name: str) -> bool:
    """Whether a layer of that name makes units, or it is a parameter of its own."""
    modules = dict(model.named_modules(remove_duplicate=False))
    return name not in modules or makes_units(modules[name])


def makes_units(module: nn.Module) -> bool:
    """Whether it is a layer with weights that make units, not a norm over them."""
    return weight_dims(module) is not None or isinstance(module, (nn.Embedding, *RECURRENT))
