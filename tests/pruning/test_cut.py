"""A cut network: shapes, parameters, FLOPs, outputs, ties, and the original, by other means."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.networks import kept_streams, snapshot
from tests.pruning.cutting_cases import CASES, Tokens, Twice, mlp, silent
from wua_mlflow.flops import count_flops
from wua_mlflow.pruning import cut as module
from wua_mlflow.pruning.cut import cut, unit_groups
from wua_mlflow.pruning.verify import WrongCutError, check_cut


@pytest.fixture(autouse=True)
def _seeded():
    with kept_streams():
        torch.manual_seed(0)
        yield


@pytest.fixture(params=CASES, ids=list(CASES))
def case(request):
    return CASES[request.param]


def shapes(model):
    return {name: tuple(one.shape) for name, one in model.state_dict().items()}


def test_shapes_parameters_and_flops_are_those_of_a_network_built_narrow(case):
    model, narrow, example = case.whole(), case.narrow(), case.example(4)
    found = cut(model, example, case.keep)
    assert shapes(found.model) == shapes(narrow)
    assert found.params_before == sum(one.numel() for one in model.parameters())
    assert found.params_after == sum(one.numel() for one in narrow.parameters())
    assert found.flops_before == count_flops(model, example, backward=False).forward_flops
    assert found.flops_after == count_flops(narrow, example, backward=False).forward_flops
    assert found.flops_after < found.flops_before
    assert found.units == {group: (case.widths[case.renamed[group]], len(units))
                           for group, units in case.keep.items()}


@pytest.mark.parametrize("batch", [1, 3, 17])
def test_outputs_are_those_of_the_original_with_the_units_silenced(case, batch):
    model = case.whole()
    found, inputs = cut(model, case.example(4), case.keep).model, case.example(batch)
    with torch.no_grad(), silent(model, case.readers, case.removed()):
        expected = model(inputs)
    with torch.no_grad():
        assert not torch.allclose(model(inputs), expected, atol=1e-3), "the units matter"
        torch.testing.assert_close(found(inputs), expected, rtol=1e-4, atol=1e-5)


def test_the_original_is_left_bit_for_bit(case):
    model = case.whole().train()
    next(model.parameters()).requires_grad_(False)
    before, state = snapshot(model), torch.get_rng_state()
    found = cut(model, case.example(4), case.keep).model
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert found.training and all(one.training for one in found.modules())
    assert not next(found.parameters()).requires_grad
    assert all(one.grad is None for one in found.parameters())
    assert not {id(one) for one in found.parameters()} & {id(one) for one in model.parameters()}


def test_the_units_that_stay_keep_their_weights():
    model = CASES["mlp"].whole()
    found = cut(model, torch.zeros(2, 4), {"0": [5, 0, 2]}).model
    assert torch.equal(found[0].weight, model[0].weight[[0, 2, 5]])
    assert torch.equal(found[0].bias, model[0].bias[[0, 2, 5]])
    assert torch.equal(found[2].weight, model[2].weight[:, [0, 2, 5]])
    assert torch.equal(found[4].weight, model[4].weight)


def test_a_cut_network_can_be_trained_and_cut_again(case):
    found = cut(case.whole(), case.example(4), case.keep).model.train()
    loss = found(case.example(6)).square().mean()
    loss.backward()
    assert all(one.grad is not None and one.grad.shape == one.shape
               for one in found.parameters())
    group = next((name for name, units in case.keep.items() if len(units) > 1), None)
    if group is None:
        assert set(unit_groups(found, case.example(4)).not_prunable.values()) >= {"it has one unit"}
        return
    again = cut(found, case.example(4), {group: [0]})
    assert again.units[group] == (len(case.keep[group]), 1)


def test_what_is_tied_stays_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.inner = nn.Embedding(11, 6), nn.Linear(6, 8)
            self.back, self.out = nn.Linear(8, 6), nn.Linear(6, 11, bias=False)
            self.out.weight = self.embed.weight
            self.again = self.inner

        def forward(self, tokens):
            return self.out(self.back(self.again(self.embed(tokens)).relu()))

    model, tokens = Tied(), torch.randint(11, (4, 3))
    found = cut(model, tokens, {"inner": [1, 5]}).model
    assert found.out.weight is found.embed.weight
    assert found.again is found.inner and found.inner.out_features == 2
    assert found.embed.weight.shape == (11, 6)


def test_a_shared_layer_is_cut_once():
    found = cut(Twice(6).eval(), torch.zeros(2, 4), {"first": [0, 3, 5]}).model
    assert found.again.weight.shape == (3, 3)


WRONG = [
    ({"0": []}, "keep: expected at least one unit of 0, but got none: the layer would be empty"),
    ({"0": [0, 7]}, "units: expected numbers below 7 for 0, but got 7"),
    ({"0": [-1]}, "units: expected numbers below 7 for 0, but got -1"),
    ({"3": [0]}, "group: expected one of 0, 2, but got '3'"),
    ({"4": [0]}, "group: expected one of 0, 2, but got '4' (its units are the network's outputs)"),
    ({"0": range(7), "2": range(5)}, "keep: expected fewer units than there are in at least one "
                                     "group, but nothing would be cut"),
    ({}, "keep: expected fewer units than there are in at least one group, but nothing would be "
         "cut"),
]


@pytest.mark.parametrize(("keep", "message"), WRONG, ids=[str(keep) for keep, _ in WRONG])
def test_what_is_refused_in_one_line(keep, message):
    model = mlp(7, 5)
    before = snapshot(model)
    with pytest.raises(ValueError) as raised:
        cut(model, torch.zeros(2, 4), keep)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
    assert snapshot(model) == before


def test_a_unit_that_is_named_twice_counts_once():
    assert cut(mlp(7, 5), torch.zeros(2, 4), {"0": [1, 1, 3]}).units["0"] == (7, 2)


@pytest.mark.parametrize("spoil", [
    lambda made: made[2].weight.data.mul_(1.01),
    lambda made: setattr(made, "2", nn.Linear(made[2].in_features, 4)),
    lambda made: made[0].register_buffer("extra", None) or made[0].bias.data.add_(0.1),
])
def test_a_cut_that_is_not_what_was_planned_is_refused(monkeypatch, spoil):
    """Whatever the pruning library did: weights changed, a layer of another shape, a bias moved."""
    model, example = mlp(7, 5), torch.randn(4, 4)
    structure, removed = unit_groups(model, example), {"0": [0, 1, 2]}
    made = module.remove_units(model, example, structure, removed)
    check_cut(model, copy.deepcopy(made), structure, removed, example)
    spoil(made)
    with pytest.raises(WrongCutError):
        check_cut(model, made, structure, removed, example)


def test_a_library_that_cuts_wrongly_is_noticed_in_advance(monkeypatch):
    """A group whose trial cut fails is not offered, and says why."""
    real = module.remove_units

    def wrong(model, example, structure, removed):
        made = real(model, example, structure, removed)
        if "2" in removed:
            made[2].bias.data.add_(1.0)
        return made

    monkeypatch.setattr(module, "remove_units", wrong)
    found = unit_groups(mlp(7, 5), torch.randn(4, 4))
    assert [group.name for group in found.groups] == ["0"]
    assert found.not_prunable["2"] == \
        "cut on trial, its outputs are not those of the original without the units"


def test_dtypes_are_kept():
    model = mlp(7, 5).double()
    found = cut(model, torch.zeros(2, 4, dtype=torch.float64), {"0": [1, 2]}).model
    assert {one.dtype for one in found.parameters()} == {torch.float64}


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_tokens_stay_in_their_table(dtype):
    """The noise that a cut is checked on are the example's own numbers: no embedding lacks them."""
    example = torch.randint(9, (5, 4)).to(dtype)
    found = cut(Tokens(), example, {"up": [0, 2, 5]})
    assert found.units["up"] == (8, 3)
    assert found.model.head.weight is found.model.emb.weight


class Heads(nn.Module):
    """Attention written out: its units are divided among heads by fixed numbers."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        q, k, v = (layer(x).view(x.shape[0], -1, 2, 4).transpose(1, 2)
                   for layer in (self.q, self.k, self.v))
        mixed = torch.softmax(q @ k.transpose(2, 3), -1) @ v
        return self.o(mixed.transpose(1, 2).reshape(x.shape[0], -1, 8))


def test_every_layer_that_cannot_be_cut_is_named():
    structure = unit_groups(Heads(), torch.rand(3, 5, 8))
    assert structure.groups == ()
    assert set(structure.not_prunable) == {"q", "k", "v", "o"}
    assert structure.not_prunable["k"] == structure.not_prunable["q"]
    assert "the forward divides its units by a fixed number" in structure.not_prunable["q"]
