"""Attention heads as groups of units, and attention with fewer heads.

Heads of ``nn.MultiheadAttention``, and of modules that make queries, keys and values with layers
of their own. Tests: ``tests/pruning/test_heads.py``, ``tests/pruning/test_projected_heads.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from wua_mlflow.pruning.unit_groups import UnitGroup

__all__ = [
    "ATTENTION", "PrunedMultiheadAttention", "counting_modules", "head_attribute_candidates",
    "unit_numbers", "width_attribute_candidates",
    "refused_attention",
]


def refused_attention(model: nn.Module) -> dict[str, str]:
    """Attention modules of torch that cannot be cut, with the reason."""
    refused = {}
    for name, module in model.named_modules():
        if type(module) is nn.MultiheadAttention:
            if module.bias_k is not None or module.add_zero_attn:
                refused[name] = "it adds keys of its own (add_bias_kv, add_zero_attn)"
            elif not module._qkv_same_embed_dim:
                refused[name] = "its keys or values have a size of their own (kdim, vdim)"
    return refused


class PrunedMultiheadAttention(nn.Module):
    """``nn.MultiheadAttention`` (Vaswani et al. 2017) whose heads need not fill the embedding.

    The same parameters under the same names: ``in_proj_weight`` of shape (3 · heads · size,
    embedding), ``out_proj.weight`` of shape (embedding, heads · size).
    """

    _qkv_same_embed_dim = False
    """Read by ``nn.TransformerEncoderLayer``: keeps it off the fused path, which this has not."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        out = original.out_proj
        self.embed_dim, self.head_dim, self.num_heads = (
            original.embed_dim, original.head_dim, original.num_heads)
        self.dropout, self.batch_first = original.dropout, original.batch_first
        self.in_proj_weight, self.in_proj_bias = original.in_proj_weight, original.in_proj_bias
        self.out_proj = nn.Linear(out.in_features, out.out_features, out.bias is not None,
                                  device="meta")
        self.out_proj.weight, self.out_proj.bias = out.weight, out.bias
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


def counting_modules(model: nn.Module, group: UnitGroup) -> list[nn.Module]:
    """The modules that may hold how many units there are: those around the layers that make them.

    Several, where heads of several modules go together (a bias that later layers take over); of
    other units than heads all modules around what makes or reads them, but for torch's layers,
    whose sizes follow their weights.
    """
    owners = dict.fromkeys(maker.module.rpartition(".")[0] for maker in group.makers)
    if group.kind != "heads":
        paths = [slice_.module.split(".") for slice_ in (*group.makers, *group.readers)]
        around = {".".join(path[:depth]) for path in paths for depth in range(len(path) + 1)}
        modules = (model.get_submodule(name) for name in sorted(around))
        return [module for module in modules if not module._parameters
                or not type(module).__module__.startswith("torch.nn.modules")]
    named = model.get_submodule(group.name)
    return list(dict.fromkeys([named, *(model.get_submodule(owner) for owner in owners)]))


NOT_COUNTS = ("dim", "size", "group", "idx", "index")
"""In names of numbers that do not say how many heads there are."""


def head_attribute_candidates(model: nn.Module, group: UnitGroup) -> Iterator[UnitGroup]:
    """Guesses of which attributes of a module count its heads or their total size, likeliest first.

    How many heads there are; with one of the numbers that are as large as what the heads make in
    all, since others of that size (a window, a longest length) mean something else; with all of
    these; none, where no number is named after heads: the forward may read it from the shapes.
    """
    numbers = unit_numbers(model, group)
    sizes = {sum(map(len, slice_.columns)) for slice_ in (*group.makers, *group.readers)}
    counting = {name: value for name, value in numbers.items()
                if not any(word in name for word in NOT_COUNTS)}
    named = [name for name, value in counting.items()
             if "head" in name and not value % group.units]
    equal = [name for name, value in counting.items() if value == group.units]
    counts: list[tuple[str, ...]] = [tuple(named)] if named else \
        [(), *((name,) for name in equal), tuple(equal)]
    widths = [name for name, value in numbers.items() if value in sizes and name not in named]
    candidates = [
        *counts,
        *((*names, name) for names in counts for name in widths if name not in names),
        (*counts[-1], *(name for name in widths if name not in counts[-1])),
    ]
    for names in dict.fromkeys(candidates):
        yield replace(group, counts=names)


NOT_WIDTHS = ("head", "patch", "kernel", "stride", "window", "class", "max", "len", "vocab",
              "group", "num_layers", "depth", "block", "image", "img", "padding", "idx", "index")
"""In names of numbers that do not say how wide a layer is."""


def width_attribute_candidates(model: nn.Module, group: UnitGroup) -> Iterator[UnitGroup]:
    """Guesses of which numbers of the modules around say how many units there are, if any does.

    All that are as large, then each (``d_model`` of ``nn.Transformer``, ``hidden_size``, …).
    """
    sizes = {group.units, *(sum(map(len, slice_.columns))
                            for slice_ in (*group.makers, *group.readers))}
    names = dict.fromkeys(
        name for module in counting_modules(model, group) for name, value in vars(module).items()
        if type(value) is int and value > 1 and value in sizes
        and not any(word in name for word in NOT_WIDTHS))
    for chosen in dict.fromkeys([tuple(names), *((name,) for name in [*names][:MOST_NUMBERS])]):
        if chosen:
            yield replace(group, counts=chosen)


MOST_NUMBERS = 4
"""So many numbers are tried one by one."""


def unit_numbers(model: nn.Module, group: UnitGroup) -> dict[str, int]:
    """The whole numbers above one of the modules that may count units; the first one's, if more."""
    return {name: value for module in reversed(counting_modules(model, group))
            for name, value in vars(module).items() if type(value) is int and value > 1}
