"""Taking units out of a model's parameters and buffers, and the sizes that its modules state.

Tests: ``tests/pruning/test_slicing.py``, ``tests/pruning/test_cut.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wua_mlflow.pruning.heads import PrunedMultiheadAttention, counting_modules, unit_numbers
from wua_mlflow.pruning.layers import CONVOLUTIONS, RECURRENT, TRANSPOSED
from wua_mlflow.pruning.unit_groups import UnitGroup

__all__ = ["slice_units"]


Positions = dict[tuple[str, int], set[int]]
"""By name of a tensor and dimension the positions that go."""


def slice_units(model: nn.Module, removed: Iterable[tuple[UnitGroup, Sequence[int]]]) -> None:
    """Take units out of a model, in place: all positions that groups have of them.

    Parameters stay shared where they were, and trainable or not; sizes that modules of torch state
    follow their weights, and the numbers of other modules that count heads follow those.

    Args:
        model: the one whose groups these are.
        removed: groups, and which of their units go.
    """
    removed = list(removed)
    for group, _ in removed:
        _make_room(model, group)
    _slice(model, _positions(removed))
    for group, units in removed:
        module: Any = model.get_submodule(group.name) if group.kind == "heads" else None
        if isinstance(module, PrunedMultiheadAttention):
            module.num_heads -= len(units)
        for name in group.counts:
            _shorten(model, group, name, units)


def _shorten(model: nn.Module, group: UnitGroup, name: str, removed: Sequence[int]) -> None:
    """Set a number that says how many units there are, or places of them, where modules hold it.

    A number as large as what a layer makes of them falls by as many as go from there.
    """
    left = group.units - len(removed)
    if group.kind == "heads":
        before = unit_numbers(model, group)[name]
        after = {before: before * left // group.units}
    else:
        after = {group.units: left}
        for slice_ in (*group.makers, *group.readers):
            places = sum(map(len, slice_.columns))
            after.setdefault(places, places - len(slice_.positions(removed)))
    for module in counting_modules(model, group):
        if getattr(module, name, None) in after:
            setattr(module, name, after[getattr(module, name)])


def _positions(removed: Iterable[tuple[UnitGroup, Sequence[int]]]) -> Positions:
    result: Positions = {}
    for group, units in removed:
        for slice_ in (*group.makers, *group.readers):
            result.setdefault((slice_.parameter, slice_.dim), set()).update(
                slice_.positions(units))
    return result


def _make_room(model: nn.Module, group: UnitGroup) -> None:
    """Attention of torch's, whose heads fill its embedding, as one whose heads need not."""
    for name in {slice_.module for slice_ in (*group.makers, *group.readers)}:
        for attention in (name, name.rpartition(".")[0]):  # its output layer has a name of its own
            module = model.get_submodule(attention)
            if type(module) is nn.MultiheadAttention:
                parent, _, attribute = attention.rpartition(".")
                setattr(model.get_submodule(parent), attribute, PrunedMultiheadAttention(module))


def _slice(model: nn.Module, positions: Mapping[tuple[str, int], set[int]]) -> None:
    tensors: dict[str, Tensor] = {**dict(model.named_parameters(remove_duplicate=False)),
                                  **dict(model.named_buffers(remove_duplicate=False))}
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    by_tensor: dict[int, dict[int, set[int]]] = {}
    for (name, dim), gone in positions.items():
        if name in tensors:
            by_tensor.setdefault(id(tensors[name]), {}).setdefault(dim, set()).update(gone)
        else:
            _state_fewer(model, name, dim, gone)
    for key, dims in by_tensor.items():
        _replace(model, names[key], tensors[names[key][0]], dims)
    for owner in {name.rpartition(".")[0]: None for key in by_tensor for name in names[key]}:
        _update_sizes(model.get_submodule(owner))


def _replace(
    model: nn.Module, names: Sequence[str], old: Tensor, dims: Mapping[int, set[int]]
) -> None:
    """A tensor without these positions, under all of its names."""
    new = _without(old, dims)
    for name in names:
        owner, _, attribute = name.rpartition(".")
        module: Any = model.get_submodule(owner)
        if attribute == "weight" and 0 in dims:
            groups = _groups_left(module, len(old), dims[0])
            if groups:
                number = "num_groups" if isinstance(module, nn.GroupNorm) else "groups"
                setattr(module, number, groups)
        if attribute in module._parameters:
            module._parameters[attribute] = new
        else:
            module._buffers[attribute] = new


