"""The heads of ``nn.MultiheadAttention``: groups of their own, and a module that holds fewer.

The module of torch cannot: there the heads divide the embedding. May import: torch, slimming.
Tests: ``tests/slimming/test_heads.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from wua_mlflow.hooks import Call, evaluating, noting
from wua_mlflow.pruning.dependency_graph import axes_of, is_conv1d, uncached
from wua_mlflow.pruning.examples import called
from wua_mlflow.pruning.unit_groups import ParameterSlice, UnitGroup

__all__ = [
    "ATTENTION", "PrunedMultiheadAttention", "head_attribute_candidates", "head_groups",
    "projected_heads", "without_heads", "without_projected_heads",
]


def head_groups(model: nn.Module) -> tuple[list[UnitGroup], dict[str, str]]:
    """A group for each attention module, and those that cannot be cut, with the reason."""
    groups, fixed = [], {}
    for name, module in model.named_modules():
        if isinstance(module, PrunedMultiheadAttention) or type(module) is nn.MultiheadAttention:
            reason = _refusal(module)
            if reason:
                fixed[name] = reason
            elif module.num_heads > 1:
                groups.append(_group(name, module))
    return groups, fixed


def _refusal(module: nn.Module) -> str:
    if isinstance(module, nn.MultiheadAttention):
        if module.bias_k is not None or module.add_zero_attn:
            return "it adds keys of its own (add_bias_kv, add_zero_attn)"
        if not module._qkv_same_embed_dim:
            return "its keys or values have a size of their own (kdim, vdim)"
    return ""


def _group(name: str, module: Any) -> UnitGroup:
    size, heads = module.head_dim, module.num_heads
    columns = tuple(tuple(range(head * size, (head + 1) * size)) for head in range(heads))
    three = tuple(tuple(part * heads * size + place for part in range(3) for place in one)
                  for one in columns)
    held = ["in_proj_weight", *(["in_proj_bias"] if module.in_proj_bias is not None else [])]
    return UnitGroup(name, (name,), (ParameterSlice(f"{name}.out_proj.weight", 1, columns),), heads,
                     "heads", tuple(ParameterSlice(f"{name}.{one}", 0, three) for one in held))


class PrunedMultiheadAttention(nn.Module):
    """``nn.MultiheadAttention`` (Vaswani et al. 2017) whose heads need not fill the embedding.

    The same parameters under the same names: ``in_proj_weight`` of shape (3 · heads · size,
    embedding), ``out_proj.weight`` of shape (embedding, heads · size).
    """

    _qkv_same_embed_dim = False
    """Read by ``nn.TransformerEncoderLayer``: keeps it off the fused path, which this has not."""

    def __init__(self, whole: Any, heads: Sequence[int]) -> None:
        super().__init__()
        size, all_heads = whole.head_dim, whole.num_heads
        rows = torch.cat([torch.arange(head * size, (head + 1) * size) for head in heads])
        three = torch.cat([rows + part * all_heads * size for part in range(3)])
        weight = whole.in_proj_weight
        self.embed_dim, self.head_dim, self.num_heads = whole.embed_dim, size, len(heads)
        self.dropout, self.batch_first = whole.dropout, whole.batch_first
        three, rows = three.to(weight.device), rows.to(weight.device)
        self.in_proj_weight = nn.Parameter(weight.detach()[three])
        bias = whole.in_proj_bias
        self.in_proj_bias = None if bias is None else nn.Parameter(bias.detach()[three])
        out = whole.out_proj
        self.out_proj = nn.Linear(len(rows), out.out_features, out.bias is not None,
                                  device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            self.out_proj.weight.copy_(out.weight[:, rows])
            if out.bias is not None:
                self.out_proj.bias.copy_(out.bias)
        self.train(whole.training)

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
        inputs = [query, key, value] if batched else [one.unsqueeze(0) for one in
                                                      (query, key, value)]
        if batched and not self.batch_first:
            inputs = [one.transpose(0, 1) for one in inputs]
        weights = self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (self._heads(functional.linear(one, weight, bias))
                   for one, weight, bias in zip(inputs, weights, biases, strict=True))
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

    def _heads(self, projected: Tensor) -> Tensor:
        """(batch, length, heads · size) -> (batch, heads, length, size)."""
        return projected.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _mask(
        self, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor
    ) -> Tensor | None:
        """What is added to the logits, shape (batch or 1, heads or 1, targets, sources)."""
        total = None
        if attn_mask is not None:
            total = _added(attn_mask, q)
            total = total.unflatten(0, (-1, total.shape[0] // len(q))) if total.dim() == 3 \
                else total
            if total.dim() == 4 and total.shape[1] != self.num_heads:
                raise ValueError(f"attn_mask: expected one mask a head of {self.num_heads} heads, "
                                 f"or one for all, but got {total.shape[1]}")
        if padding is not None:
            hidden = _added(padding if padding.dim() == 2 else padding.unsqueeze(0), q)
            hidden = hidden[:, None, None, :]
            total = hidden if total is None else total + hidden
        return total


ATTENTION = (nn.MultiheadAttention, PrunedMultiheadAttention)
"""Attention in one module, with weights of its own."""


def _added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


def without_heads(model: nn.Module, name: str, kept: Sequence[int]) -> None:
    """Put ``FewerHeads`` in the place of an attention module."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, PrunedMultiheadAttention(
        model.get_submodule(name), sorted(kept)))


