"""The groups of units of a model, read from its dependency graph; and the layers that have none.

Tests: ``tests/pruning/test_find_groups.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from wua_mlflow.errors import one_line
from wua_mlflow.hooks import unwrapped
from wua_mlflow.module_attributes import copied
from wua_mlflow.pruning.computed_weights import plain_weights
from wua_mlflow.pruning.dependency_graph import (
    CONVOLUTIONS,
    RECURRENT,
    TRANSPOSED,
    Graph,
    GroupMember,
    hidden_slices,
    weight_dims,
)
from wua_mlflow.pruning.heads import ATTENTION, attention_groups, projected_head_groups
from wua_mlflow.pruning.unit_groups import ParameterSlice, UnitGroup, UnitGroups, tied_names

__all__ = ["OUTPUTS", "find_groups", "makes_units", "prunable_copy"]


OUTPUTS = "its units are the network's outputs"


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


def find_groups(model: nn.Module, example: Any) -> UnitGroups:
    """All groups of units by the dependency graph of a model, before any trial cut.

    Args:
        model: from ``prunable_copy``.
        example: a batch as the model takes it.

    Raises:
        ValueError: the model cannot be traced.
    """
    try:
        graph = Graph(model, example)
    except Exception as error:  # the user's forward, or the library's tracing of it
        raise ValueError(f"model: its layers cannot be followed: {one_line(error)}") from error
    modules = {id(module) for module in model.modules()}
    groups: list[UnitGroup] = []
    not_prunable: dict[str, str] = {}
    traced: set[str] = set()
    for name, units in graph.unit_layers:
        if name in traced:
            continue
        try:
            members = graph.members(name, range(units))
        except Exception as error:  # of the library, which fails in many ways
            not_prunable[name] = f"what reads its units cannot be followed ({one_line(error)})"
            continue
        makers = [member for member in members if isinstance(member.module, nn.Module)
                  and not member.reads and id(member.module) in modules]
        traced |= {str(maker.name) for maker in makers}
        group = OUTPUTS if any(map(graph.is_output, members)) else \
            _group(model, (name, units), members, makers)
        if isinstance(group, str):
            not_prunable |= {str(maker.name): group for maker in makers
                             if makes_units(maker.module)}
        else:
            groups.append(group)
    untraced = dict(_untraced(model, traced | set(not_prunable)))
    return _with_heads(model, example, groups, {**not_prunable, **untraced})


def _group(
    model: nn.Module, layer: tuple[str, int], members: Sequence[GroupMember],
    makers: Sequence[GroupMember],
) -> UnitGroup | str:
    """The group of a layer's units; or, in one line, why they cannot be cut."""
    reason = _not_prunable(model, members, makers)
    if reason or not any(member.reads for member in members):
        return reason or OUTPUTS
    (name, units), kind = layer, "units"
    first: Any = makers[0].module
    if isinstance(first, RECURRENT):
        kind, units = "hidden", first.hidden_size
    readers = [reader for member in members if member.reads for reader in _readers(member, units)]
    if kind == "hidden":
        hidden = [ParameterSlice(f"{name}.{parameter}".lstrip("."), dim, columns)
                  for parameter, dim, columns in hidden_slices(first)]
        held = [slice_ for slice_ in hidden if slice_.dim == 0]
        readers += [slice_ for slice_ in hidden if slice_.dim == 1]
    else:
        held = [slice_ for maker in makers for slice_ in _held(maker, units)]
    unique = {slice_.parameter: slice_ for slice_ in held}
    group = UnitGroup(name, tuple(str(maker.name) for maker in makers), tuple(readers), units, kind,
                      tuple(unique.values()))
    return _tied_elsewhere(model, group) or group


def _with_heads(
    model: nn.Module, example: Any, groups: list[UnitGroup], not_prunable: dict[str, str]
) -> UnitGroups:
    """Add the groups of attention heads; layers that make heads are in no other group."""
    heads, refused = attention_groups(model)
    for group in projected_head_groups(model, example):
        reason = _tied_elsewhere(model, group)
        if reason:
            not_prunable |= dict.fromkeys(group.layers, reason)
        else:
            heads.append(group)
    module_of = {layer: group.name for group in heads for layer in group.layers}
    for group in groups:
        modules = [module_of[layer] for layer in group.layers if layer in module_of]
        if modules:
            not_prunable |= {layer: f"all heads of {modules[0]} read them" for layer in group.layers
                             if makes_units(model.get_submodule(layer))}
    groups = [group for group in groups if not set(module_of) & set(group.layers)]
    return UnitGroups((*groups, *heads), {
        layer: reason for layer, reason in {**not_prunable, **refused}.items()
        if layer not in module_of})


