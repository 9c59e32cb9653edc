"""Attention written with layers of its own, as each of transformers' ways to write it, in small.

Each class names in its docstring what it stands in for.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as attend

from tests.pruning.cutting_cases import Conv1D

SIZE = 4
"""Of a head."""


def split(x, heads):
    return x.view(*x.shape[:-1], heads, -1).transpose(1, 2)


def joined(x):
    return x.transpose(1, 2).flatten(2)


def mixed(queries, keys, values, heads, mask=None, **options):
    """Attention over what layers give, its heads side by side."""
    q, k, v = (split(projected, heads) for projected in (queries, keys, values))
    return joined(attend(q, k, v, mask, **options))


class Bert(nn.Module):
    """BERT: the heads are read by a layer of a sibling; a head count and two sizes."""

    class Own(nn.Module):
        def __init__(self, width, heads):
            super().__init__()
            self.num_attention_heads, self.attention_head_size = heads, SIZE
            self.all_head_size = heads * SIZE
            self.query, self.key, self.value = (nn.Linear(width, heads * SIZE) for _ in range(3))

        def forward(self, x):
            outputs = mixed(self.query(x), self.key(x), self.value(x), self.num_attention_heads)
            return outputs.reshape(*x.shape[:2], self.all_head_size)

    def __init__(self, heads):
        super().__init__()
        self.own, self.dense = self.Own(12, heads), nn.Linear(heads * SIZE, 12)
        self.norm = nn.LayerNorm(12)

    def forward(self, x):
        return self.norm(x + self.dense(self.own(x)))


class Llama(nn.Module):
    """Llama: no head count but a head's size; several heads share their keys and values."""

    def __init__(self, units, shared=2):
        super().__init__()
        self.head_dim, self.num_key_value_groups, self.layer_idx = SIZE, shared, 3
        self.q_proj = nn.Linear(12, units * shared * SIZE, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(12, units * SIZE, bias=False) for _ in range(2))
        self.o_proj = nn.Linear(units * shared * SIZE, 12, bias=False)
        self.q_norm = nn.RMSNorm(SIZE)

    def forward(self, x):
        q, k, v = (layer(x).view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)
                   for layer in (self.q_proj, self.k_proj, self.v_proj))
        k, v = (heads.repeat_interleave(self.num_key_value_groups, 1) for heads in (k, v))
        return x + self.o_proj(joined(attend(self.q_norm(q), k, v, is_causal=True)))


class Gpt2(nn.Module):
    """GPT-2: one Conv1D makes queries, keys and values, one after the other."""

    def __init__(self, heads):
        super().__init__()
        self.num_heads, self.split_size, self.embed_dim = heads, heads * SIZE, heads * SIZE
        self.c_attn, self.c_proj = Conv1D(3 * heads * SIZE, 12), Conv1D(12, heads * SIZE)

    def forward(self, x):
        q, k, v = self.c_attn(x).split(self.split_size, 2)
        return x + self.c_proj(mixed(q, k, v, self.num_heads, is_causal=True))


class Neox(nn.Module):
    """GPT-NeoX: one Linear makes them head by head."""

    def __init__(self, heads):
        super().__init__()
        self.head_size = SIZE
        self.query_key_value = nn.Linear(12, 3 * heads * SIZE)
        self.dense = nn.Linear(heads * SIZE, 12)

    def forward(self, x):
        projected = self.query_key_value(x).view(*x.shape[:-1], -1, 3 * self.head_size)
        q, k, v = projected.transpose(1, 2).chunk(3, -1)
        return x + self.dense(joined(attend(q, k, v)))


class Plain(nn.Module):
    """By hand: a head count whose name does not say so."""

    def __init__(self, heads):
        super().__init__()
        self.h, self.depth = heads, 7
        self.qkv, self.out = nn.Linear(12, 3 * heads * SIZE), nn.Linear(heads * SIZE, 12)

    def forward(self, x):
        q, k, v = (split(projected, self.h) for projected in self.qkv(x).chunk(3, -1))
        return x + self.out(joined((q @ k.transpose(-1, -2) / 2).softmax(-1) @ v))


class T5(nn.Module):
    """T5's first layer: an embedding gives each head its bias."""

    def __init__(self, heads):
        super().__init__()
        self.n_heads, self.key_value_proj_dim, self.buckets = heads, SIZE, 8
        self.q, self.k, self.v = (nn.Linear(12, heads * SIZE, bias=False) for _ in range(3))
        self.o = nn.Linear(heads * SIZE, 12, bias=False)
        self.bias = nn.Embedding(8, heads)

    def forward(self, x):
        steps = torch.arange(x.shape[1], device=x.device)
        bias = self.bias((steps[:, None] - steps).abs().clamp(max=7)).permute(2, 0, 1)
        return x + self.o(mixed(self.q(x), self.k(x), self.v(x), self.n_heads, bias[None]))


class Block(nn.Module):
    """nanoGPT's short forms: attention and feed-forward in one module."""

    def __init__(self, heads):
        super().__init__()
        self.n_head = heads
        self.q, self.k, self.v = (nn.Linear(12, heads * SIZE) for _ in range(3))
        self.o, self.norm = nn.Linear(heads * SIZE, 12), nn.LayerNorm(12)
        self.up, self.down = nn.Linear(12, 16), nn.Linear(16, 12)

    def forward(self, x):
        x = self.norm(x + self.o(mixed(self.q(x), self.k(x), self.v(x), self.n_head)))
        return x + self.down(self.up(x).relu())


READS = {Bert: "dense", Llama: "o_proj", Gpt2: "c_proj", Neox: "dense", Plain: "out", T5: "o",
         Block: "o"}


def stack(*modules):
    return nn.Sequential(*modules, nn.Linear(12, 2)).eval()
