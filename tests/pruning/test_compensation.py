"""Readers that take over what cut units said: least squares by NumPy, and what stays as it was."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.networks import mlp, numpys, snapshot
from tests.pruning.cutting_cases import Stream, Tokens
from wua_mlflow.pruning.compensation import compensated
from wua_mlflow.pruning.cut import cut, unit_groups
from wua_mlflow.pruning.unit_groups import masked


def outputs(model, structure, removed, x):
    with masked(model, structure, removed), torch.no_grad():
        return model(x)


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_reader_by_numpy(bias):
    model, x = mlp(5, 8, 3), torch.randn(300, 5)
    model[2].bias = model[2].bias if bias else None
    structure, keep, removed = unit_groups(model, x[:4]), [0, 2, 3, 6], [1, 4, 5, 7]
    result = compensated(model, structure, {"0": keep}, x)
    hidden, weight = numpys(model[0](x).relu()), numpys(model[2].weight)
    known = np.c_[hidden[:, keep], np.ones(300)] if bias else hidden[:, keep]
    guess = hidden.copy()
    guess[:, removed] = known @ np.linalg.lstsq(known, hidden[:, removed], rcond=None)[0]
    expected = guess @ weight.T + (numpys(model[2].bias) if bias else 0)
    after = numpys(outputs(result, structure, {"0": removed}, x))
    assert np.abs(after - expected).max() < 0.01 * np.abs(expected).max()  # the ridge
    before, whole = numpys(outputs(model, structure, {"0": removed}, x)), numpys(model(x))
    assert ((after - whole) ** 2).sum() < 0.7 * ((before - whole) ** 2).sum()


def test_a_copy_and_a_constant_can_go_without_a_loss():
    model, x = mlp(5, 8, 3), torch.randn(300, 5)
    with torch.no_grad():
        model[0].weight[6], model[0].bias[6] = 3 * model[0].weight[1], 3 * model[0].bias[1]
        model[0].weight[4], model[0].bias[4] = 0.0, 7.0
    structure, whole = unit_groups(model, x[:4]), model(x).detach()
    result = compensated(model, structure, {"0": [0, 1, 2, 3, 5, 7]}, x)
    plain, folded = ((outputs(network, structure, {"0": [4, 6]}, x) - whole).abs().max()
                     for network in (model, result))
    assert folded < 0.01 * plain  # the ridge


@pytest.mark.parametrize(("padding", "bias"), [(0, True), (1, True), (0, False)])
def test_a_convolution_by_numpy(padding, bias):
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(),
                          nn.Conv2d(6, 4, 3, padding=padding, bias=bias), nn.Flatten(),
                          nn.Linear(4 * (4 + 2 * padding) ** 2, 2))
    x, keep, removed = torch.randn(60, 2, 8, 8), [0, 2, 5], [1, 3, 4]
    structure = unit_groups(model, x[:4])
    result = compensated(model, structure, {"0": keep}, x)
    maps = model[0](x).relu().detach().double()
    values = maps.movedim(1, -1).reshape(-1, 6).numpy()
    centred = bias and not padding
    known = np.c_[values[:, keep], np.ones(len(values))] if centred else values[:, keep]
    fit = torch.from_numpy(np.linalg.lstsq(known, values[:, removed], rcond=None)[0])
    guess = maps.clone()
    guess[:, removed] = torch.einsum("nkxy,kg->ngxy", maps[:, keep], fit[:3])
    if centred:
        guess[:, removed] += fit[3][:, None, None]
    reader = model[2].double()
    expected = functional.conv2d(guess, reader.weight, reader.bias, padding=padding).detach()
    recorded = []
    result[2].register_forward_hook(lambda *call: recorded.append(call[2]))
    outputs(result, structure, {"0": removed}, x)
    assert float((recorded[0] - expected).abs().max()) < 0.01 * float(expected.abs().max())


def test_cut_and_folded_it_is_verified_and_closer_to_what_it_was():
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 12), nn.Tanh(),
                          nn.Linear(12, 3)).train()
    x, keep = torch.randn(400, 5), {"0": list(range(0, 16, 2)), "2": list(range(6))}
    structure, whole, before = unit_groups(model, x[:4]), model(x).detach(), snapshot(model)
    result = compensated(model, structure, keep, x)
    assert snapshot(model) == before
    assert result.training and not any(module._forward_pre_hooks for module in result.modules())
    assert torch.equal(result[0].weight, model[0].weight)
    folded, plain = ((cut(network, x[:4], keep, structure).model(x) - whole).square().mean()
                     for network in (result, model))
    assert folded < 0.5 * plain


def test_what_is_tied_or_cannot_be_seen_is_left_alone():
    model, x = Tokens(), torch.randint(9, (50, 4))
    structure = unit_groups(model, x[:2])
    model.spare = nn.Embedding(6, 8)
    model.spare.weight = model.down.weight
    result = compensated(model, structure, {"up": [0, 1]}, x)
    assert torch.equal(result.down.weight, model.down.weight)
    assert result.down.weight is result.spare.weight
    heads, x = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).eval(), torch.randn(4, 3, 8)
    structure = unit_groups(heads, x)
    keep = {group.name: [0] for group in structure.groups if group.kind == "heads"}
    assert keep
    same = compensated(heads, structure, keep, x).parameters()
    for weight, before in zip(same, heads.parameters(), strict=True):
        assert torch.equal(weight, before)


def test_dead_units_and_groups_that_keep_all():
    model, x = mlp(5, 8, 3), torch.randn(50, 5)
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    structure = unit_groups(model, x[:4])
    for keep in ([0, 1], list(range(8))):
        result = compensated(model, structure, {"0": keep}, x)
        assert torch.equal(result[2].weight, model[2].weight)
        assert torch.equal(result[2].bias, model[2].bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_in_any_precision(dtype):
    model, x = mlp(5, 8, 3).to(dtype), torch.randn(200, 5).to(dtype)
    result = compensated(model, unit_groups(model, x[:4]), {"0": [0, 2, 4, 6]}, x)
    assert not torch.equal(result[2].weight, model[2].weight)
    for weight in result.parameters():
        assert weight.dtype == dtype and bool(weight.isfinite().all())


def test_each_reader_of_the_models_width_by_what_comes_through_its_norm():
    """By NumPy where all is read; once cut the network is nearer to the original."""
    torch.manual_seed(0)
    model, x = Stream().eval(), torch.randn(300, 4)
    structure = unit_groups(model, x[:4], ("stream",))
    keep, removed = [0, 2, 3, 5, 6, 8, 9, 11], [1, 4, 7, 10]
    result = compensated(model, structure, {"stem": keep}, x)
    norm, up = model.blocks[0][0], model.blocks[0][1]
    read = numpys(norm(model.stem(x)))
    known = np.c_[read[:, keep], np.ones(300)]
    guess = read.copy()
    guess[:, removed] = known @ np.linalg.lstsq(known, read[:, removed], rcond=None)[0]
    expected = guess @ numpys(up.weight).T + numpys(up.bias)
    folded = result.blocks[0][1]
    after = read[:, keep] @ numpys(folded.weight)[:, keep].T + numpys(folded.bias)
    assert np.abs(after - expected).max() < 0.02 * np.abs(expected).max()  # the ridge
    whole = model(x).detach()
    plain, fitted = (float((cut(each, x[:4], {"stem": keep}, structure).model(x) - whole)
                           .detach().square().sum()) for each in (model, result))
    assert fitted < 0.5 * plain
