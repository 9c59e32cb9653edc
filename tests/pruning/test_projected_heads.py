"""Which layers are taken for heads, which are not, and what is said of those."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.networks import rows
from tests.pruning.attention_cases import (
    SIZE,
    Bert,
    Llama,
    Plain,
    attend,
    joined,
    mixed,
    split,
    stack,
)
from wua_mlflow.pruning.cut import cut, unit_groups

EXAMPLE = rows(3, 5, 12)


def without_heads(model, example=EXAMPLE):
    """The layers that are not cut, with the reason, of a model that has no groups of heads."""
    structure = unit_groups(model, example)
    assert not [group for group in structure.groups if group.kind == "heads"]
    return structure.not_prunable


def test_shared_keys_make_one_unit_of_the_heads_that_share_them():
    structure = unit_groups(nn.Sequential(Llama(2, shared=3), nn.Linear(12, 2)), EXAMPLE)
    (heads,) = [group for group in structure.groups if group.kind == "heads"]
    assert heads.units == 2
    assert heads.readers[0].columns == (tuple(range(12)), tuple(range(12, 24)))
    assert {maker.parameter: len(maker.columns[0]) for maker in heads.makers} == {
        "0.q_proj.weight": 12, "0.k_proj.weight": 4, "0.v_proj.weight": 4}


def test_one_head_that_all_share_stays_whole():
    """Multi-query attention: each query head is a unit, the keys are no one's."""

    class Shared(nn.Module):
        def __init__(self, heads):
            super().__init__()
            self.num_heads = heads
            self.q, self.kv = nn.Linear(12, heads * SIZE), nn.Linear(12, 2 * SIZE)
            self.o = nn.Linear(heads * SIZE, 12)

        def forward(self, x):
            k, v = (head[:, None] for head in self.kv(x).chunk(2, -1))
            return self.o(joined(attend(split(self.q(x), self.num_heads), k, v)))

    result = cut(nn.Sequential(Shared(3), nn.Linear(12, 2)), EXAMPLE, {"0": [0, 2]})
    assert result.model[0].q.weight.shape == (8, 12)
    assert result.model[0].kv.weight.shape == (8, 12)
    assert result.fixed["0.kv"] == "all heads of 0 read them"


def test_heads_that_a_table_of_fixed_size_looks_after_are_refused():
    """ALiBi and Swin: a bias a head that nothing shortens."""

    class Biased(Plain):
        def __init__(self, heads):
            super().__init__(heads)
            self.register_buffer("slopes", torch.linspace(1, 2, heads)[:, None, None])

        def forward(self, x):
            return x + self.out(mixed(*self.qkv(x).chunk(3, -1), self.h, self.slopes))

    reasons = without_heads(nn.Sequential(Biased(3), nn.Linear(12, 2)))
    assert reasons["0.qkv"].startswith("cut on trial, its forward fails: RuntimeError")


class Feed(nn.Module):
    """A number that divides the width is not enough: the columns must depend on several rows."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.first, self.second = 4, nn.Linear(12, 16), nn.Linear(16, 12)

    def forward(self, x):
        return x + self.second(self.first(x).relu())


class Gated(nn.Module):
    """Its columns depend on two rows each, but of their own position alone."""

    def __init__(self):
        super().__init__()
        self.width, self.inner = 12, 24
        self.up, self.down = nn.Linear(12, 48), nn.Linear(24, 12)

    def forward(self, x):
        a, b = self.up(x).chunk(2, -1)
        return x + self.down(a.sigmoid() * b)


def test_a_feed_forward_part_is_not_taken_for_heads():
    structure = unit_groups(nn.Sequential(Feed(), Gated(), nn.Linear(12, 2)), EXAMPLE)
    assert {group.name: (group.kind, group.units) for group in structure.groups} == {
        "0.first": ("units", 16)}
    assert "1.up" in structure.not_prunable


@pytest.mark.parametrize("how", ["no_grad", "in place"])
def test_what_autograd_cannot_go_through_ends_nothing(how):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.width, self.before = 4, nn.Linear(12, 12)
            self.a, self.b = nn.Linear(12, 16), nn.Linear(16, 2)

        def forward(self, x):
            with torch.set_grad_enabled(how != "no_grad" and torch.is_grad_enabled()):
                x = self.before(x)
            hidden = self.a(x).sigmoid()
            if how == "in place":
                hidden.mul_(2)
            return self.b(hidden)

    structure = unit_groups(Odd(), EXAMPLE)
    names = {group.name for group in structure.groups}
    assert "a" in names
    assert {"before", "b"} <= names | set(structure.not_prunable)


def test_heads_whose_weights_are_also_others_say_so():
    model = stack(Bert)
    model[0].own.query.weight = model[1].own.query.weight
    assert "is tied to" in without_heads(model)["0.own.query"]


def test_two_attentions_that_share_their_numbers_are_refused():
    """One head count for both: cut alone, each would change it for the other."""

    class Twice(Plain):
        def __init__(self, heads):
            super().__init__(heads)
            self.second, self.last = nn.Linear(12, 3 * heads * SIZE), nn.Linear(heads * SIZE, 12)

        def forward(self, x):
            return x + self.last(mixed(*self.second(super().forward(x)).chunk(3, -1), self.h))

    assert {"0.qkv", "0.second"} <= set(
        without_heads(nn.Sequential(Twice(3), nn.Linear(12, 2))))


def test_one_position_shows_no_heads_and_nothing_is_claimed():
    """Attention over one position depends on the values alone."""
    assert "0.own.query" in without_heads(stack(Bert), rows(3, 1, 12))
