"""Attention heads as groups of units, and attention with fewer heads.

Heads of ``nn.MultiheadAttention``, and of modules that make queries, keys and values with layers
of their own. Tests: ``tests/pruning/test_heads.py``, ``tests/pruning/test_projected_heads.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
        if isinstance(module, PrunedMultiheadAttention) or type(module) is nn.MultiheadAttention:
            reason = _not_prunable(module)
            if reason:
                not_prunable[name] = reason
            elif module.num_heads > 1:
                groups.append(_attention_group(name, module))
    return groups, not_prunable


def _not_prunable(module: nn.Module) -> str:
    if isinstance(module, nn.MultiheadAttention):
        if module.bias_k is not None or module.add_zero_attn:
            return "it adds keys of its own (add_bias_kv, add_zero_attn)"
        if not module._qkv_same_embed_dim:
            return "its keys or values have a size of their own (kdim, vdim)"
    return ""


def _attention_group(name: str, module: Any) -> UnitGroup:
    size, heads = module.head_dim, module.num_heads
    columns = tuple(tuple(range(head * size, (head + 1) * size)) for head in range(heads))
    rows = tuple(tuple(part * heads * size + place for part in range(3) for place in places)
                 for places in columns)
    makers = ["in_proj_weight", *(["in_proj_bias"] if module.in_proj_bias is not None else [])]
    return UnitGroup(name, (name,), (ParameterSlice(f"{name}.out_proj.weight", 1, columns),), heads,
                     "heads", tuple(ParameterSlice(f"{name}.{maker}", 0, rows) for maker in makers))


class PrunedMultiheadAttention(nn.Module):
    """``nn.MultiheadAttention`` (Vaswani et al. 2017) whose heads need not fill the embedding.

    The same parameters under the same names: ``in_proj_weight`` of shape (3 · heads · size,
    embedding), ``out_proj.weight`` of shape (embedding, heads · size).
    """

    _qkv_same_embed_dim = False
    """Read by ``nn.TransformerEncoderLayer``: keeps it off the fused path, which this has not."""

    def __init__(self, original: Any, heads: Sequence[int]) -> None:
        super().__init__()
        size = original.head_dim
        columns = [head * size + place for head in heads for place in range(size)]
        rows = [part * original.num_heads * size + column for part in range(3)
                for column in columns]
        weight, bias, out = original.in_proj_weight, original.in_proj_bias, original.out_proj
        self.embed_dim, self.head_dim, self.num_heads = original.embed_dim, size, len(heads)
        self.dropout, self.batch_first = original.dropout, original.batch_first
        self.in_proj_weight = select(weight, 0, rows)
        self.in_proj_bias = None if bias is None else select(bias, 0, rows)
        self.out_proj = nn.Linear(len(columns), out.out_features, out.bias is not None,
                                  device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            self.out_proj.weight.copy_(out.weight[:, columns])
            if out.bias is not None:
                self.out_proj.bias.copy_(out.bias)
        self.train(original.training)

    def forward(  # noqa: PLR0913 - the signature of nn.MultiheadAttention
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention``: shapes, masks and what is returned."""
        batched = query.dim() == 3
        inputs = [query, key, value]
        if not batched:
            inputs = [sequence.unsqueeze(0) for sequence in inputs]
        elif not self.batch_first:
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
        split = torch.unflatten(projected, -1, (self.num_heads, self.head_dim))
        return split.transpose(1, 2)

    def _mask(
        self, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor
    ) -> Tensor | None:
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
            padded = _as_logits(padding if padding.dim() == 2 else padding.unsqueeze(0), q)
            padded = padded[:, None, None, :]
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
        taken: set[nn.Module] = set()
        for module in reversed(names):  # the innermost first
            within = [call for call in order if _is_within(names[call.module], names[module])]
            if not within or taken & {call.module for call in within} or not _numbers(module):
                continue
            try:
                heads = _find_heads(module, within, order)
            except RuntimeError:  # of autograd: its outputs were changed in place, or checkpointed
                continue
            if heads is not None:
                taken |= {call.module for call in heads.makers}
                groups[names[module]] = _projected_group(names[module], heads, names)
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


@dataclass(frozen=True)
class _Heads:
    """A layer that reads heads, and those that make them.

    Attributes:
        reader: the call of the layer that reads them.
        makers: the calls of the layers that make them.
        columns: by unit the reader's inputs.
        rows: by maker and unit the maker's outputs.
    """

    reader: Call
    makers: tuple[Call, ...]
    columns: tuple[tuple[int, ...], ...]
    rows: tuple[tuple[tuple[int, ...], ...], ...]


