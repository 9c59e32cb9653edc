"""The groups of a model: found in the dependency graph, tried out, refused where a cut fails.

May import: torch, hooks, slimming. Tests: ``tests/slimming/test_groups.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wua_mlflow.errors import one_line
from wua_mlflow.hooks import unwrapped
from wua_mlflow.pruning.dependency_graph import (
    CONVOLUTIONS,
    RECURRENT,
    TRANSPOSED,
    Graph,
    GroupMember,
    axes_of,
)
from wua_mlflow.pruning.heads import ATTENTION, head_groups, projected_heads
from wua_mlflow.pruning.unit_groups import ParameterSlice, UnitGroup, UnitGroups, names_by_tensor

__all__ = ["OUTPUTS", "found_groups", "makes_units", "plain_copy"]


OUTPUTS = "its units are the network's outputs"


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose floating-point parameters take gradients.

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
    twin = copy.deepcopy(model).eval()
    return twin.requires_grad_(True)


def found_groups(model: nn.Module, example: Any) -> UnitGroups:
    """Every group of units of a model from ``plain_copy``, before any is tried out.

    Raises:
        ValueError: the model cannot be traced.
    """
    try:
        graph = Graph(model, example)
    except Exception as error:  # the user's forward, or the library's tracing of it
        raise ValueError(f"model: its layers cannot be followed: {one_line(error)}") from error
    names = {id(module): name for name, module in model.named_modules()}
    groups: list[UnitGroup] = []
    fixed: dict[str, str] = {}
    seen: set[str] = set()
    for name, units in graph.roots:
        if name in seen:
            continue
        try:
            coupled = graph.coupled(name, range(units))
        except Exception as error:  # of the library, which fails in many ways
            fixed[name] = f"what reads its units cannot be followed ({one_line(error)})"
            continue
        makers = [one for one in coupled if isinstance(one.module, nn.Module)
                  and not one.reads and id(one.module) in names]
        seen |= {str(one.name) for one in makers}
        layers = [str(one.name) for one in makers if makes_units(one.module)]
        if any(graph.ends(one) for one in coupled):
            fixed |= dict.fromkeys(layers, OUTPUTS)
            continue
        reason = _refusal(model, coupled, makers)
        group = None
        if not reason and any(one.reads for one in coupled):
            group = _group(name, units, coupled, makers)
            reason = _tied_elsewhere(model, group)
        if reason:
            fixed |= dict.fromkeys(layers, reason)
        elif group is None:
            fixed |= dict.fromkeys(layers, OUTPUTS)
        else:
            groups.append(group)
    left = dict(_left_out(model, seen | set(fixed)))
    return _with_heads(model, example, groups, {**fixed, **left})


def _with_heads(
    model: nn.Module, example: Any, groups: list[UnitGroup], fixed: dict[str, str]
) -> UnitGroups:
    """The groups with those of heads, which take layers from others."""
    heads, whole = head_groups(model)
    for one in projected_heads(model, example):
        reason = _tied_elsewhere(model, one)
        fixed |= dict.fromkeys(one.layers, reason) if reason else {}
        heads += [] if reason else [one]
    divided = {name: one.name for one in heads for name in one.layers}
    for one in groups:
        owners = [divided[name] for name in one.layers if name in divided]
        fixed |= {name: f"all heads of {owner} read them" for owner in owners[:1]
                  for name in one.layers if makes_units(model.get_submodule(name))}
    groups = [one for one in groups if not set(divided) & set(one.layers)]
    return UnitGroups((*groups, *heads), {
        name: why for name, why in {**fixed, **whole}.items() if name not in divided})


def makes_units(module: nn.Module) -> bool:
    """Whether it is a layer with weights that make units, not a norm over them."""
    return axes_of(module) is not None or isinstance(module, (nn.Embedding, *RECURRENT))


def _tied_elsewhere(model: nn.Module, group: UnitGroup) -> str:
    """Why a group cannot be cut whose weights are also others', that do not go with its units."""
    held = {(one.parameter, one.dim) for one in (*group.makers, *group.readers)}
    aliases = names_by_tensor(model)
    for name, dim in sorted(held):
        for alias in aliases.get(name, ()):
            if (alias, dim) not in held and _holder(model, alias) is not _holder(model, name):
                return f"{name} is tied to {alias}, which does not go with these units"
    return ""


def _holder(model: nn.Module, parameter: str) -> nn.Module:
    """The module that a parameter is in; one module may have several names."""
    return model.get_submodule(parameter.rpartition(".")[0])


