"""Which layers are taken for heads, which are not, and what is said of those."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.networks import kept_streams, rows
from tests.pruning.attention_cases import (
    SIZE,
    Bert,
    Llama,
    Plain,
    attend,
    joined,
    split,
    stack,
)
from wua_mlflow.pruning.cut import cut, unit_groups


@pytest.fixture(autouse=True)
def _seeded():
    with kept_streams():
        torch.manual_seed(0)
        yield


def test_shared_keys_make_one_unit_of_the_heads_that_share_them():
    found = unit_groups(nn.Sequential(Llama(2, shared=3), nn.Linear(12, 2)), rows(3, 5, 12))
    (heads,) = [one for one in found.groups if one.kind == "heads"]
    assert heads.units == 2
    assert heads.readers[0].columns == (tuple(range(12)), tuple(range(12, 24)))
    assert {one.parameter: len(one.columns[0]) for one in heads.makers} == {
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
            k, v = (one[:, None] for one in self.kv(x).chunk(2, -1))
            return self.o(joined(attend(split(self.q(x), self.num_heads), k, v)))

    model, example = nn.Sequential(Shared(3), nn.Linear(12, 2)), rows(3, 5, 12)
    found = cut(model, example, {"0": [0, 2]})
    assert found.model[0].q.weight.shape == (8, 12)
    assert found.model[0].kv.weight.shape == (8, 12)
    assert found.fixed["0.kv"] == "all heads of 0 read them"


def test_heads_that_a_table_of_fixed_size_looks_after_are_refused():
    """ALiBi and Swin: a bias a head that nothing shortens."""

    class Biased(Plain):
        def __init__(self, heads):
            super().__init__(heads)
            self.register_buffer("slopes", torch.linspace(1, 2, heads)[:, None, None])

        def forward(self, x):
            q, k, v = (split(one, self.h) for one in self.qkv(x).chunk(3, -1))
            return x + self.out(joined((q @ k.transpose(-1, -2) * self.slopes).softmax(-1) @ v))

    found = unit_groups(stack(Biased), rows(3, 5, 12))
    assert not [one for one in found.groups if one.kind == "heads"]
    assert found.not_prunable["0.qkv"].startswith("cut on trial, its forward fails: RuntimeError")


def test_feed_forward_and_unmixed_layers_are_not_taken_for_heads():
    """A number that divides the width is not enough: the columns must depend on several rows."""

    class Feed(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_heads, self.first, self.second = 4, nn.Linear(12, 16), nn.Linear(16, 12)

        def forward(self, x):
            return x + self.second(self.first(x).relu())

    found = unit_groups(nn.Sequential(Feed(), nn.Linear(12, 2)), rows(3, 5, 12))
    assert {one.name: (one.kind, one.units) for one in found.groups} == {
        "0.first": ("units", 16)}


def test_a_gated_feed_forward_is_not_taken_for_heads():
    """Its columns depend on two rows each, but of their own position alone."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.width, self.inner = 12, 24
            self.up, self.down = nn.Linear(12, 48), nn.Linear(24, 12)

        def forward(self, x):
            a, b = self.up(x).chunk(2, -1)
            return x + self.down(a.sigmoid() * b)

    found = unit_groups(nn.Sequential(Gated(), nn.Linear(12, 2)), rows(3, 5, 12))
    assert not [one for one in found.groups if one.kind == "heads"]
    assert "0.up" in found.not_prunable


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

    found = unit_groups(Odd(), rows(3, 5, 12))
    assert "a" in {one.name for one in found.groups}
    assert {"before", "b"} <= {*found.not_prunable, *(one.name for one in found.groups)}


def test_heads_whose_weights_are_also_others_say_so():
    model = stack(Bert)
    model[0].own.query.weight = model[1].own.query.weight
    found = unit_groups(model, rows(3, 5, 12))
    assert not [one for one in found.groups if one.kind == "heads"]
    assert "is tied to" in found.not_prunable["0.own.query"]


def test_two_attentions_that_share_their_numbers_are_refused():
    """One head count for both: cut alone, each would change it for the other."""

    class Twice(Plain):
        def __init__(self, heads):
            super().__init__(heads)
            self.second, self.last = nn.Linear(12, 3 * heads * SIZE), nn.Linear(heads * SIZE, 12)

        def forward(self, x):
            q, k, v = (split(one, self.h) for one in self.second(super().forward(x)).chunk(3, -1))
            return x + self.last(joined(attend(q, k, v)))

    found = unit_groups(stack(Twice), rows(3, 5, 12))
    assert not [one for one in found.groups if one.kind == "heads"]
    assert {"0.qkv", "0.second", "1.qkv", "1.second"} <= set(found.not_prunable)


def test_one_position_shows_no_heads_and_nothing_is_claimed():
    """Attention over one position depends on the values alone."""
    found = unit_groups(stack(Bert), rows(3, 1, 12))
    assert not [one for one in found.groups if one.kind == "heads"]
    assert "0.own.query" in found.not_prunable