def _state_fewer(model: nn.Module, name: str, dim: int, gone: set[int]) -> None:
    """A number of a module that has no weights: of what, ``name`` says after its last dot."""
    owner, _, attribute = name.rpartition(".")
    module: Any = model.get_submodule(owner)
    before = getattr(module, attribute)
    if isinstance(before, (tuple, list)):  # normalized_shape, unflattened_size
        after = [size - len(gone) * (place == dim and size != -1)
                 for place, size in enumerate(before)]
        setattr(module, attribute, type(before)(after))
        return
    if isinstance(module, nn.GroupNorm):
        module.num_groups = _groups_left(module, module.num_channels, gone)
    setattr(module, attribute, getattr(module, attribute) - len(gone))


def _groups_left(module: Any, size: int, gone: set[int]) -> int:
    """Of how many groups of a grouped convolution or norm anything stays; 0 where it has none."""
    groups = module.num_groups if isinstance(module, nn.GroupNorm) else getattr(module, "groups", 1)
    if not isinstance(groups, int) or groups == 1:
        return 0
    return len({place * groups // size for place in range(size) if place not in gone})


def _without(tensor: Tensor, dims: Mapping[int, set[int]]) -> Tensor:
    values = tensor.detach()
    for dim, gone in dims.items():
        staying = [place for place in range(tensor.shape[dim]) if place not in gone]
        values = values.index_select(dim, torch.tensor(staying, device=values.device))
    if values is tensor or isinstance(tensor, nn.Parameter):
        return nn.Parameter(values.contiguous(), tensor.requires_grad)
    return values.contiguous()


def _update_sizes(module: Any) -> None:
    """Set the sizes that a module states to those of its weights."""
    weight: Any = getattr(module, "weight", None)
    for kinds, update in UPDATES:
        if isinstance(module, kinds):
            update(module, weight)
            return
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        module.nf = weight.shape[1]
        if hasattr(module, "nx"):
            module.nx = weight.shape[0]


def _linear(module: Any, weight: Any) -> None:
    module.out_features, module.in_features = weight.shape


def _batch_norm(module: Any, weight: Any) -> None:
    first = next((each for each in (weight, module.running_mean) if each is not None), None)
    module.num_features = module.num_features if first is None else len(first)


def _group_norm(module: Any, weight: Any) -> None:
    module.num_channels = len(weight)


def _layer_norm(module: Any, weight: Any) -> None:
    module.normalized_shape = tuple(weight.shape)


def _embedding(module: Any, weight: Any) -> None:
    module.embedding_dim = weight.shape[1]


def _recurrent(module: Any, weight: Any) -> None:
    if not getattr(module, "proj_size", 0):
        module.hidden_size = module.weight_hh_l0.shape[1]
    module.input_size = module.weight_ih_l0.shape[1]
    module.flatten_parameters()


def _cell(module: Any, weight: Any) -> None:
    module.hidden_size, module.input_size = module.weight_hh.shape[1], module.weight_ih.shape[1]


def _prelu(module: Any, weight: Any) -> None:
    module.num_parameters = len(weight)


def _bilinear(module: Any, weight: Any) -> None:
    module.out_features, module.in1_features, module.in2_features = weight.shape


def _attention(module: Any, weight: Any) -> None:
    module.embed_dim = module.in_proj_weight.shape[1]


def _convolution(module: Any, weight: Any) -> None:
    outputs, inputs = (1, 0) if module.transposed else (0, 1)
    module.out_channels = module.weight.shape[outputs] * (module.groups if module.transposed else 1)
    module.in_channels = module.weight.shape[inputs] * (1 if module.transposed else module.groups)


UPDATES: tuple[tuple[Any, Callable[[Any, Any], None]], ...] = (
    (nn.Linear, _linear), ((*CONVOLUTIONS, *TRANSPOSED), _convolution),
    (nn.modules.batchnorm._NormBase, _batch_norm), (nn.GroupNorm, _group_norm),
    ((nn.LayerNorm, nn.RMSNorm), _layer_norm), ((nn.Embedding, nn.EmbeddingBag), _embedding),
    (RECURRENT, _recurrent), (nn.RNNCellBase, _cell), (nn.PReLU, _prelu), (nn.Bilinear, _bilinear),
    (PrunedMultiheadAttention, _attention),
)
"""By kind of module how the sizes that it states follow its weights."""
