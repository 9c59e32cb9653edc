"""A cut network: shapes, parameters, FLOPs, outputs, ties, and the original, by other means."""

import copy
import json

import pytest
import torch
from torch import nn

from tests.networks import Layers, snapshot
from tests.pruning.cutting_cases import CASES, Tokens, mlp, shapes, silent
from tests.pruning.test_heads import attending
from wua_mlflow.flops import count_flops
from wua_mlflow.pruning import cut as module
from wua_mlflow.pruning.compensation import compensated
from wua_mlflow.pruning.cut import Specification, cut, rebuild, unit_groups
from wua_mlflow.pruning.importance import most_important, unit_importance
from wua_mlflow.pruning.unit_groups import masked
from wua_mlflow.pruning.verify import _noise_like, _resized


def test_shapes_parameters_and_flops_are_those_of_a_network_built_narrow(pruned):
    case, model, result = pruned.case, pruned.model, pruned.result
    narrow, example = case.narrow(), case.example(4)
    assert shapes(result.model) == shapes(narrow)
    assert result.params_before == sum(weight.numel() for weight in model.parameters())
    assert result.params_after == sum(weight.numel() for weight in narrow.parameters())
    assert result.flops_before == count_flops(model, example, backward=False).forward_flops
    assert result.flops_after == count_flops(narrow, example, backward=False).forward_flops
    assert result.flops_after < result.flops_before
    assert result.units == case.units
    trained = copy.deepcopy(result.model).train()
    trained(case.example(6)).square().mean().backward()
    assert all(weight.grad.shape == weight.shape for weight in trained.parameters())


def test_outputs_are_those_of_the_original_with_the_units_silenced_or_masked(pruned):
    case, model, before = pruned.case, pruned.model, snapshot(pruned.model)
    with torch.no_grad():
        for inputs in (case.example(1), case.example(17)):
            with silent(model, case):
                expected = model(inputs)
            assert not torch.allclose(model(inputs), expected, atol=1e-3), "the units matter"
            torch.testing.assert_close(pruned.result.model(inputs), expected, rtol=1e-4, atol=1e-5)
            with masked(model, pruned.structure, case.removed) as same:
                assert same is model and snapshot(model) != before
                torch.testing.assert_close(model(inputs), expected, rtol=1e-5, atol=1e-6)
    assert snapshot(model) == before
    with pytest.raises(KeyError), masked(model, pruned.structure, case.removed):
        raise KeyError
    assert snapshot(model) == before


def test_a_fresh_network_from_the_specification_takes_the_weights(pruned):
    case, result = pruned.case, pruned.result
    specification = Specification.from_json(result.specification.to_json())
    fresh, inputs = rebuild(case.whole(seed=9), case.example(4), specification), case.example(7)
    with torch.no_grad():
        expected = result.model(inputs)
        assert not torch.allclose(fresh(inputs), expected)
        fresh.load_state_dict(result.model.state_dict(), strict=True)
        assert torch.equal(fresh(inputs), expected)


