"""Heads of attention written with layers of its own, against the same attention built narrower.

Each class stands in for one of transformers' ways to write it, which is named in its docstring.
"""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as attend

from tests.networks import kept_streams, rows, snapshot
from wua_mlflow import count_flops
from wua_mlflow.slimming import cut, masked, most_important, rebuild, unit_groups, unit_importance

SIZE = 4
"""Of a head."""


@pytest.fixture(autouse=True)
def _seeded():
    with kept_streams():
        torch.manual_seed(0)
        yield


def split(x, heads):
    return x.view(*x.shape[:-1], heads, -1).transpose(1, 2)


def joined(x):
    return x.transpose(1, 2).flatten(2)


class Bert(nn.Module):
    """BERT: the heads are read by a layer of a sibling; a head count and two sizes."""

    class Own(nn.Module):
        def __init__(self, width, heads):
            super().__init__()
            self.num_attention_heads, self.attention_head_size = heads, SIZE
            self.all_head_size = heads * SIZE
            self.query, self.key, self.value = (nn.Linear(width, heads * SIZE) for _ in range(3))

        def forward(self, x):
            q, k, v = (split(layer(x), self.num_attention_heads)
                       for layer in (self.query, self.key, self.value))
            found = attend(q, k, v).transpose(1, 2)
            return found.reshape(*found.shape[:2], self.all_head_size)

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
        k, v = (one.repeat_interleave(self.num_key_value_groups, 1) for one in (k, v))
        return x + self.o_proj(joined(attend(self.q_norm(q), k, v, is_causal=True)))


class Conv1D(nn.Module):
    """transformers' layer: weight (inputs, outputs)."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf) * 0.3)
        self.bias = nn.Parameter(torch.randn(nf) * 0.3)

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, self.nx), self.weight).view(*x.shape[:-1], self.nf)


class Gpt2(nn.Module):
    """GPT-2: one Conv1D makes queries, keys and values, one after the other."""

    def __init__(self, heads):
        super().__init__()
        self.num_heads, self.split_size, self.embed_dim = heads, heads * SIZE, heads * SIZE
        self.c_attn, self.c_proj = Conv1D(3 * heads * SIZE, 12), Conv1D(12, heads * SIZE)

    def forward(self, x):
        q, k, v = (split(one, self.num_heads) for one in self.c_attn(x).split(self.split_size, 2))
        return x + self.c_proj(joined(attend(q, k, v, is_causal=True)))


class Neox(nn.Module):
    """GPT-NeoX: one Linear makes them head by head."""

    def __init__(self, heads):
        super().__init__()
        self.head_size = SIZE
        self.query_key_value = nn.Linear(12, 3 * heads * SIZE)
        self.dense = nn.Linear(heads * SIZE, 12)

    def forward(self, x):
        made = self.query_key_value(x).view(*x.shape[:-1], -1, 3 * self.head_size)
        q, k, v = made.transpose(1, 2).chunk(3, -1)
        return x + self.dense(joined(attend(q, k, v)))


class Plain(nn.Module):
    """By hand: a head count whose name does not say so."""

    def __init__(self, heads):
        super().__init__()
        self.h, self.depth = heads, 7
        self.qkv, self.out = nn.Linear(12, 3 * heads * SIZE), nn.Linear(heads * SIZE, 12)

    def forward(self, x):
        q, k, v = (split(one, self.h) for one in self.qkv(x).chunk(3, -1))
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
        q, k, v = (split(layer(x), self.n_heads) for layer in (self.q, self.k, self.v))
        steps = torch.arange(x.shape[1], device=x.device)
        bias = self.bias((steps[:, None] - steps).abs().clamp(max=7)).permute(2, 0, 1)
        return x + self.o(joined(attend(q, k, v, bias[None])))


class Block(nn.Module):
    """nanoGPT's short forms: attention and feed-forward in one module."""

    def __init__(self, heads):
        super().__init__()
        self.n_head = heads
        self.q, self.k, self.v = (nn.Linear(12, heads * SIZE) for _ in range(3))
        self.o, self.norm = nn.Linear(heads * SIZE, 12), nn.LayerNorm(12)
        self.up, self.down = nn.Linear(12, 16), nn.Linear(16, 12)

    def forward(self, x):
        q, k, v = (split(layer(x), self.n_head) for layer in (self.q, self.k, self.v))
        x = self.norm(x + self.o(joined(attend(q, k, v))))
        return x + self.down(self.up(x).relu())


CLASSES = (Bert, Llama, Gpt2, Neox, Plain, T5, Block)
NAMES = {Bert: "0.own"}
READS = {Bert: "dense", Llama: "o_proj", Gpt2: "c_proj", Neox: "dense", Plain: "out", T5: "o",
         Block: "o"}