def makes_units(module: nn.Module) -> bool:
    """Whether it is a layer with weights that make units, not a norm over them."""
    return weight_dims(module) is not None or isinstance(module, (nn.Embedding, *RECURRENT))


def _tied_elsewhere(model: nn.Module, group: UnitGroup) -> str:
    """Why tied weights forbid cutting a group; "" where none do."""
    held = {(slice_.parameter, slice_.dim) for slice_ in (*group.makers, *group.readers)}
    aliases = tied_names(model)
    for name, dim in sorted(held):
        for alias in aliases.get(name, ()):
            if (alias, dim) not in held and _module_of(model, alias) is not _module_of(model, name):
                return f"{name} is tied to {alias}, which does not go with these units"
    return ""


def _module_of(model: nn.Module, parameter: str) -> nn.Module:
    """The module that a parameter is in; one module may have several names."""
    return model.get_submodule(parameter.rpartition(".")[0])


def _not_prunable(
    model: nn.Module, members: Sequence[GroupMember], makers: Sequence[GroupMember]
) -> str:
    """Why these units cannot be cut, in a line; "" where they can."""
    for member in members:
        module: Any = member.module
        if isinstance(module, nn.Parameter):
            return (f"{member.name} of {type(_module_of(model, str(member.name))).__name__} has a "
                    f"place for each of these units, and how it is cut is not known")
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            return (f"{member.name} ({type(module).__name__}) normalises over these units: without "
                    f"some the others change")
        if isinstance(module, nn.MultiheadAttention):
            return (f"the residual stream, which {member.name} (MultiheadAttention) reads and "
                    f"divides into its heads: its width stays")
        if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)) and \
                1 < module.groups != module.out_channels:
            return f"{member.name} is a grouped convolution, which shares them out evenly"
        if -1 in member.units and (member.reads or member in makers):
            return f"what {member.name} does with these units cannot be followed"
    recurrent = [maker.module for maker in makers if isinstance(maker.module, RECURRENT)]
    if recurrent and len(makers) > 1:
        return "a recurrent layer's units are tied to those of another layer"
    if any(layer.proj_size for layer in recurrent):
        return "the LSTM projects its hidden units"
    return ""


def _untraced(model: nn.Module, traced: set[str]) -> Iterator[tuple[str, str]]:
    """Layers that the graph misses, and weight matrices outside layers, with the reason."""
    attention = [name for name, module in model.named_modules() if isinstance(module, ATTENTION)]
    for name, module in model.named_modules():
        if name in attention and f"{name}.out_proj" not in traced:
            yield f"{name}.out_proj", "attention gives as many outputs as it reads"
        if any(f"{name}.".startswith(f"{prefix}.") for prefix in attention):
            continue
        if not makes_units(module):
            for parameter_name, parameter in module.named_parameters(name, recurse=False):
                if parameter.dim() > 1 and ".parametrizations." not in parameter_name:
                    yield parameter_name, "no kind of layer that can be cut holds it"
        elif name not in traced:
            yield name, "how the network's output comes from it cannot be followed"


def _columns(member: GroupMember, units: int) -> tuple[tuple[int, ...], ...]:
    """The positions of each unit along the layer's inputs or outputs."""
    columns: list[list[int]] = [[] for _ in range(units)]
    for position, unit in zip(member.positions, member.units, strict=True):
        columns[unit % units].append(position)
    return tuple(tuple(sorted(positions)) for positions in columns)


def _readers(member: GroupMember, units: int) -> list[ParameterSlice]:
    """The weights with which a layer reads the units."""
    columns = _columns(member, units)
    if isinstance(member.module, RECURRENT):
        return [ParameterSlice(f"{member.name}.{name}".lstrip("."), 1, columns)
                for name, _ in member.module.named_parameters(recurse=False)
                if name.startswith("weight_ih_l0")]
    dims = weight_dims(member.module)
    assert dims is not None, type(member.module)
    return [ParameterSlice(f"{member.name}.weight".lstrip("."), dims[1], columns)]


def _held(maker: GroupMember, units: int) -> list[ParameterSlice]:
    """The layer's parameters and buffers that have a place for each unit."""
    module: Any = maker.module
    dims = weight_dims(module)
    depthwise = isinstance(module, TRANSPOSED) and module.groups > 1
    dim = 1 if isinstance(module, nn.Embedding) else 0 if dims is None or depthwise else dims[0]
    columns = _columns(maker, units)
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return [ParameterSlice(f"{maker.name}.{name}".lstrip("."), dim if name == "weight" else 0,
                           columns) for name, tensor in tensors if tensor.numel() > 1]
