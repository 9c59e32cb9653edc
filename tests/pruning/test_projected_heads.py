"""Heads of attention with layers of its own: which layers make them, and heads that are cut.

Each class of attention is one of transformers' ways to write it, in small; a cut one is compared
with the same attention built narrower.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as attend

from tests.example_modules import Conv1D
from tests.networks import Layers, kept_streams, rows, snapshot
from wua_mlflow.flops import count_flops
from wua_mlflow.pruning.cut import cut, rebuild, unit_groups
from wua_mlflow.pruning.importance import most_important, unit_importance
from wua_mlflow.pruning.unit_groups import masked

EXAMPLE = rows(3, 5, 12)
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


def linears(count, inputs, outputs, *, bias=True):
    return (nn.Linear(inputs, outputs, bias=bias) for _ in range(count))


def bert(heads):
    """the heads are read by a layer of a sibling; a head count and two sizes."""

    def attention(net, x):
        outputs = mixed(net.query(x), net.key(x), net.value(x), net.num_attention_heads)
        return outputs.reshape(*x.shape[:2], net.all_head_size)

    query, key, value = linears(3, 12, heads * SIZE)
    own = Layers(attention, num_attention_heads=heads, attention_head_size=SIZE,
                 all_head_size=heads * SIZE, query=query, key=key, value=value)
    return Layers(lambda net, x: net.norm(x + net.dense(net.own(x))), own=own,
                  dense=nn.Linear(heads * SIZE, 12), norm=nn.LayerNorm(12))


def llama(units, shared=2):
    """Llama: no head count but a head's size; several heads share their keys and values."""

    def attention(net, x):
        q, k, v = (layer(x).view(*x.shape[:-1], -1, net.head_dim).transpose(1, 2)
                   for layer in (net.q_proj, net.k_proj, net.v_proj))
        k, v = (heads.repeat_interleave(net.num_key_value_groups, 1) for heads in (k, v))
        return x + net.o_proj(joined(attend(net.q_norm(q), k, v, is_causal=True)))

    keys, values = linears(2, 12, units * SIZE, bias=False)
    return Layers(attention, head_dim=SIZE, num_key_value_groups=shared, layer_idx=3,
                  q_proj=nn.Linear(12, units * shared * SIZE, bias=False), k_proj=keys,
                  v_proj=values, o_proj=nn.Linear(units * shared * SIZE, 12, bias=False),
                  q_norm=nn.RMSNorm(SIZE))


def gpt2(heads):
    """GPT-2: one Conv1D makes queries, keys and values, one after the other."""

    def attention(net, x):
        q, k, v = net.c_attn(x).split(net.split_size, 2)
        return x + net.c_proj(mixed(q, k, v, net.num_heads, is_causal=True))

    return Layers(attention, num_heads=heads, split_size=heads * SIZE, embed_dim=heads * SIZE,
                  c_attn=Conv1D(12, 3 * heads * SIZE), c_proj=Conv1D(heads * SIZE, 12))


def neox(heads):
    """GPT-NeoX: one Linear makes them head by head."""

    def attention(net, x):
        projected = net.query_key_value(x).view(*x.shape[:-1], -1, 3 * net.head_size)
        q, k, v = projected.transpose(1, 2).chunk(3, -1)
        return x + net.dense(joined(attend(q, k, v)))

    return Layers(attention, head_size=SIZE, query_key_value=nn.Linear(12, 3 * heads * SIZE),
                  dense=nn.Linear(heads * SIZE, 12))


def by_hand(net, x):
    q, k, v = (split(projected, net.h) for projected in net.qkv(x).chunk(3, -1))
    return x + net.out(joined((q @ k.transpose(-1, -2) / 2).softmax(-1) @ v))


def plain(heads, attention=by_hand, **parts):
    """By hand: a head count whose name does not say so."""
    return Layers(attention, h=heads, depth=7, qkv=nn.Linear(12, 3 * heads * SIZE),
                  out=nn.Linear(heads * SIZE, 12), **parts)


