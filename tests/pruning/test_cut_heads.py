"""Heads cut out of attention with layers of its own, against the same attention built narrower."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from tests.networks import kept_streams, rows, snapshot
from tests.pruning.attention_cases import (
    CLASSES,
    NAMES,
    READS,
    SIZE,
    UNIT,
    Conv1D,
    Gpt2,
    Llama,
    Plain,
    attend,
    joined,
    split,
    stack,
)
from wua_mlflow.flops import count_flops
from wua_mlflow.pruning.cut import cut, rebuild, unit_groups
from wua_mlflow.pruning.importance import most_important, unit_importance
from wua_mlflow.pruning.unit_groups import UnitGroups, masked


@pytest.fixture(autouse=True)
def _seeded():
    with kept_streams():
        torch.manual_seed(0)
        yield


@dataclass(frozen=True)
class Stacked:
    """Two attentions of a kind, and the groups found in them; not to be changed."""

    kind: type
    name: str
    model: nn.Module
    example: torch.Tensor
    structure: UnitGroups


@pytest.fixture(scope="module", params=CLASSES)
def stacked(request):
    with kept_streams():
        model, example = stack(request.param), rows(3, 5, 12)
        return Stacked(request.param, NAMES.get(request.param, "0"), model, example,
                       unit_groups(model, example))


@pytest.mark.parametrize("keep", [[1], [0, 2]], ids=str)
def test_a_cut_is_the_narrower_network_with_the_same_weights(stacked, keep):
    """Against the module itself whose other heads are not read, and the parameters by hand."""
    kind, model, example = stacked.kind, stacked.model, stacked.example
    before = snapshot(model)
    found = cut(model, example, {stacked.name: keep}, stacked.structure)
    assert snapshot(model) == before
    assert found.units[stacked.name] == (3, len(keep))
    narrow = nn.Sequential(kind(len(keep)), kind(3), nn.Linear(12, 2)).eval()
    assert {key: tensor.shape for key, tensor in found.model.state_dict().items()} == \
        {key: tensor.shape for key, tensor in narrow.state_dict().items()}
    silent = copy.deepcopy(model)
    weight = getattr(silent[0], READS[kind]).weight
    columns = weight.data if kind is Gpt2 else weight.data.T
    size = UNIT.get(kind, SIZE)
    for head in set(range(3)) - set(keep):
        columns[head * size: (head + 1) * size] = 0
    narrow.load_state_dict(found.model.state_dict())
    for batch in (example, rows(2, 6, 12), rows(1, 1, 12)):
        with torch.no_grad():
            expected = silent(batch)
            torch.testing.assert_close(found.model(batch), expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(narrow(batch), expected, rtol=1e-4, atol=1e-5)
    assert vars_of(found.model[0]) == vars_of(narrow[0])
    assert found.flops_after == count_flops(narrow, example, backward=False).forward_flops


def test_all_layers_are_in_a_group_or_named(stacked):
    found, name = stacked.structure, stacked.name
    heads = [group for group in found.groups if group.kind == "heads"]
    assert [group.name for group in heads] == [name, name.replace("0", "1", 1)]
    named = {layer for group in found.groups for layer in group.layers} | set(found.not_prunable)
    assert named == {name for name, module in stacked.model.named_modules()
                     if isinstance(module, (nn.Linear, nn.Embedding, Conv1D))}
    assert not {layer for group in heads for layer in group.layers} & set(found.not_prunable)


def vars_of(module):
    """The numbers of a module and of all in it, as the factory would have set them.

    Not ``embed_dim``, which the forward does not read: nothing says that it falls with the heads.
    """
    return {(name, key): value for name, one in module.named_modules()
            for key, value in vars(one).items() if isinstance(value, int) and key != "embed_dim"}


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
        found = cut(model, example, {"0": keep}, structure).model
        assert (found[0].window, found[0].longest, found[0].h) == (12, 12, len(keep))
        batch = rows(2, 12, 12)
        with masked(model, structure, {"0": sorted({0, 1, 2} - set(keep))}), torch.no_grad():
            torch.testing.assert_close(found(batch), model(batch), rtol=1e-4, atol=1e-5)


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


def test_it_is_made_again_from_its_specification_and_exported():
    model, example = stack(Gpt2), rows(3, 5, 12)
    done = cut(model, example, {"0": [0, 2]})
    again = rebuild(stack(Gpt2), example, done.specification)
    again.load_state_dict(done.model.state_dict())
    samples = torch.export.Dim("samples", min=1, max=4096)
    program = torch.export.export(again, (example,), dynamic_shapes=({0: samples},), strict=False)
    batch = rows(7, 5, 12)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(batch), done.model(batch), rtol=1e-4, atol=1e-5)


def test_it_is_cut_again_from_round_to_round():
    """In two modules of one class with different numbers of heads."""
    model, example = nn.Sequential(Llama(3), Llama(2), nn.Linear(12, 2)).eval(), rows(3, 5, 12)
    once = cut(model, example, {"0": [0, 2]})
    twice = cut(once.model, example, {"0": [1], "1": [0]})
    assert (once.units["0"], twice.units) == ((3, 2), {"0": (2, 1), "1": (2, 1)})
    assert twice.model[0].q_proj.out_features == twice.model[1].q_proj.out_features == 2 * SIZE


def test_importance_of_a_head_is_its_gradient_along_what_it_gives(stacked):
    """|mean over the data of the sum of a*g| over the head's columns, taken at what reads them."""
    model, inputs, targets = stacked.model, rows(8, 5, 12), torch.randint(2, (8,))

    def loss(outputs, wanted):
        return nn.functional.cross_entropy(outputs.mean(1), wanted)

    found = unit_importance(model, stacked.structure, (inputs, targets), loss)[stacked.name]
    outputs = []
    reader = getattr(model[0], READS[stacked.kind])
    handle = reader.register_forward_pre_hook(lambda _, args: outputs.append(args[0]))
    value = loss(model(inputs), targets)
    handle.remove()
    (gradient,) = torch.autograd.grad(value, outputs[0])
    products = (outputs[0].double() * gradient.double()).detach().flatten(0, -2).sum(0)
    expected = products.reshape(3, -1).sum(1).abs()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)
    assert most_important(found, 3) == [0, 1, 2]
