"""Heads cut out of attention with layers of its own, against the same attention built narrower."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from tests.networks import kept_streams, rows, snapshot
from tests.pruning.attention_cases import (
    READS,
    SIZE,
    Bert,
    Conv1D,
    Gpt2,
    Llama,
    Plain,
    mixed,
    stack,
)
from wua_mlflow.flops import count_flops
from wua_mlflow.pruning.cut import cut, rebuild, unit_groups
from wua_mlflow.pruning.importance import most_important, unit_importance
from wua_mlflow.pruning.unit_groups import UnitGroups, masked


@dataclass(frozen=True)
class Stacked:
    """Two attentions of a kind, and the groups found in them; not to be changed."""

    kind: type
    name: str
    model: nn.Module
    example: torch.Tensor
    structure: UnitGroups


@pytest.fixture(scope="module", params=READS)
def stacked(request):
    with kept_streams():
        model, example = stack(request.param), rows(3, 5, 12)
        name = "0.own" if request.param is Bert else "0"
        return Stacked(request.param, name, model, example, unit_groups(model, example))


def test_a_cut_is_the_narrower_network_with_the_same_weights(stacked):
    """Against the module itself whose other heads are not read, and the parameters by hand."""
    kind, model, example = stacked.kind, stacked.model, stacked.example
    before = snapshot(model)
    result = cut(model, example, {stacked.name: [0, 2]}, stacked.structure)
    assert snapshot(model) == before
    assert result.units[stacked.name] == (3, 2)
    narrow = nn.Sequential(kind(2), kind(3), nn.Linear(12, 2)).eval()
    narrow.load_state_dict(result.model.state_dict())
    silent, size = copy.deepcopy(model), 2 * SIZE if kind is Llama else SIZE
    weight = getattr(silent[0], READS[kind]).weight
    (weight.data if kind is Gpt2 else weight.data.T)[size: 2 * size] = 0
    for batch in (example, rows(2, 6, 12), rows(1, 1, 12)):
        with torch.no_grad():
            expected = silent(batch)
            torch.testing.assert_close(result.model(batch), expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(narrow(batch), expected, rtol=1e-4, atol=1e-5)
    assert numbers_of(result.model[0]) == numbers_of(narrow[0])
    assert result.flops_after == count_flops(narrow, example, backward=False).forward_flops


def numbers_of(module):
    """The numbers of a module and of all in it, as the factory would have set them.

    Not ``embed_dim``, which the forward does not read: nothing says that it falls with the heads.
    """
    return {(name, key): value for name, part in module.named_modules()
            for key, value in vars(part).items() if isinstance(value, int) and key != "embed_dim"}


def test_all_layers_are_in_a_group_or_named(stacked):
    structure, name = stacked.structure, stacked.name
    heads = [group for group in structure.groups if group.kind == "heads"]
    assert [group.name for group in heads] == [name, name.replace("0", "1", 1)]
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

    class Local(Plain):
        def __init__(self, heads):
            super().__init__(heads)
            self.window = self.longest = heads * SIZE

        def forward(self, x):
            assert x.shape[1] <= self.longest
            steps = torch.arange(x.shape[1])
            near = (steps[:, None] - steps).abs() < self.window / 2
            return x + self.out(mixed(*self.qkv(x).chunk(3, -1), self.h, near))

    model, example = nn.Sequential(Local(3), nn.Linear(12, 2)).eval(), rows(3, 5, 12)
    structure = unit_groups(model, example)
    pruned = cut(model, example, {"0": [0]}, structure).model
    assert (pruned[0].window, pruned[0].longest, pruned[0].h) == (12, 12, 1)
    batch = rows(2, 12, 12)
    with masked(model, structure, {"0": [1, 2]}), torch.no_grad():
        torch.testing.assert_close(pruned(batch), model(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("batch", "dtype"), [
    (lambda x, c: (x, c), torch.float64), (lambda x, c: {"x": x, "context": c}, torch.bfloat16),
], ids=["tuple", "dict"])
def test_cross_attention_in_training_mode_of_any_dtype(batch, dtype):
    """Keys from another input, dropout, frozen weights, a layer that is not called, a tuple."""

    class Cross(nn.Module):
        def __init__(self, heads):
            super().__init__()
            self.heads, self.drop = heads, nn.Dropout(0.5)
            self.q, self.kv = nn.Linear(12, heads * SIZE), nn.Linear(10, 2 * heads * SIZE)
            self.o, self.spare = nn.Linear(heads * SIZE, 12), nn.Linear(12, 12)

        def forward(self, x, context):
            keys, values = self.kv(context).chunk(2, -1)
            return self.drop(self.o(mixed(self.q(x), keys, values, self.heads))), None

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.cross, self.head = Cross(3), nn.Linear(12, 2)

        def forward(self, x, context):
            return self.head(self.cross(x, context)[0])

    model = Reads().to(dtype).train()
    model.cross.q.requires_grad_(False)
    example = batch(rows(3, 5, 12).to(dtype), rows(3, 7, 10).to(dtype))
    result = cut(model, example, {"cross": [0, 2]})
    cross = result.model.cross
    assert cross.heads == 2 and cross.kv.weight.shape == (16, 10)
    assert result.model.training and not cross.q.weight.requires_grad
    assert cross.kv.weight.requires_grad
    assert "cross.spare" in result.fixed


def test_a_module_that_is_called_twice_is_cut_once_made_again_and_exported():
    attention = Gpt2(3)
    model, example = nn.Sequential(attention, attention, nn.Linear(12, 2)).eval(), rows(3, 5, 12)
    result = cut(model, example, {"0": [0, 2]})
    assert result.model[0] is result.model[1]
    assert result.model[0].c_attn.weight.shape == (12, 24)
    again = rebuild(model, example, result.specification)
    again.load_state_dict(result.model.state_dict())
    samples = torch.export.Dim("samples", min=1, max=4096)
    program = torch.export.export(again, (example,), dynamic_shapes=({0: samples},), strict=False)
    batch = rows(7, 5, 12)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(batch), result.model(batch),
                                   rtol=1e-4, atol=1e-5)


def test_it_is_cut_again_from_round_to_round():
    """In two modules of one class with different numbers of heads."""
    model, example = nn.Sequential(Llama(3), Llama(2), nn.Linear(12, 2)).eval(), rows(3, 5, 12)
    once = cut(model, example, {"0": [0, 2]})
    twice = cut(once.model, example, {"0": [1], "1": [0]})
    assert (once.units["0"], twice.units) == ((3, 2), {"0": (2, 1), "1": (2, 1)})
    assert twice.model[0].q_proj.out_features == twice.model[1].q_proj.out_features == 2 * SIZE