def t5(heads):
    """T5's first layer: an embedding gives each head its bias."""

    def attention(net, x):
        steps = torch.arange(x.shape[1], device=x.device)
        bias = net.bias((steps[:, None] - steps).abs().clamp(max=7)).permute(2, 0, 1)
        return x + net.o(mixed(net.q(x), net.k(x), net.v(x), net.n_heads, bias[None]))

    q, k, v = linears(3, 12, heads * SIZE, bias=False)
    return Layers(attention, n_heads=heads, key_value_proj_dim=SIZE, buckets=8, q=q, k=k, v=v,
                  o=nn.Linear(heads * SIZE, 12, bias=False), bias=nn.Embedding(8, heads))


def block(heads):
    """nanoGPT's short forms: attention and feed-forward in one module."""

    def attention(net, x):
        x = net.norm(x + net.o(mixed(net.q(x), net.k(x), net.v(x), net.n_head)))
        return x + net.down(net.up(x).relu())

    q, k, v = linears(3, 12, heads * SIZE)
    return Layers(attention, n_head=heads, q=q, k=k, v=v, o=nn.Linear(heads * SIZE, 12),
                  norm=nn.LayerNorm(12), up=nn.Linear(12, 16), down=nn.Linear(16, 12))


READS = {bert: "dense", llama: "o_proj", gpt2: "c_proj", neox: "dense", plain: "out", t5: "o",
         block: "o"}


def stack(*modules):
    return nn.Sequential(*modules, nn.Linear(12, 2)).eval()


@pytest.fixture(scope="module", params=READS)
def stacked(request):
    """Attention of a kind, and the groups found in it; not to be changed."""
    with kept_streams():
        model, name = stack(request.param(3)), "0.own" if request.param is bert else "0"
        return SimpleNamespace(kind=request.param, name=name, model=model,
                               structure=unit_groups(model, EXAMPLE))