def _find_heads(
    module: nn.Module, within: Sequence[Call], order: Sequence[Call]
) -> _Heads | None:
    """The heads that a module's layers make and that one of them, or the next layer, reads.

    None, too, where two layers read heads: the numbers of the module are those of both.
    """
    last = next(place for place, call in enumerate(order) if call is within[-1])
    calls, readers = [*within, *order[last + 1: last + 2]], []
    for place, reader in enumerate(calls[1:], start=1):
        makers = calls[max(0, place - MAX_MAKERS): place]
        if isinstance(reader.module, nn.Embedding) or not _attends(reader, makers):
            continue
        divisions = [_divide(reader, makers, parts)
                     for parts in _numbers_of_parts(module, reader.inputs.shape[-1])]
        heads = [division for division in divisions if division is not None]
        if heads:
            readers.append(max(heads, key=lambda division: len(division.columns)))
    return readers[0] if len(readers) == 1 else None


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


def _divide(reader: Call, makers: Sequence[Call], parts: int) -> _Heads | None:
    """Divide the inputs into parts; None unless each depends on outputs of its own."""
    size = reader.inputs.shape[-1] // parts
    blocks = [range(part * size, (part + 1) * size) for part in range(parts)]
    used = [call for call, rows in zip(makers, _dependences(reader, blocks[0], makers), strict=True)
            if 0 < len(rows) < call.outputs.shape[-1]]
    by_block = [_dependences(reader, block, used) for block in blocks]
    units = _join_blocks(by_block)
    rows = tuple(tuple(tuple(sorted(set().union(*(by_block[block][place] for block in unit))))
                       for unit in units) for place in range(len(used)))
    complete = all(sum(map(len, by_unit)) == call.outputs.shape[-1]
                   for by_unit, call in zip(rows, used, strict=True))
    if not used or len(units) < 2 or not complete or not all(
            any(by_unit[unit] for by_unit in rows) for unit in range(len(units))):
        return None
    columns = tuple(tuple(column for block in unit for column in blocks[block]) for unit in units)
    return _Heads(reader, tuple(used), columns, rows)


def _attends(reader: Call, makers: Sequence[Call]) -> bool:
    """Whether an input at the last position depends on outputs at several, as in attention."""
    column = reader.inputs.flatten(0, -2)[-1:, :1]
    return any(bool(1 < len(_nonzero(gradient)) < gradient.shape[-1]) and
               int((gradient != 0).flatten(0, -2).any(-1).sum()) > 1
               for gradient in _gradients(column, makers)
               if gradient is not None and gradient.dim() > 1)


def _gradients(inputs: Tensor, makers: Sequence[Call]) -> list[Tensor | None]:
    """Gradients of the inputs' weighted sum by each layer's outputs; None where there is none."""
    outputs = [call.outputs for call in makers if call.outputs.requires_grad]
    if not inputs.requires_grad or not outputs:
        return [None] * len(makers)
    weights = torch.linspace(0.5, 1.5, inputs.numel(), dtype=torch.float64).reshape(inputs.shape)
    gradients = iter(torch.autograd.grad(inputs, outputs, weights.to(inputs), retain_graph=True,
                                         allow_unused=True))
    return [next(gradients) if call.outputs.requires_grad else None for call in makers]


def _dependences(reader: Call, columns: range, makers: Sequence[Call]) -> list[set[int]]:
    """Which outputs of each layer these columns of the reader's inputs depend on."""
    inputs = reader.inputs[..., columns.start: columns.stop]
    return [set() if gradient is None else _nonzero(gradient)
            for gradient in _gradients(inputs, makers)]


def _nonzero(gradient: Tensor) -> set[int]:
    """The places of the last dimension with a gradient other than zero."""
    return set((gradient != 0).reshape(-1, gradient.shape[-1]).any(0).nonzero()[:, 0].tolist())


def _join_blocks(by_block: Sequence[Sequence[set[int]]]) -> list[list[int]]:
    """Join blocks that depend on a common output of a layer into units."""
    units: list[tuple[list[int], list[set[int]]]] = []
    for block, rows in enumerate(by_block):
        members, joined = [block], list(rows)
        apart = []
        for unit in units:
            if any(new & old for new, old in zip(joined, unit[1], strict=True)):
                members = [*unit[0], *members]
                joined = [new | old for new, old in zip(joined, unit[1], strict=True)]
            else:
                apart.append(unit)
        units = [*apart, (members, joined)]
    return sorted(sorted(members) for members, _ in units)


def _projected_group(name: str, heads: _Heads, names: Mapping[nn.Module, str]) -> UnitGroup:
    makers = []
    for call, rows in zip(heads.makers, heads.rows, strict=True):
        layer, dims = names[call.module], weight_dims(call.module)
        makers.append(ParameterSlice(f"{layer}.weight", 1 if dims is None else dims[0], rows))
        if getattr(call.module, "bias", None) is not None:
            makers.append(ParameterSlice(f"{layer}.bias", 0, rows))
    dims = weight_dims(heads.reader.module)
    assert dims is not None
    reader = ParameterSlice(f"{names[heads.reader.module]}.weight", dims[1], heads.columns)
    return UnitGroup(name, tuple(names[call.module] for call in heads.makers), (reader,),
                     len(heads.columns), "heads", tuple(makers))
