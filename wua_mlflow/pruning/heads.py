"""Attention heads as groups of units, and attention with fewer heads.

Heads of ``nn.MultiheadAttention``, and of modules that make queries, keys and values with layers
of their own. Tests: ``tests/pruning/test_heads.py``, ``tests/pruning/test_projected_heads.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from wua_mlflow.hooks import Call, evaluating, noting
from wua_mlflow.pruning.dependency_graph import (
    caches_off,
    call_model,
    is_conv1d,
    select,
    select_remaining,
    update_sizes,
    weight_dims,
)
from wua_mlflow.pruning.unit_groups import ParameterSlice, UnitGroup

__all__ = [
    "ATTENTION", "PrunedMultiheadAttention", "attention_groups", "head_attribute_candidates",
    "projected_head_groups", "prune_heads",
]


def attention_groups(model: nn.Module) -> tuple[list[UnitGroup], dict[str, str]]:
    """A group for each attention module, and those that cannot be cut, with the reason."""
    groups, not_prunable = [], {}
    for name, module in model.named_modules():
        if type(module) not in ATTENTION:
            continue
        if getattr(module, "bias_k", None) is not None or getattr(module, "add_zero_attn", False):
            not_prunable[name] = "it adds keys of its own (add_bias_kv, add_zero_attn)"
        elif isinstance(module, nn.MultiheadAttention) and not module._qkv_same_embed_dim:
            not_prunable[name] = "its keys or values have a size of their own (kdim, vdim)"
        elif module.num_heads > 1:
            groups.append(_attention_group(name, module))
    return groups, not_prunable


def _attention_group(name: str, module: Any) -> UnitGroup:
    heads, size = module.num_heads, module.head_dim
    columns = _positions(torch.arange(heads * size).view(heads, size))
    rows = _positions(torch.arange(3 * heads * size).view(3, heads, size).transpose(0, 1))
    makers = ["in_proj_weight", *(["in_proj_bias"] if module.in_proj_bias is not None else [])]
    return UnitGroup(name, (name,), (ParameterSlice(f"{name}.out_proj.weight", 1, columns),), heads,
                     "heads", tuple(ParameterSlice(f"{name}.{maker}", 0, rows) for maker in makers))


def _positions(by_unit: Iterable[Tensor]) -> tuple[tuple[int, ...], ...]:
    """The positions of each unit, of tensors of them."""
    return tuple(tuple(positions.flatten().tolist()) for positions in by_unit)


class PrunedMultiheadAttention(nn.Module):
    """``nn.MultiheadAttention`` (Vaswani et al. 2017) whose heads need not fill the embedding.

    The same parameters under the same names: ``in_proj_weight`` of shape (3 · heads · size,
    embedding), ``out_proj.weight`` of shape (embedding, heads · size).
    """

    _qkv_same_embed_dim = False
    """Read by ``nn.TransformerEncoderLayer``: keeps it off the fused path, which this has not."""

    def __init__(self, original: Any, heads: Sequence[int]) -> None:
        super().__init__()
        size, weight, bias, out = (original.head_dim, original.in_proj_weight,
                                   original.in_proj_bias, original.out_proj)
        positions = torch.arange(len(weight)).view(3, original.num_heads, size)[:, list(heads)]
        rows, columns = positions.flatten().tolist(), positions[0].flatten().tolist()
        self.embed_dim, self.head_dim, self.num_heads = original.embed_dim, size, len(heads)
        self.dropout, self.batch_first = original.dropout, original.batch_first
        self.in_proj_weight = select(weight, 0, rows)
        self.in_proj_bias = None if bias is None else select(bias, 0, rows)
        self.out_proj = nn.Linear(len(columns), out.out_features, out.bias is not None)
        self.out_proj.weight = select(out.weight, 1, columns)
        if out.bias is not None:
            self.out_proj.bias = nn.Parameter(out.bias.detach().clone())
        self.train(original.training)

    def forward(  # noqa: PLR0913 - the signature of nn.MultiheadAttention
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None,
        average_attn_weights: bool = True, is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention``: shapes, masks and what is returned."""
        batched = query.dim() == 3
        inputs = [sequence if batched else sequence.unsqueeze(0)
                  for sequence in (query, key, value)]
        if batched and not self.batch_first:
            inputs = [sequence.transpose(0, 1) for sequence in inputs]
        weights = self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (self._split_heads(functional.linear(sequence, weight, bias))
                   for sequence, weight, bias in zip(inputs, weights, biases, strict=True))
        mask = self._mask(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        attention = None
        if need_weights:
            logits = q @ k.transpose(-2, -1) / self.head_dim**0.5
            attention = (logits if mask is None else logits + mask).softmax(-1)
            attention = functional.dropout(attention, dropout)
            mixed = attention @ v
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, mask, dropout)
        outputs = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if attention is not None and average_attn_weights:
            attention = attention.mean(1)
        if not batched:
            return outputs.squeeze(0), None if attention is None else attention.squeeze(0)
        return outputs if self.batch_first else outputs.transpose(0, 1), attention

    def _split_heads(self, projected: Tensor) -> Tensor:
        """(batch, length, heads · size) -> (batch, heads, length, size)."""
        return torch.unflatten(projected, -1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _mask(self, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
        """What is added to the logits, shape (batch or 1, heads or 1, targets, sources)."""
        total = None
        if attn_mask is not None:
            total = _as_logits(attn_mask, q)
            if total.dim() == 3:
                total = torch.unflatten(total, 0, (-1, total.shape[0] // len(q)))
            if total.dim() == 4 and total.shape[1] != self.num_heads:
                raise ValueError(f"attn_mask: expected one mask a head of {self.num_heads} heads, "
                                 f"or one for all, but got {total.shape[1]}")
        if padding is not None:
            padded = _as_logits(padding, q).reshape(-1, 1, 1, padding.shape[-1])
            total = padded if total is None else total + padded
        return total


ATTENTION = (nn.MultiheadAttention, PrunedMultiheadAttention)
"""Attention in one module, with weights of its own."""


def _as_logits(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as numbers to add to the logits: minus infinity where a boolean mask is True."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


def prune_heads(model: nn.Module, group: UnitGroup, removed: Sequence[int]) -> None:
    """Cut heads out of a module, in place.

    An attention module of torch is replaced; of others the layers that make and read the heads are
    cut, and the module's numbers.
    """
    module = model.get_submodule(group.name)
    if isinstance(module, ATTENTION):
        parent, _, attribute = group.name.rpartition(".")
        setattr(model.get_submodule(parent), attribute,
                PrunedMultiheadAttention(module, group.others(removed)))
        return
    for slice_ in (*group.makers, *group.readers):
        layer = model.get_submodule(slice_.module)
        setattr(layer, slice_.attribute, select_remaining(
            getattr(layer, slice_.attribute), slice_.dim, slice_.positions(removed)))
        update_sizes(layer)
    for name in group.counts:
        setattr(module, name, getattr(module, name) * (group.units - len(removed)) // group.units)


MAX_PARTS = 1024
"""The columns of a layer are divided into at most so many parts to find its heads."""
MAX_MAKERS = 8
"""So many layers before the one that reads heads are looked at for those that make them."""
NOT_COUNTS = ("dim", "size", "group", "idx", "index")
"""In names of numbers that do not say how many heads there are."""


def projected_head_groups(model: nn.Module, example: Any) -> list[UnitGroup]:
    """The groups of heads of modules with separate layers for queries, keys and values, in order.

    A unit is a head; where several share their keys and values (grouped-query attention, Ainslie
    et al. 2023, arXiv 2305.13245), it is all of these with what they share. The columns with which
    a layer reads the heads are divided into as many parts as numbers of the module suggest. What
    a part depends on is seen in its gradient with respect to the outputs of the layers before;
    parts that depend on a common output are one unit.

    Args:
        model: from ``prunable_copy``.
        example: a batch as the model takes it, of more than one position.
    """
    names = {module: name for name, module in model.named_modules()}
    layers = [module for module in names if type(module) in (nn.Linear, nn.Embedding)
              or is_conv1d(module)]
    with evaluating(model, grad=True), caches_off(model), noting(layers) as calls:
        call_model(model, example)
        first_calls: dict[nn.Module, Call] = {}
        for call in calls:
            first_calls.setdefault(call.module, call)
        order = list(first_calls.values())
        groups: dict[str, UnitGroup] = {}
        taken: set[str] = set()
        for module in reversed(names):  # the innermost first
            name = names[module]
            within = [call for call in order if _is_within(names[call.module], name)]
            if not within or taken & {names[call.module] for call in within} or \
                    not _numbers(module):
                continue
            try:
                group = _find_heads(names, module, within, order)
            except RuntimeError:  # of autograd: its outputs were changed in place, or checkpointed
                continue
            if group is not None:
                groups[name] = group
                taken |= set(group.layers)
    return [groups[name] for name in names.values() if name in groups]


def head_attribute_candidates(model: nn.Module, group: UnitGroup) -> Iterator[UnitGroup]:
    """Guesses of which attributes of a module count its heads or their total size, likeliest first.

    How many heads there are; with one of the numbers that are as large as what the heads make in
    all, since others of that size (a window, a longest length) mean something else; with all of
    these; none, where the forward reads the number from the shapes.
    """
    numbers = _numbers(model.get_submodule(group.name))
    sizes = {sum(map(len, slice_.columns)) for slice_ in (*group.makers, *group.readers)}
    counting = {name: value for name, value in numbers.items()
                if not any(word in name for word in NOT_COUNTS)}
    named = [name for name, value in counting.items()
             if "head" in name and not value % group.units]
    equal = [name for name, value in counting.items() if value == group.units]
    counts = [tuple(named)] if named else [(), *((name,) for name in equal), tuple(equal)]
    widths = [name for name, value in numbers.items() if value in sizes and name not in named]
    candidates = [
        *counts,
        *((*names, name) for names in counts for name in widths if name not in names),
        (*counts[-1], *(name for name in widths if name not in counts[-1])),
        (),
    ]
    for names in dict.fromkeys(candidates):
        yield replace(group, counts=names)


def _is_within(name: str, module: str) -> bool:
    return name.startswith(f"{module}.") if module else bool(name)


def _numbers(module: nn.Module) -> dict[str, int]:
    """A module's own whole numbers above one."""
    return {name: value for name, value in vars(module).items()
            if type(value) is int and value > 1}


def _find_heads(
    names: Mapping[nn.Module, str], module: nn.Module, within: Sequence[Call], order: Sequence[Call]
) -> UnitGroup | None:
    """The heads that a module's layers make and that one of them, or the next layer, reads.

    None, too, where two layers read heads: the numbers of the module are those of both.
    """
    last = next(place for place, call in enumerate(order) if call is within[-1])
    calls, by_reader = [*within, *order[last + 1: last + 2]], []
    for place, reader in enumerate(calls[1:], start=1):
        makers = [call for call in calls[max(0, place - MAX_MAKERS): place]
                  if call.outputs.requires_grad]
        if isinstance(reader.module, nn.Embedding) or not _attends(reader, makers):
            continue
        groups = [group for parts in _numbers_of_parts(module, reader.inputs.shape[-1])
                  if (group := _divide(names, module, reader, makers, parts)) is not None]
        if groups:
            by_reader.append(max(groups, key=lambda group: group.units))
    return by_reader[0] if len(by_reader) == 1 else None


def _numbers_of_parts(module: nn.Module, size: int) -> list[int]:
    """Into how many equal parts a layer's inputs may divide, by the module's whole numbers."""
    config = getattr(module, "config", None)
    of_config = {name: value for name, value in getattr(config, "__dict__", {}).items()
                 if type(value) is int and value > 1 and "head" in name}
    for numbers in (_numbers(module), of_config):
        heads = {name: value for name, value in numbers.items() if "head" in name}
        suggested = {parts for value in (heads or numbers).values()
                     for parts in (value, size // value)}
        parts = sorted(parts for parts in suggested
                       if 1 < parts < size and not size % parts and parts <= MAX_PARTS)
        if parts:
            return parts
    return []


def _divide(
    names: Mapping[nn.Module, str], module: nn.Module, reader: Call, makers: Sequence[Call],
    parts: int,
) -> UnitGroup | None:
    """Divide the inputs into parts; None unless each depends on outputs of its own.

    Parts that depend on a common output are one unit.
    """
    from scipy.sparse.csgraph import connected_components

    columns = torch.arange(reader.inputs.shape[-1]).view(parts, -1)
    used = [call for call, outputs in zip(makers, _dependences(reader, columns[0], makers),
                                          strict=True) if outputs.any() and not outputs.all()]
    if not used:
        return None
    by_part = torch.stack([torch.cat(_dependences(reader, part, used)) for part in columns])
    units, labels = connected_components((by_part.float() @ by_part.float().T).numpy())
    parts_of = [torch.from_numpy(labels == unit) for unit in range(units)]
    by_unit = torch.stack([by_part[members].any(0) for members in parts_of])
    if units < 2 or not by_unit.any(0).all() or not by_unit.any(1).all():
        return None
    dims = weight_dims(reader.module)
    assert dims is not None
    reading = ParameterSlice(f"{names[reader.module]}.weight", dims[1],
                             _positions(columns[members] for members in parts_of))
    return UnitGroup(names[module], tuple(names[call.module] for call in used), (reading,), units,
                     "heads", tuple(_maker_slices(names, used, by_unit)))


def _maker_slices(
    names: Mapping[nn.Module, str], makers: Sequence[Call], by_unit: Tensor
) -> Iterator[ParameterSlice]:
    """The parameters of the layers that make heads; ``by_unit`` says of which outputs each is."""
    outputs_of = by_unit.split([call.outputs.shape[-1] for call in makers], dim=1)
    for (module, _, _), outputs in zip(makers, outputs_of, strict=True):
        rows, dims = _positions(map(torch.nonzero, outputs)), weight_dims(module)
        yield ParameterSlice(f"{names[module]}.weight", 1 if dims is None else dims[0], rows)
        if getattr(module, "bias", None) is not None:
            yield ParameterSlice(f"{names[module]}.bias", 0, rows)


def _attends(reader: Call, makers: Sequence[Call]) -> bool:
    """Whether an input at the last position depends on outputs at several, as in attention."""
    if not makers or not reader.inputs.requires_grad:
        return False
    for gradient in _gradients(reader.inputs.flatten(0, -2)[-1:, :1], makers):
        nonzero = (gradient != 0).reshape(-1, gradient.shape[-1])
        if 1 < int(nonzero.any(0).sum()) < nonzero.shape[1] and int(nonzero.any(1).sum()) > 1:
            return True
    return False


def _gradients(inputs: Tensor, makers: Sequence[Call]) -> Sequence[Tensor]:
    """Gradients of the inputs' weighted sum by each layer's outputs."""
    weights = torch.linspace(0.5, 1.5, inputs.numel(), dtype=torch.float64).reshape(inputs.shape)
    return torch.autograd.grad(inputs, [call.outputs for call in makers], weights.to(inputs),
                               retain_graph=True, materialize_grads=True)


def _dependences(reader: Call, columns: Tensor, makers: Sequence[Call]) -> list[Tensor]:
    """By layer whether these columns of the reader's inputs depend on each of its outputs."""
    inputs = reader.inputs[..., int(columns[0]): int(columns[-1]) + 1]
    return [(gradient != 0).reshape(-1, gradient.shape[-1]).any(0).cpu()
            for gradient in _gradients(inputs, makers)]