UNIT = {Llama: 2 * SIZE}
"""Columns that a unit takes of what reads it."""


def stack(kind, heads=3):
    return nn.Sequential(kind(heads), kind(heads), nn.Linear(12, 2)).eval()


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("keep", [[1], [0, 2]], ids=str)
def test_a_cut_is_the_narrower_network_with_the_same_weights(kind, keep):
    """Against the module itself whose other heads are not read, and the parameters by hand."""
    model, example, name = stack(kind), rows(3, 5, 12), NAMES.get(kind, "0")
    before = snapshot(model)
    found = cut(model, example, {name: keep})
    assert snapshot(model) == before
    assert found.units[name] == (3, len(keep))
    narrow = nn.Sequential(kind(len(keep)), kind(3), nn.Linear(12, 2)).eval()
    assert {key: one.shape for key, one in found.model.state_dict().items()} == \
        {key: one.shape for key, one in narrow.state_dict().items()}
    silent = copy.deepcopy(model)
    weight = getattr(silent[0], READS[kind]).weight
    columns = weight.data if kind is Gpt2 else weight.data.T
    size = UNIT.get(kind, SIZE)
    for head in set(range(3)) - set(keep):
        columns[head * size: (head + 1) * size] = 0
    for batch in (example, rows(2, 6, 12), rows(1, 1, 12)):
        with torch.no_grad():
            expected = silent(batch)
            narrow.load_state_dict(found.model.state_dict())
            torch.testing.assert_close(found.model(batch), expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(narrow(batch), expected, rtol=1e-4, atol=1e-5)
    assert vars_of(found.model[0]) == vars_of(narrow[0])
    assert found.flops_after == count_flops(narrow, example, backward=False).forward_flops


def vars_of(module):
    """The numbers of a module and of all in it, as the factory would have set them.

    Not ``embed_dim``, which the forward does not read: nothing says that it falls with the heads.
    """
    return {(name, key): value for name, one in module.named_modules()
            for key, value in vars(one).items() if isinstance(value, int) and key != "embed_dim"}


@pytest.mark.parametrize("kind", CLASSES)
def test_all_layers_of_it_are_in_the_group_or_named(kind):
    found = unit_groups(stack(kind), rows(3, 5, 12))
    heads = [one for one in found.groups if one.kind == "heads"]
    assert [one.name for one in heads] == [NAMES.get(kind, "0"), NAMES.get(kind, "0").replace(
        "0", "1", 1)]
    held = {name for one in found.groups for name in one.layers} | set(found.fixed)
    model = stack(kind)
    layers = {name for name, one in model.named_modules()
              if isinstance(one, (nn.Linear, nn.Embedding, Conv1D))}
    assert held == layers
    assert not {name for one in heads for name in one.layers} & set(found.fixed)


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
    assert found.fixed["0.qkv"].startswith("cut on trial, its forward fails: RuntimeError")


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


def test_numbers_that_only_look_alike_stay():
    """A window as wide as the heads together, a longest length: masks at any length stay right."""

    class Local(Plain):
        def __init__(self, heads):
            super().__init__(heads)
            self.window = self.longest = heads * SIZE

        def forward(self, x):
            assert x.shape[1] <= self.longest
            q, k, v = (split(one, self.h) for one in self.qkv(x).chunk(3, -1))
            steps = torch.arange(x.shape[1])
            near = (steps[:, None] - steps).abs() < self.window / 2
            return x + self.out(joined(attend(q, k, v, near)))

    model, example = stack(Local), rows(3, 5, 12)
    structure = unit_groups(model, example)
    for keep in ([0], [0, 1]):
        found = cut(model, example, {"0": keep}).model
        assert (found[0].window, found[0].longest, found[0].h) == (12, 12, len(keep))
        batch = rows(2, 12, 12)
        with masked(model, structure, {"0": sorted({0, 1, 2} - set(keep))}), torch.no_grad():
            torch.testing.assert_close(found(batch), model(batch), rtol=1e-4, atol=1e-5)


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
    assert "0.up" in found.fixed


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
    assert {"before", "b"} <= {*found.fixed, *(one.name for one in found.groups)}


def test_heads_whose_weights_are_also_others_say_so():
    model = stack(Bert)
    model[0].own.query.weight = model[1].own.query.weight
    found = unit_groups(model, rows(3, 5, 12))
    assert not [one for one in found.groups if one.kind == "heads"]
    assert "is tied to" in found.fixed["0.own.query"]


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
    assert {"0.qkv", "0.second", "1.qkv", "1.second"} <= set(found.fixed)


@pytest.mark.parametrize("batch", [lambda x, c: (x, c), lambda x, c: {"x": x, "context": c}],
                         ids=["tuple", "dict"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_cross_attention_in_training_mode_of_any_dtype(batch, dtype):
    """Keys from another input, dropout, frozen weights, a layer that is not called, a tuple."""

    class Cross(nn.Module):
        def __init__(self, heads):
            super().__init__()
            self.heads, self.drop = heads, nn.Dropout(0.5)
            self.q, self.kv = nn.Linear(12, heads * SIZE), nn.Linear(10, 2 * heads * SIZE)
            self.o, self.spare = nn.Linear(heads * SIZE, 12), nn.Linear(12, 12)

        def forward(self, x, context):
            k, v = (split(one, self.heads) for one in self.kv(context).chunk(2, -1))
            return self.drop(self.o(joined(attend(split(self.q(x), self.heads), k, v)))), None

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.cross, self.head = Cross(3), nn.Linear(12, 2)

        def forward(self, x, context):
            return self.head(self.cross(x, context)[0])

    model = Reads().to(dtype).train()
    model.cross.q.requires_grad_(False)
    example = batch(rows(3, 5, 12).to(dtype), rows(3, 7, 10).to(dtype))
    found = cut(model, example, {"cross": [0, 2]})
    assert found.model.cross.heads == 2 and found.model.cross.kv.weight.shape == (16, 10)
    assert found.model.training and not found.model.cross.q.weight.requires_grad
    assert found.model.cross.kv.weight.requires_grad
    assert "cross.spare" in found.fixed


def test_a_module_that_is_called_twice_is_cut_once():
    attention = Gpt2(3)
    model, example = nn.Sequential(attention, attention, nn.Linear(12, 2)), rows(3, 5, 12)
    found = cut(model, example, {"0": [0, 1]}).model
    assert found[0] is found[1]
    assert found[0].c_attn.weight.shape == (12, 24)


def test_one_position_shows_no_heads_and_nothing_is_claimed():
    """Attention over one position depends on the values alone."""
    found = unit_groups(stack(Bert), rows(3, 1, 12))
    assert not [one for one in found.groups if one.kind == "heads"]
    assert "0.own.query" in found.fixed


@pytest.mark.parametrize("kind", (Bert, Llama, Gpt2))
def test_it_is_made_again_from_its_specification_and_exported(kind):
    model, example, name = stack(kind), rows(3, 5, 12), NAMES.get(kind, "0")
    done = cut(model, example, {name: [0, 2]})
    again = rebuild(stack(kind), example, done.specification)
    again.load_state_dict(done.model.state_dict())
    samples = torch.export.Dim("samples", min=1, max=4096)
    program = torch.export.export(again, (example,), dynamic_shapes=({0: samples},), strict=False)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    served, batch = torch.export.load(file).module(), rows(7, 5, 12)
    with torch.no_grad():
        torch.testing.assert_close(served(batch), done.model(batch), rtol=1e-4, atol=1e-5)


def test_it_is_cut_again_from_round_to_round():
    model, example = stack(Llama), rows(3, 5, 12)
    once = cut(model, example, {"0": [0, 2]})
    twice = cut(once.model, example, {"0": [1], "1": [0]})
    assert twice.units["0"] == (2, 1)
    both = rebuild(stack(Llama), example, once.specification.then(twice.specification))
    both.load_state_dict(twice.model.state_dict())


@pytest.mark.parametrize("kind", CLASSES)
def test_importance_of_a_head_is_its_gradient_along_what_it_gives(kind):
    """|mean over the data of the sum of a*g| over the head's columns, taken at what reads them."""
    model, inputs, targets = stack(kind), rows(8, 5, 12), torch.randint(2, (8,))

    def loss(outputs, wanted):
        return nn.functional.cross_entropy(outputs.mean(1), wanted)

    name = NAMES.get(kind, "0")
    structure = unit_groups(model, inputs)
    found = unit_importance(model, structure, (inputs, targets), loss)[name]
    seen = []
    reader = getattr(model[0], READS[kind])
    handle = reader.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    value = loss(model(inputs), targets)
    handle.remove()
    (gradient,) = torch.autograd.grad(value, seen[0])
    products = (seen[0].double() * gradient.double()).detach().flatten(0, -2).sum(0)
    expected = products.reshape(3, -1).sum(1).abs()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)
    assert most_important(found, 3) == [0, 1, 2]


def test_the_masked_original_reads_no_head_that_went():
    model, example = stack(Neox), rows(3, 5, 12)
    structure = unit_groups(model, example)
    with masked(model, structure, {"0": [1]}):
        assert not model[0].dense.weight[:, SIZE: 2 * SIZE].any()
        assert model[0].dense.weight[:, :SIZE].all()
