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
from wua_mlflow.pruning.cut import Specification, cut, rebuild, unit_groups
from wua_mlflow.pruning.verify import WrongCutError, check_cut


@pytest.fixture(autouse=True)
def _seeded():
    with kept_streams():
        torch.manual_seed(0)
        yield


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_shapes_parameters_and_flops_are_those_of_a_network_built_narrow(pruned):
    case, model, result = pruned.case, pruned.model, pruned.result
    narrow, example = case.narrow(), case.example(4)
    assert shapes(result.model) == shapes(narrow)
    assert result.params_before == sum(weight.numel() for weight in model.parameters())
    assert result.params_after == sum(weight.numel() for weight in narrow.parameters())
    assert result.flops_before == count_flops(model, example, backward=False).forward_flops
    assert result.flops_after == count_flops(narrow, example, backward=False).forward_flops
    assert result.flops_after < result.flops_before
    assert result.units == {group: (case.widths[case.renamed[group]], len(units))
                            for group, units in case.keep.items()}


def test_outputs_are_those_of_the_original_with_the_units_silenced(pruned):
    case, model = pruned.case, pruned.model
    for batch in (1, 3, 17):
        inputs = case.example(batch)
        with torch.no_grad(), silent(model, case.readers, case.removed()):
            expected = model(inputs)
        with torch.no_grad():
            assert not torch.allclose(model(inputs), expected, atol=1e-3), "the units matter"
            torch.testing.assert_close(pruned.result.model(inputs), expected, rtol=1e-4, atol=1e-5)


def test_a_fresh_network_from_the_specification_takes_the_weights(pruned):
    case, result = pruned.case, pruned.result
    specification = Specification.from_json(result.specification.to_json())
    fresh, inputs = rebuild(case.whole(seed=9), case.example(4), specification), case.example(7)
    with torch.no_grad():
        expected = result.model(inputs)
        assert not torch.allclose(fresh(inputs), expected)
        fresh.load_state_dict(result.model.state_dict(), strict=True)
        assert torch.equal(fresh(inputs), expected)


@pytest.mark.parametrize("name", ["residual", "Conv1D"])
def test_the_original_is_left_bit_for_bit(name):
    case = CASES[name]
    model = case.whole().train()
    next(model.parameters()).requires_grad_(False)
    before, state = snapshot(model), torch.get_rng_state()
    found = cut(model, case.example(4), case.keep).model
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert found.training and all(module.training for module in found.modules())
    assert not next(found.parameters()).requires_grad
    assert all(weight.grad is None for weight in found.parameters())
    assert not {id(weight) for weight in found.parameters()} & {
        id(weight) for weight in model.parameters()}


def test_the_units_that_stay_keep_their_weights():
    model = CASES["mlp"].whole()
    found = cut(model, torch.zeros(2, 4), {"0": [5, 0, 2]}).model
    assert torch.equal(found[0].weight, model[0].weight[[0, 2, 5]])
    assert torch.equal(found[0].bias, model[0].bias[[0, 2, 5]])
    assert torch.equal(found[2].weight, model[2].weight[:, [0, 2, 5]])
    assert torch.equal(found[4].weight, model[4].weight)


def test_a_cut_network_can_be_trained(pruned):
    found = copy.deepcopy(pruned.result.model).train()
    found(pruned.case.example(6)).square().mean().backward()
    assert all(weight.grad is not None and weight.grad.shape == weight.shape
               for weight in found.parameters())


def test_a_cut_network_can_be_cut_again_down_to_one_unit():
    case = CASES["residual"]
    found = cut(case.whole(), case.example(4), case.keep).model
    again = cut(found, case.example(4), {"stem": [0]})
    assert again.units["stem"] == (3, 1)
    assert unit_groups(again.model, case.example(4)).not_prunable["stem"] == "it has one unit"


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


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda made: setattr(made.head, "weight", nn.Parameter(made.emb.weight.detach().clone())),
     "weights that were tied are not any more"),
    (lambda made: made.register_forward_hook(lambda *call: call[2][:, :2]),
     "it gives outputs of the shape (4, 2) instead of (4, 9)"),
    (lambda made: made.register_forward_hook(lambda *call: 1 / 0),
     "its forward fails: ZeroDivisionError: division by zero"),
])
def test_a_wrong_cut_ends_with_what_is_wrong(monkeypatch, spoil, message):
    model, example = Tokens(), torch.randint(9, (4, 4))
    structure, real = unit_groups(model, example), module.remove_units

    def wrong(*arguments):
        made = real(*arguments)
        spoil(made)
        return made

    monkeypatch.setattr(module, "remove_units", wrong)
    with pytest.raises(ValueError) as raised:
        cut(model, example, {"up": [0, 3]}, structure)
    assert str(raised.value) == f"model: cut as asked it is not what was planned: {message}"


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