def test_heads_cut_twice_their_specification_and_training():
    example = torch.randn(3, 5, 8)
    first = cut(attending(), example, {"attention": [0, 1, 3]})
    second = cut(first.model, example, {"attention": [0, 2]})
    both = first.specification.then(second.specification)
    assert json.loads(both.to_json()) == {
        "format": 1, "kept": [{"attention": [0, 1, 3]}, {"attention": [0, 2]}]}
    assert both.summary == "attention 2"
    fresh = rebuild(attending(), example, Specification.from_json(both.to_json()))
    fresh.load_state_dict(second.model.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(fresh(example), second.model(example))
    fresh(example).square().mean().backward()
    assert all(weight.grad.shape == weight.shape for weight in fresh.parameters())


def test_another_text_is_no_specification_and_one_of_another_factory_is_refused():
    message = "^structure: expected a specification of format 1, but "
    for text in ("", "[]", "{}", '{"format": 2, "kept": []}', '{"format": 1, "kept": [3]}',
                 '{"format": 1, "kept": [{"fc1": ["x"]}]}'):
        with pytest.raises(ValueError, match=message):
            Specification.from_json(text)
    with pytest.raises(ValueError, match="^units: expected numbers below 4 for 0, but got 6$"):
        rebuild(mlp(4, 5), torch.zeros(2, 4), Specification(({"0": (0, 6)},)))


@pytest.mark.parametrize("name", ["residual", "Conv1D"])
def test_the_original_is_left_bit_for_bit(name):
    case = CASES[name]
    model = case.whole().train()
    next(model.parameters()).requires_grad_(False)
    before, state = snapshot(model), torch.get_rng_state()
    pruned = cut(model, case.example(4), case.keep).model
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert pruned.training and all(module.training for module in pruned.modules())
    assert not next(pruned.parameters()).requires_grad
    assert all(weight.grad is None for weight in pruned.parameters())
    assert not {*map(id, pruned.parameters())} & {*map(id, model.parameters())}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_units_that_stay_keep_their_weights_and_count_once(dtype):
    model = CASES["mlp"].whole().to(dtype)
    result = cut(model, torch.zeros(2, 4, dtype=dtype), {"0": [5, 0, 2, 5]})
    assert result.units["0"] == (7, 3)
    assert torch.equal(result.model[0].weight, model[0].weight[[0, 2, 5]])
    assert torch.equal(result.model[0].bias, model[0].bias[[0, 2, 5]])
    assert torch.equal(result.model[2].weight, model[2].weight[:, [0, 2, 5]])
    assert torch.equal(result.model[4].weight, model[4].weight)


@pytest.mark.parametrize("pruned", ["residual"], indirect=True)
def test_a_cut_network_can_be_cut_again_down_to_one_unit(pruned):
    example = pruned.case.example(4)
    again = cut(pruned.result.model, example, {"stem": [0]})
    assert again.units["stem"] == (3, 1)
    assert unit_groups(again.model, example).not_prunable["stem"] == "it has one unit"


def test_what_is_tied_stays_tied():
    embed, inner, out = nn.Embedding(11, 6), nn.Linear(6, 8), nn.Linear(6, 11, bias=False)
    out.weight = embed.weight
    model = Layers(lambda net, tokens: net.out(net.back(net.again(net.embed(tokens)).relu())),
                   embed=embed, inner=inner, back=nn.Linear(8, 6), out=out, again=inner)
    pruned = cut(model, torch.randint(11, (4, 3)), {"inner": [1, 5]}).model
    assert pruned.out.weight is pruned.embed.weight
    assert pruned.again is pruned.inner and pruned.inner.out_features == 2
    assert pruned.embed.weight.shape == (11, 6)


NOTHING = "keep: expected fewer units than there are in at least one group, but nothing would be " \
          "cut"


@pytest.mark.parametrize("pruned", ["mlp"], indirect=True)
@pytest.mark.parametrize(("keep", "message"), [
    ({"0": []}, "keep: expected at least one unit of 0, but got none: the layer would be empty"),
    ({"0": [0, 7]}, "units: expected numbers below 7 for 0, but got 7"),
    ({"0": [-1]}, "units: expected numbers below 7 for 0, but got -1"),
    ({"3": [0]}, "group: expected one of 0, 2, but got '3'"),
    ({"4": [0]}, "group: expected one of 0, 2, but got '4' (its units are the network's outputs)"),
    ({"0": range(7), "2": range(5)}, NOTHING),
    ({}, NOTHING),
], ids=str)
def test_what_is_refused_in_one_line(pruned, keep, message):
    model, before = pruned.model, snapshot(pruned.model)
    with pytest.raises(ValueError) as raised:
        cut(model, torch.zeros(2, 4), keep, pruned.structure)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
    if message.startswith(("units", "group")):
        with pytest.raises(ValueError) as raised, masked(model, pruned.structure, keep):
            pass
        assert str(raised.value).startswith(message)
    assert snapshot(model) == before


def cutting_wrongly(monkeypatch, spoil):
    """Whatever was done: a cut network is spoiled before it is verified."""
    removing = module.remove_units

    def wrong(model, structure, removed):
        pruned = removing(model, structure, removed)
        spoil(pruned, removed)
        return pruned

    monkeypatch.setattr(module, "remove_units", wrong)


OUTPUTS = "its outputs are not those of the original without the units"


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda pruned: setattr(pruned.head, "weight", nn.Parameter(pruned.head.weight.clone())),
     "weights that were tied are not any more"),
    (lambda pruned: pruned.register_forward_hook(lambda *call: call[2][:, :2]),
     "it gives outputs of the shape (4, 2) instead of (4, 9)"),
    (lambda pruned: pruned.register_forward_hook(lambda *call: 1 / 0),
     "its forward fails: ZeroDivisionError: division by zero"),
    (lambda pruned: pruned.down.weight.data.mul_(1.01),
     "down.weight does not hold the weights of the units that stay"),
    (lambda pruned: pruned.up.bias.data.add_(0.1),
     "up.bias does not hold the weights of the units that stay"),
    (lambda pruned: pruned.head.register_forward_hook(lambda *call: call[2] * 1.01), OUTPUTS),
    (lambda pruned: pruned.head.register_forward_hook(
        lambda *call: torch.where(call[1][0].abs().mean() > 1, 0, call[2])), OUTPUTS),
    (lambda pruned: setattr(pruned, "down", nn.Linear(8, 6)),
     "down.weight has the shape (6, 8) instead of (6, 2): the cut does not reach it"),
    (lambda pruned: setattr(pruned, "down", nn.Linear(2, 7)),
     "down.weight has the shape (7, 2) instead of (6, 2): the units are divided on their way, as "
     "into heads, or joined with others"),
])
def test_a_wrong_cut_ends_with_what_is_wrong(monkeypatch, spoil, message):
    model, example = Tokens(), torch.randint(9, (4, 4))
    structure = unit_groups(model, example)
    cutting_wrongly(monkeypatch, lambda pruned, _: spoil(pruned))
    with pytest.raises(ValueError) as raised:
        cut(model, example, {"up": [0, 3]}, structure)
    assert str(raised.value) == f"model: cut as asked it is not what was planned: {message}"