LIMIT = 1024
"""Of the parts that the columns of a layer are divided into to find its heads."""
MOST_MAKERS = 8
"""So many layers before the one that reads heads are looked at for those that make them."""
NOT_COUNTS = ("dim", "size", "group", "idx", "index")
"""In names of numbers that do not say how many heads there are."""


def projected_heads(model: nn.Module, example: Any) -> list[UnitGroup]:
    """A group of heads for each module of ``model`` that has some, in the model's order.

    A unit is a head; where several share their keys and values (grouped-query attention, Ainslie
    et al. 2023, arXiv 2305.13245), it is all of these with what they share. The columns with which
    a layer reads the heads are divided into as many parts as numbers of the module suggest. What
    a part depends on is seen in its gradient with respect to the outputs of the layers before;
    parts that depend on a common output are one unit.

    Args:
        model: from ``plain_copy``.
        example: a batch as the model takes it, of more than one position.
    """
    names = {module: name for name, module in model.named_modules()}
    layers = [module for module in names if _projects(module)]
    with evaluating(model, grad=True), uncached(model), noting(layers) as calls:
        called(model, example)
        first: dict[nn.Module, Call] = {}
        for call in calls:
            first.setdefault(call.module, call)
        order = list(first.values())
        groups: list[UnitGroup] = []
        taken: set[nn.Module] = set()
        for module in reversed(names):  # the innermost first
            own = [call for call in order if _inside(names[call.module], names[module])]
            if not own or taken & {call.module for call in own} or not _numbers(module):
                continue
            try:
                found = _heads(module, own, order)
            except RuntimeError:  # of autograd: its outputs were changed in place, or checkpointed
                continue
            if found is not None:
                taken |= {call.module for call in found.makers}
                groups.append(_projected_group(names[module], found, names))
    position = {name: place for place, name in enumerate(names.values())}
    return sorted(groups, key=lambda one: position[one.name])


def head_attribute_candidates(model: nn.Module, group: UnitGroup) -> Iterator[UnitGroup]:
    """The group with the attributes of its module that might fall with its heads, likeliest first.

    How many heads there are; with one of the numbers that are as large as what the heads make in
    all, since others of that size (a window, a longest length) mean something else; with all of
    these; none, where the forward reads the number from the shapes.
    """
    module = model.get_submodule(group.name)
    whole = {sum(map(len, one.columns)) for one in (*group.makers, *group.readers)}
    numbers = _numbers(module)
    counting = {name: value for name, value in numbers.items()
                if not any(word in name for word in NOT_COUNTS)}
    named = [name for name, value in counting.items()
             if "head" in name and not value % group.units]
    equal = [name for name, value in counting.items() if value == group.units]
    counts = [tuple(named)] if named else [(), *((name,) for name in equal), tuple(equal)]
    widths = [name for name, value in numbers.items() if value in whole and name not in named]
    ways = [*counts, *((*some, name) for some in counts for name in widths if name not in some),
            (*counts[-1], *(name for name in widths if name not in counts[-1])), ()]
    seen: list[tuple[str, ...]] = []
    for chosen in ways:
        if chosen not in seen:
            seen.append(chosen)
            yield replace(group, counts=chosen)


