"""The heads of ``nn.MultiheadAttention``: groups of their own, and a module that holds fewer.

The module of torch cannot: there the heads divide the embedding. May import: torch, slimming.
Tests: ``tests/slimming/test_heads.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from wua_mlflow.slimming.groups import Places, UnitGroup

__all__ = ["ATTENTION", "FewerHeads", "head_groups", "without_heads"]


def head_groups(model: nn.Module) -> tuple[list[UnitGroup], dict[str, str]]:
    """A group for each attention module, and those that cannot be cut, with the reason."""
    groups, fixed = [], {}
    for name, module in model.named_modules():
        if isinstance(module, FewerHeads) or type(module) is nn.MultiheadAttention:
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
    return UnitGroup(name, (name,), (Places(f"{name}.out_proj.weight", 1, columns),), heads,
                     "heads", tuple(Places(f"{name}.{one}", 0, three) for one in held))


class FewerHeads(nn.Module):
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


ATTENTION = (nn.MultiheadAttention, FewerHeads)
"""Attention in one module, with weights of its own."""


def _added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


def without_heads(model: nn.Module, name: str, kept: Sequence[int]) -> None:
    """Put ``FewerHeads`` in the place of an attention module."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, FewerHeads(
        model.get_submodule(name), sorted(kept)))
