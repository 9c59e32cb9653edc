"""Readers that take over what cut units said: least squares by NumPy, and what stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from wua_mlflow.pruning.compensation import compensated
from wua_mlflow.pruning.cut import cut, unit_groups
from wua_mlflow.pruning.unit_groups import masked


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def mlp(*, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3, bias=bias))


def outputs(model: nn.Module, structure, gone: dict[str, list[int]], x: Tensor) -> Tensor:
    with masked(model, structure, gone), torch.no_grad():
        return model(x)


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_reader_by_numpy(bias: bool) -> None:
    model, x = mlp(bias=bias), torch.randn(300, 5)
    structure, keep, go = unit_groups(model, x[:4]), [0, 2, 3, 6], [1, 4, 5, 7]
    made = compensated(model, structure, {"0": keep}, x)
    hidden = torch.relu(model[0](x)).detach().double().numpy()
    known = np.c_[hidden[:, keep], np.ones(300)] if bias else hidden[:, keep]
    fit = np.linalg.lstsq(known, hidden[:, go], rcond=None)[0]
    weight = model[2].weight.detach().double().numpy()
    expected = known @ (np.r_[weight[:, keep].T, np.zeros((1, 3))] if bias else weight[:, keep].T)
    expected = expected + known @ fit @ weight[:, go].T + (
        model[2].bias.detach().double().numpy() if bias else 0)
    found = outputs(made, structure, {"0": go}, x).double().numpy()
    size = np.abs(expected).max()
    assert np.abs(found - expected).max() < 0.01 * size  # the ridge
    plain = outputs(model, structure, {"0": go}, x).double().numpy()
    whole = model(x).detach().double().numpy()
    assert ((found - whole) ** 2).sum() < 0.7 * ((plain - whole) ** 2).sum()


def test_a_copy_and_a_constant_can_go_without_a_loss() -> None:
    model, x = mlp(), torch.randn(300, 5)
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3] = -2 * model[0].weight[6], 1.0
        model[0].weight[6], model[0].bias[6] = 3 * model[0].weight[1], 3 * model[0].bias[1]
        model[0].weight[4], model[0].bias[4] = 0.0, 7.0
    structure, whole = unit_groups(model, x[:4]), model(x).detach()
    keep = [0, 1, 2, 3, 5, 7]
    made = compensated(model, structure, {"0": keep}, x)
    lost = float((outputs(model, structure, {"0": [4, 6]}, x) - whole).abs().max())
    left = float((outputs(made, structure, {"0": [4, 6]}, x) - whole).abs().max())
    assert left < 0.01 * lost  # the ridge


def convolutions(padding: int, *, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=padding,
                                                                   bias=bias), nn.Flatten(),
                         nn.Linear(4 * (4 + 2 * padding) ** 2, 2))


@pytest.mark.parametrize(("padding", "bias"), [(0, True), (1, True), (0, False)])
def test_a_convolution_by_numpy(padding: int, bias: bool) -> None:
    model, x = convolutions(padding, bias=bias), torch.randn(60, 2, 8, 8)
    structure, keep, go = unit_groups(model, x[:4]), [0, 2, 5], [1, 3, 4]
    made = compensated(model, structure, {"0": keep}, x)
    maps = torch.relu(model[0](x)).detach().double()
    rows = maps.movedim(1, -1).reshape(-1, 6).numpy()
    centred = bias and not padding
    known = np.c_[rows[:, keep], np.ones(len(rows))] if centred else rows[:, keep]
    fit = torch.from_numpy(np.linalg.lstsq(known, rows[:, go], rcond=None)[0])
    guess = maps.clone()
    guess[:, go] = torch.einsum("nkxy,kg->ngxy", maps[:, keep], fit[:3])
    if centred:
        guess[:, go] += fit[3][:, None, None]
    reader = model[2].double()
    expected = functional.conv2d(guess, reader.weight, reader.bias, padding=padding).detach()
    made[2].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    seen: list[Tensor] = []
    outputs(made, structure, {"0": go}, x)
    assert float((seen[0] - expected).abs().max()) < 0.01 * float(expected.abs().max())


def test_cut_and_folded_it_is_verified_and_closer_to_what_it_was() -> None:
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 12), nn.Tanh(),
                          nn.Linear(12, 3))
    x, keep = torch.randn(400, 5), {"0": list(range(0, 16, 2)), "2": list(range(6))}
    structure, whole = unit_groups(model, x[:4]), model(x).detach()
    begin = compensated(model, structure, keep, x)
    found, plain = (cut(one, x[:4], keep).model for one in (begin, model))
    assert [tuple(one.shape) for one in found.parameters()] == [
        tuple(one.shape) for one in plain.parameters()]
    lost = [(one(x) - whole).square().mean().item() for one in (found, plain)]
    assert lost[0] < 0.5 * lost[1]


class Tied(nn.Module):
    """What reads the hidden units is tied to a table of the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.reader = nn.Linear(5, 6), nn.Linear(6, 4)
        self.table = nn.Embedding(4, 6)
        self.table.weight = self.reader.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.reader(torch.relu(self.first(x))) + self.table.weight.sum()


def test_what_is_tied_or_cannot_be_seen_is_left_alone() -> None:
    model, x = Tied(), torch.randn(50, 5)
    structure = unit_groups(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)), x[:2])
    group = structure.groups[0]
    renamed = type(group)("first", ("first",), tuple(
        type(one)("reader.weight", one.dim, one.columns) for one in group.readers), 6)
    made = compensated(model, type(structure)((renamed,), {}), {"first": [0, 1]}, x)
    assert torch.equal(made.reader.weight, model.reader.weight)
    assert made.reader.weight is made.table.weight
    heads = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).eval()
    x = torch.randn(4, 3, 8)
    found = unit_groups(heads, x)
    keep = {group.name: [0] for group in found.groups if group.kind == "heads"}
    assert keep
    made = compensated(heads, found, keep, x)
    assert all(torch.equal(a, b) for a, b in
               zip(made.parameters(), heads.parameters(), strict=True))


def test_dead_units_and_groups_that_keep_all() -> None:
    model, x = mlp(), torch.randn(50, 5)
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    structure = unit_groups(model, x[:4])
    for keep in ([0, 1], list(range(8))):
        made = compensated(model, structure, {"0": keep}, x)
        assert torch.equal(made[2].weight, model[2].weight)
        assert torch.equal(made[2].bias, model[2].bias)


def test_the_model_is_left_as_found() -> None:
    model, x = mlp().train(), torch.randn(50, 5)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    made = compensated(model, unit_groups(model, x[:4]), {"0": [0, 1]}, x)
    assert model.training and made.training
    assert not any(module._forward_pre_hooks for module in (*model.modules(), *made.modules()))
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    assert torch.equal(made[0].weight, model[0].weight)
    assert not torch.equal(made[2].weight, model[2].weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_in_any_precision(dtype: torch.dtype) -> None:
    model, x = mlp().to(dtype), torch.randn(200, 5).to(dtype)
    made = compensated(model, unit_groups(model, x[:4]), {"0": [0, 2, 4, 6]}, x)
    assert {one.dtype for one in made.parameters()} == {dtype}
    assert all(bool(one.isfinite().all()) for one in made.parameters())