def without_projected_heads(model: nn.Module, group: UnitGroup, gone: Sequence[int]) -> None:
    """Cut heads out of the layers that make and read them, and out of the module's numbers."""
    for places in (*group.makers, *group.readers):
        owner, _, leaf = places.parameter.rpartition(".")
        layer, before = model.get_submodule(owner), model.get_parameter(places.parameter)
        lost = set(places.of(gone))
        left = [place for place in range(before.shape[places.dim]) if place not in lost]
        rows = torch.tensor(left, device=before.device)
        setattr(layer, leaf, nn.Parameter(before.detach().index_select(places.dim, rows)))
        _resize(layer)
    module = model.get_submodule(group.name)
    for name in group.counts:
        value = getattr(module, name)
        setattr(module, name, value * (group.units - len(gone)) // group.units)


def _resize(layer: Any) -> None:
    """The sizes that a layer says it has are those of its weight."""
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.Embedding):
        layer.embedding_dim = layer.weight.shape[1]
    else:
        layer.nf = layer.weight.shape[1]
        if hasattr(layer, "nx"):
            layer.nx = layer.weight.shape[0]


def _projects(module: nn.Module) -> bool:
    return type(module) in (nn.Linear, nn.Embedding) or is_conv1d(module)


def _inside(name: str, of: str) -> bool:
    return name.startswith(f"{of}.") if of else bool(name)


def _numbers(module: nn.Module) -> dict[str, int]:
    """A module's own whole numbers above one."""
    return {name: value for name, value in vars(module).items()
            if type(value) is int and value > 1}


@dataclass(frozen=True)
class _Heads:
    reader: Call
    makers: tuple[Call, ...]
    columns: tuple[tuple[int, ...], ...]
    rows: tuple[tuple[tuple[int, ...], ...], ...]
    """By maker and unit."""


def _heads(module: nn.Module, own: Sequence[Call], order: Sequence[Call]) -> _Heads | None:
    """The finest heads that the layers of a module make, for one of them or the next layer.

    None, too, where two layers read heads: the numbers of the module are those of both.
    """
    last = next(place for place, call in enumerate(order) if call is own[-1])
    calls, chosen = [*own, *order[last + 1: last + 2]], []
    for place, reader in enumerate(calls[1:], start=1):
        makers = calls[max(0, place - MOST_MAKERS): place]
        if isinstance(reader.module, nn.Embedding) or not _attends(reader, makers):
            continue
        found = [one for parts in _parts(module, reader.inputs.shape[-1])
                 if (one := _divided(reader, makers, parts)) is not None]
        if found:
            chosen.append(max(found, key=lambda one: len(one.columns)))
    return chosen[0] if len(chosen) == 1 else None