def test_a_group_that_is_cut_wrongly_is_noticed_in_advance(monkeypatch):
    """A group whose trial cut fails is not offered, and says why."""
    cutting_wrongly(monkeypatch,
                    lambda pruned, removed: "2" in removed and pruned[2].bias.data.add_(1.0))
    structure = unit_groups(mlp(7, 5), torch.randn(4, 4))
    assert [group.name for group in structure.groups] == ["0"]
    assert structure.not_prunable["2"] == \
        "cut on trial, 2.bias does not hold the weights of the units that stay"


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_tokens_stay_in_their_table(dtype):
    """The noise that a cut is checked on are the example's own numbers: no embedding lacks them."""
    result = cut(Tokens(), torch.randint(9, (5, 4)).to(dtype), {"up": [0, 2, 5]})
    assert result.units["up"] == (8, 3)
    assert result.model.head.weight is result.model.emb.weight


def test_batches_to_check_a_cut_on():
    samples = torch.arange(6).reshape(3, 2)
    assert _resized(samples, 1).tolist() == [[0, 1]]
    assert _resized(samples, 5).tolist() == [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]]
    table = torch.tensor([[0, 5], [1, 6], [2, 7]])
    assert _noise_like(table).sort(0).values.tolist() == table.tolist()
    assert _noise_like({"x": samples.float()})["x"].shape == (3, 2)


def test_a_model_that_writes_into_its_input_is_cut():
    """It doubles its input in place: what is traced often would overflow."""
    model, x = CASES["mlp"].whole(), torch.rand(12, 4)
    model.register_forward_pre_hook(lambda _, inputs: inputs[0].mul_(2))
    before, structure = x.clone(), unit_groups(model, x)
    importance = unit_importance(model, structure, (x, torch.zeros(12, dtype=torch.long)),
                                 nn.functional.cross_entropy, criterion="spanning")
    keep = {name: most_important(values, 4) for name, values in importance.items()}
    compensated(model, structure, keep, x)
    assert cut(model, x, keep, structure).units == {"0": (7, 4), "2": (5, 4)}
    assert torch.equal(x, before)