def _refusal(
    model: nn.Module, coupled: Sequence[GroupMember], makers: Sequence[GroupMember]
) -> str:
    """Why these units cannot be cut, in a line; "" where they can."""
    for one in coupled:
        module: Any = one.module
        if isinstance(module, nn.Parameter):
            owner = model.get_submodule(str(one.name).rpartition(".")[0])
            return (f"{one.name} of {type(owner).__name__} has a place for each of these units, "
                    f"and how it is cut is not known")
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            return (f"{one.name} ({type(module).__name__}) normalises over these units: without "
                    f"some the others change")
        if isinstance(module, nn.MultiheadAttention):
            return f"they are what the heads of {one.name} (MultiheadAttention) divide"
        if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)) and \
                1 < module.groups != module.out_channels:
            return f"{one.name} is a grouped convolution, which shares them out evenly"
        if -1 in one.roots and (one.reads or one in makers):
            return f"what {one.name} does with these units cannot be followed"
    recurrent = [one for one in makers if isinstance(one.module, RECURRENT)]
    if recurrent and len(makers) > 1:
        return "a recurrent layer's units are tied to those of another layer"
    if any(one.module.proj_size for one in recurrent):
        return "the LSTM projects its hidden units"
    return ""


def _left_out(model: nn.Module, seen: set[str]) -> Iterator[tuple[str, str]]:
    """Layers with a weight matrix that the graph does not hold, and matrices that no layer has."""
    for name, module in list(model.named_modules()):
        parts = name.split(".")
        inside = any(isinstance(model.get_submodule(".".join(parts[:end])), ATTENTION)
                     for end in range(1, len(parts)))
        if isinstance(module, ATTENTION) and f"{name}.out_proj" not in seen:
            yield f"{name}.out_proj", "attention gives as many outputs as it reads"
        if inside or isinstance(module, ATTENTION):
            continue
        if not makes_units(module):
            for own, parameter in module.named_parameters(name, recurse=False):
                if parameter.dim() > 1 and ".parametrizations." not in own:
                    yield own, "no kind of layer that can be cut holds it"
        elif name not in seen:
            yield name, "how the network's output comes from it cannot be followed"


def _group(
    name: str, units: int, coupled: Sequence[GroupMember], makers: Sequence[GroupMember]
) -> UnitGroup:
    first: Any = makers[0].module
    hidden = first.hidden_size if isinstance(first, RECURRENT) else units
    readers = [reader for one in coupled if one.reads for reader in _readers(one, hidden)]
    held = {place.parameter: place for one in makers for place in _held(one, hidden)}
    kind = "units"
    if isinstance(first, RECURRENT):
        kind, readers = "hidden", [*readers, *_own_readers(name, first)]
    return UnitGroup(name, tuple(str(one.name) for one in makers), tuple(readers), hidden, kind,
                     tuple(held.values()))


def _columns(one: GroupMember, hidden: int) -> tuple[tuple[int, ...], ...]:
    """By unit its positions along the layer's inputs or outputs."""
    columns: list[list[int]] = [[] for _ in range(hidden)]
    for position, root in zip(one.positions, one.roots, strict=True):
        columns[root % hidden].append(position)
    return tuple(tuple(sorted(some)) for some in columns)


def _readers(one: GroupMember, hidden: int) -> Iterator[ParameterSlice]:
    found = _columns(one, hidden)
    if isinstance(one.module, RECURRENT):
        for parameter, _ in one.module.named_parameters(recurse=False):
            if parameter.startswith("weight_ih_l0"):
                yield ParameterSlice(_of(one.name, parameter), 1, found)
    else:
        axes = axes_of(one.module)
        assert axes is not None, type(one.module)
        yield ParameterSlice(_of(one.name, "weight"), axes[1], found)


def _own_readers(name: str, layer: Any) -> Iterator[ParameterSlice]:
    """A recurrent layer's own weights that read its hidden units."""
    hidden = layer.hidden_size
    for parameter, _ in layer.named_parameters(recurse=False):
        if parameter.startswith("weight_hh"):
            yield ParameterSlice(_of(name, parameter), 1, tuple((unit,) for unit in range(hidden)))
        elif parameter.startswith("weight_ih") and not parameter.startswith("weight_ih_l0"):
            yield ParameterSlice(_of(name, parameter), 1, tuple(
                (unit, hidden + unit) if layer.bidirectional else (unit,)
                for unit in range(hidden)))


def _held(one: GroupMember, units: int) -> Iterator[ParameterSlice]:
    """The layer's parameters and buffers that have a place for each unit."""
    module: Any = one.module
    if isinstance(one.module, RECURRENT):
        rows = module.weight_hh_l0.shape[0]
        columns = tuple(tuple(range(unit, rows, units)) for unit in range(units))
        for parameter, _ in module.named_parameters(recurse=False):
            yield ParameterSlice(_of(one.name, parameter), 0, columns)
        return
    axes = axes_of(module)
    depthwise = isinstance(module, TRANSPOSED) and module.groups > 1
    dim = 1 if isinstance(module, nn.Embedding) else 0 if axes is None or depthwise else axes[0]
    columns = _columns(one, units)
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    for name, tensor in tensors:
        if isinstance(tensor, Tensor) and tensor.numel() > 1:
            yield ParameterSlice(_of(one.name, name), dim if name == "weight" else 0, columns)


def _of(module: str | None, parameter: str) -> str:
    return f"{module}.{parameter}" if module else parameter