def test_a_cut_is_the_narrower_network_with_the_same_weights(stacked):
    """Against the module itself whose other heads are not read, and the parameters by hand."""
    kind, model, before = stacked.kind, stacked.model, snapshot(stacked.model)
    result = cut(model, EXAMPLE, {stacked.name: [0, 2]}, stacked.structure)
    assert snapshot(model) == before
    assert result.units[stacked.name] == (3, 2)
    narrow = stack(kind(2))
    narrow.load_state_dict(result.model.state_dict())
    silent, size = copy.deepcopy(model), 2 * SIZE if kind is llama else SIZE
    weight = getattr(silent[0], READS[kind]).weight
    (weight.data if kind is gpt2 else weight.data.T)[size: 2 * size] = 0
    for batch in (EXAMPLE, rows(2, 6, 12), rows(1, 1, 12)):
        with torch.no_grad():
            expected = silent(batch)
            torch.testing.assert_close(result.model(batch), expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(narrow(batch), expected, rtol=1e-4, atol=1e-5)
    assert numbers_of(result.model[0]) == numbers_of(narrow[0])
    assert result.flops_after == count_flops(narrow, EXAMPLE, backward=False).forward_flops


def numbers_of(module):
    """The numbers of a module and of all in it, as the factory would have set them.

    Not ``embed_dim``, which the forward does not read: nothing says that it falls with the heads.
    """
    return {(name, key): value for name, part in module.named_modules()
            for key, value in vars(part).items() if isinstance(value, int) and key != "embed_dim"}


def test_all_layers_are_in_a_group_or_named(stacked):
    structure = stacked.structure
    heads = [group for group in structure.groups if group.kind == "heads"]
    assert [group.name for group in heads] == [stacked.name]
    named = {layer for group in structure.groups for layer in group.layers}
    assert named | set(structure.not_prunable) == {
        name for name, module in stacked.model.named_modules()
        if isinstance(module, (nn.Linear, nn.Embedding, Conv1D))}
    assert not {layer for group in heads for layer in group.layers} & set(structure.not_prunable)


def test_importance_of_a_head_is_its_gradient_along_what_it_gives(stacked):
    """|mean over the data of the sum of a*g| over the head's columns, taken at what reads them."""
    model, inputs, targets = stacked.model, rows(8, 5, 12), torch.randint(2, (8,))

    def loss(outputs, classes):
        return nn.functional.cross_entropy(outputs.mean(1), classes)

    importance = unit_importance(model, stacked.structure, (inputs, targets), loss)[stacked.name]
    outputs = []
    reader = getattr(model[0], READS[stacked.kind])
    handle = reader.register_forward_pre_hook(lambda _, args: outputs.append(args[0]))
    value = loss(model(inputs), targets)
    handle.remove()
    (gradient,) = torch.autograd.grad(value, outputs[0])
    products = (outputs[0].double() * gradient.double()).detach().flatten(0, -2).sum(0)
    expected = products.reshape(3, -1).sum(1).abs()
    torch.testing.assert_close(importance, expected, rtol=1e-4, atol=1e-9)
    assert most_important(importance, 3) == [0, 1, 2]


def test_numbers_that_only_look_alike_stay():
    """A window as wide as the heads together, a longest length: masks at any length stay right."""

    def local(net, x):
        assert x.shape[1] <= net.longest
        steps = torch.arange(x.shape[1])
        near = (steps[:, None] - steps).abs() < net.window / 2
        return x + net.out(mixed(*net.qkv(x).chunk(3, -1), net.h, near))

    model = stack(plain(3, local, window=3 * SIZE, longest=3 * SIZE))
    structure = unit_groups(model, EXAMPLE)
    pruned = cut(model, EXAMPLE, {"0": [0]}, structure).model
    assert (pruned[0].window, pruned[0].longest, pruned[0].h) == (12, 12, 1)
    batch = rows(2, 12, 12)
    with masked(model, structure, {"0": [1, 2]}), torch.no_grad():
        torch.testing.assert_close(pruned(batch), model(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("batch", "dtype"), [
    (lambda x, c: (x, c), torch.float64), (lambda x, c: {"x": x, "context": c}, torch.bfloat16),
], ids=["tuple", "dict"])
def test_cross_attention_in_training_mode_of_any_dtype(batch, dtype):
    """Keys from another input, dropout, frozen weights, a layer that is not called, a tuple."""

    def cross(net, x, context):
        keys, values = net.kv(context).chunk(2, -1)
        return net.drop(net.o(mixed(net.q(x), keys, values, net.heads))), None

    part = Layers(cross, heads=3, drop=nn.Dropout(0.5), q=nn.Linear(12, 3 * SIZE),
                  kv=nn.Linear(10, 6 * SIZE), o=nn.Linear(3 * SIZE, 12), spare=nn.Linear(12, 12))
    part.q.requires_grad_(False)
    model = Layers(lambda net, x, context: net.head(net.cross(x, context)[0]), cross=part,
                   head=nn.Linear(12, 2)).to(dtype).train()
    example = batch(EXAMPLE.to(dtype), rows(3, 7, 10).to(dtype))
    result = cut(model, example, {"cross": [0, 2]})
    cross = result.model.cross
    assert cross.heads == 2 and cross.kv.weight.shape == (16, 10)
    assert result.model.training and "cross.spare" in result.fixed
    assert not cross.q.weight.requires_grad and cross.kv.weight.requires_grad


def test_a_module_that_is_called_twice_is_cut_once_made_again_and_exported():
    attention = gpt2(3)
    model = stack(attention, attention)
    result = cut(model, EXAMPLE, {"0": [0, 2]})
    assert result.model[0] is result.model[1]
    assert result.model[0].c_attn.weight.shape == (12, 24)
    again = rebuild(model, EXAMPLE, result.specification)
    again.load_state_dict(result.model.state_dict())
    samples = torch.export.Dim("samples", min=1, max=4096)
    program = torch.export.export(again, (EXAMPLE,), dynamic_shapes=({0: samples},), strict=False)
    batch = rows(7, 5, 12)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(batch), result.model(batch),
                                   rtol=1e-4, atol=1e-5)


def test_it_is_cut_again_from_round_to_round():
    """In two modules of one class with different numbers of heads."""
    once = cut(stack(llama(3), llama(2)), EXAMPLE, {"0": [0, 2]})
    twice = cut(once.model, EXAMPLE, {"0": [1], "1": [0]})
    assert (once.units["0"], twice.units) == ((3, 2), {"0": (2, 1), "1": (2, 1)})
    assert twice.model[0].q_proj.out_features == twice.model[1].q_proj.out_features == 2 * SIZE


def without_heads(model, example=EXAMPLE):
    """The layers that are not cut, with the reason, of a model that has no groups of heads."""
    structure = unit_groups(model, example)
    assert not [group for group in structure.groups if group.kind == "heads"]
    return structure.not_prunable


def test_shared_keys_make_one_unit_of_the_heads_that_share_them():
    structure = unit_groups(stack(llama(2, shared=3)), EXAMPLE)
    (heads,) = [group for group in structure.groups if group.kind == "heads"]
    assert heads.units == 2
    assert heads.readers[0].columns == (tuple(range(12)), tuple(range(12, 24)))
    assert {maker.parameter: len(maker.columns[0]) for maker in heads.makers} == {
        "0.q_proj.weight": 12, "0.k_proj.weight": 4, "0.v_proj.weight": 4}


def test_one_head_that_all_share_stays_whole():
    """Multi-query attention: each query head is a unit, the keys are no one's."""

    def shared(net, x):
        k, v = (head[:, None] for head in net.kv(x).chunk(2, -1))
        return net.o(joined(attend(split(net.q(x), net.num_heads), k, v)))

    model = stack(Layers(shared, num_heads=3, q=nn.Linear(12, 3 * SIZE),
                         kv=nn.Linear(12, 2 * SIZE), o=nn.Linear(3 * SIZE, 12)))
    result = cut(model, EXAMPLE, {"0": [0, 2]})
    assert result.model[0].q.weight.shape == (8, 12)
    assert result.model[0].kv.weight.shape == (8, 12)
    assert result.fixed["0.kv"] == "all heads of 0 read them"


def test_a_feed_forward_part_is_not_taken_for_heads():
    """A number that divides the width is not enough.

    The columns must depend on several rows, and not of their own position alone.
    """
    feed = Layers(lambda net, x: x + net.second(net.first(x).relu()), num_heads=4,
                  first=nn.Linear(12, 16), second=nn.Linear(16, 12))
    gated = Layers(lambda net, x: x + net.down(nn.functional.glu(net.up(x))), width=12, inner=24,
                   up=nn.Linear(12, 48), down=nn.Linear(24, 12))
    structure = unit_groups(stack(feed, gated), EXAMPLE)
    assert {group.name: (group.kind, group.units) for group in structure.groups} == {
        "0.first": ("units", 16), "1.up": ("units", 24)}


@pytest.mark.parametrize("how", ["no_grad", "in place"])
def test_what_autograd_cannot_go_through_ends_nothing(how):
    def odd(net, x):
        with torch.set_grad_enabled(how != "no_grad" and torch.is_grad_enabled()):
            x = net.before(x)
        hidden = net.a(x).sigmoid()
        return net.b(hidden.mul_(2) if how == "in place" else hidden)

    structure = unit_groups(Layers(odd, width=4, before=nn.Linear(12, 12), a=nn.Linear(12, 16),
                                   b=nn.Linear(16, 2)), EXAMPLE)
    names = {group.name for group in structure.groups}
    assert "a" in names and {"before", "b"} <= names | set(structure.not_prunable)


def test_heads_whose_weights_are_others_too_go_together():
    model = stack(bert(3), bert(3))
    model[0].own.query.weight = model[1].own.query.weight
    group, = (group for group in unit_groups(model, EXAMPLE).groups if group.kind == "heads")
    assert (group.name, group.units) == ("0.own", 3)
    assert {"0.own.query", "1.own.query", "1.own.value"} <= set(group.layers)
    pruned = cut(model, EXAMPLE, {"0.own": [0, 2]}).model
    assert pruned[0].own.query.weight is pruned[1].own.query.weight
    assert pruned[1].own.key.weight.shape == (8, 12)


def test_heads_that_are_refused():
    """A bias a head that nothing shortens (ALiBi)."""
    reasons = without_heads(stack(plain(3, lambda net, x: x + net.out(mixed(
        *net.qkv(x).chunk(3, -1), net.h, net.slopes)), slopes=torch.rand(3, 1, 1))))
    assert reasons["0.qkv"].startswith("cut on trial, its ")


def test_two_attentions_that_share_their_numbers_and_one_position_show_no_heads():
    """One head count for both: cut alone, each would change it for the other.

    Attention over one position depends on the values alone.
    """

    def twice(net, x):
        return x + net.last(mixed(*net.second(by_hand(net, x)).chunk(3, -1), net.h))

    model = stack(plain(3, twice, second=nn.Linear(12, 9 * SIZE), last=nn.Linear(3 * SIZE, 12)))
    assert {"0.qkv", "0.second"} <= set(without_heads(model))