def _parts(module: nn.Module, size: int) -> list[int]:
    """In how many parts of one size the columns might be divided into heads, by its numbers."""
    found = set()
    for numbers in (_numbers(module), _numbers_of_config(module)):
        heads = {name: value for name, value in numbers.items() if "head" in name}
        for value in (heads or numbers).values():
            found |= {value, size // value}
        found = {one for one in found if 1 < one < size and not size % one and one <= LIMIT}
        if found:
            break
    return sorted(found)


def _numbers_of_config(module: nn.Module) -> dict[str, int]:
    config = getattr(module, "config", None)
    found = vars(config) if hasattr(config, "__dict__") else {}
    return {name: value for name, value in found.items()
            if type(value) is int and value > 1 and "head" in name}


def _divided(reader: Call, makers: Sequence[Call], parts: int) -> _Heads | None:
    """The units, where each part depends on rows of its own of at least one layer."""
    size = reader.inputs.shape[-1] // parts
    blocks = [range(part * size, (part + 1) * size) for part in range(parts)]
    own = [call for call, rows in zip(makers, _dependences(reader, blocks[0], makers), strict=True)
           if 0 < len(rows) < call.outputs.shape[-1]]
    by_block = [_dependences(reader, block, own) for block in blocks]
    units = _joined(by_block)
    rows = tuple(tuple(tuple(sorted(set().union(*(by_block[block][place] for block in unit))))
                       for unit in units) for place in range(len(own)))
    whole = all(sum(map(len, by_unit)) == call.outputs.shape[-1]
                for by_unit, call in zip(rows, own, strict=True))
    if not own or len(units) < 2 or not whole or not all(any(by[unit] for by in rows)
                                                         for unit in range(len(units))):
        return None
    columns = tuple(tuple(column for block in unit for column in blocks[block]) for unit in units)
    return _Heads(reader, tuple(own), columns, rows)


def _attends(reader: Call, makers: Sequence[Call]) -> bool:
    """Whether a column at the last position depends on a part of what is made at several."""
    read = reader.inputs.flatten(0, -2)[-1:, :1]
    return any(bool(1 < len(_places(one)) < one.shape[-1]) and
               int((one != 0).flatten(0, -2).any(-1).sum()) > 1
               for one in _gradients(read, makers) if one is not None and one.dim() > 1)


def _gradients(read: Tensor, makers: Sequence[Call]) -> list[Tensor | None]:
    """Of what is read, weighted, with respect to each layer's outputs; None where it has none."""
    able = [call.outputs for call in makers if call.outputs.requires_grad]
    if not read.requires_grad or not able:
        return [None] * len(makers)
    weights = torch.linspace(0.5, 1.5, read.numel(), dtype=torch.float64).reshape(read.shape)
    found = iter(torch.autograd.grad(read, able, weights.to(read), retain_graph=True,
                                     allow_unused=True))
    return [next(found) if call.outputs.requires_grad else None for call in makers]


def _dependences(reader: Call, columns: range, makers: Sequence[Call]) -> list[set[int]]:
    """By layer the places of its outputs that these columns of what is read depend on."""
    read = reader.inputs[..., columns.start: columns.stop]
    return [set() if one is None else _places(one) for one in _gradients(read, makers)]


def _places(gradient: Tensor) -> set[int]:
    return set((gradient != 0).reshape(-1, gradient.shape[-1]).any(0).nonzero()[:, 0].tolist())


def _joined(by_block: Sequence[Sequence[set[int]]]) -> list[list[int]]:
    """Blocks by unit: those that share a place of one layer are one unit."""
    units: list[tuple[list[int], list[set[int]]]] = []
    for block, places in enumerate(by_block):
        members, held = [block], [set(some) for some in places]
        apart = []
        for unit in units:
            if any(mine & theirs for mine, theirs in zip(held, unit[1], strict=True)):
                members = [*unit[0], *members]
                held = [mine | theirs for mine, theirs in zip(held, unit[1], strict=True)]
            else:
                apart.append(unit)
        units = [*apart, (members, held)]
    return sorted(sorted(members) for members, _ in units)


def _projected_group(name: str, found: _Heads, names: Mapping[nn.Module, str]) -> UnitGroup:
    makers = []
    for call, rows in zip(found.makers, found.rows, strict=True):
        layer: Any = call.module
        axes = axes_of(layer)
        makers.append(
            ParameterSlice(f"{names[layer]}.weight", 1 if axes is None else axes[0], rows)
        )
        if getattr(layer, "bias", None) is not None:
            makers.append(ParameterSlice(f"{names[layer]}.bias", 0, rows))
    axes = axes_of(found.reader.module)
    assert axes is not None
    reader = ParameterSlice(f"{names[found.reader.module]}.weight", axes[1], found.columns)
    return UnitGroup(name, tuple(names[call.module] for call in found.makers), (reader,),
                     len(found.columns), "heads", tuple(makers))
