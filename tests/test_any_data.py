"""What one function of the library takes all of them take: data in every form, with one result."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import wua_mlflow as wua

X = torch.rand(60, 4, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 2).long()


class Net(nn.Module):
    """Takes its inputs by name or place; gives what Hugging Face's models give, or a tensor."""

    def __init__(self, named: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.hidden, self.out, self.named = nn.Linear(4, 10), nn.Linear(10, 2), named

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        logits = self.out(torch.relu(self.hidden(x)))
        return {"logits": logits} if self.named else logits


class Two(Net):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(torch.cat([left, right], 1))


def dicts() -> list[dict[str, Tensor]]:
    return [{"x": x, "labels": y} for x, y in zip(X.split(25), Y.split(25), strict=True)]


FORMS = {
    "pair": (Net, lambda: (X, Y)), "arrays": (Net, lambda: (X.numpy(), Y.numpy())),
    "dataset": (Net, lambda: TensorDataset(X, Y)),
    "loader": (Net, lambda: DataLoader(TensorDataset(X, Y), batch_size=25)),
    "batches": (Net, lambda: list(zip(X.split(25), Y.split(25), strict=True))),
    "dicts": (Net, dicts), "named outputs": (lambda: Net(named=True), dicts),
    "two inputs": (Two, lambda: ((X[:, :2], X[:, 2:]), Y)),
    "two inputs in a loader": (Two, lambda: DataLoader(
        TensorDataset(X[:, :2], X[:, 2:], Y), batch_size=25))}


def loss(outputs: Tensor | dict[str, Tensor], targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(
        outputs["logits"] if isinstance(outputs, dict) else outputs, targets)


METHODS, SLIM = ("rank", "projection", "ablation"), {"widths": {"hidden": 4}, "fold": True}


@pytest.fixture(scope="module")
def of_a_pair():
    """What the functions give of the plain form: entropies, widths, specifications of the cut."""
    plain = Net().eval()
    usage = wua.analyze(plain, [(X, Y)], criterion=["output", "taylor"], loss=loss)
    return ({name: found.layers["hidden"].entropy for name, found in usage.items()},
            {method: wua.recommend_widths(plain, (X, Y), method=method).widths
             for method in METHODS},
            {criterion: wua.slim(plain, (X, Y), criterion=criterion, **SLIM).specification
             for criterion in ("spanning", "taylor", "output")})


@pytest.mark.parametrize("form", FORMS)
def test_every_function_takes_it(form, of_a_pair):
    make, data = FORMS[form]
    model, (entropies, widths, specifications) = make().eval(), of_a_pair
    state = copy.deepcopy(model.state_dict())
    usage = wua.analyze(model, data(), criterion=["output", "taylor"], loss=loss)
    assert {name: found.layers["hidden"].entropy for name, found in usage.items()} == \
        pytest.approx(entropies, rel=1e-5)
    for method in METHODS:
        assert wua.recommend_widths(model, data(), method=method).widths == widths[method]
    for criterion, expected in specifications.items():
        narrower = wua.slim(model, data(), criterion=criterion, **SLIM)
        assert narrower.specification == expected
    assert narrower.model.hidden.weight.shape == (4, 4)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("function", [wua.slim, wua.recommend_widths])
@pytest.mark.parametrize(("data", "message"), [
    (iter([(X, Y)]), "gone over again"), (X, "a pair"), ((X, Y[:9]), "as many targets"),
    ([], "0 parts"), ((X, np.array(["a"] * 60)), "targets as a dense tensor"),
    ("x.csv", "got str")])
def test_what_none_of_them_takes(function, data, message):
    with pytest.raises(ValueError, match=f"^data: expected .*{message}"):
        function(Net(), data)


@pytest.mark.parametrize(("targets", "outputs", "axis"), [
    (torch.randint(2, (60, 3), generator=torch.Generator().manual_seed(2)), 3, "accuracy"),
    (torch.rand(60, 3, generator=torch.Generator().manual_seed(2)), 3, "R²")])
def test_several_targets(targets, outputs, axis):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, outputs))
    found = wua.recommend_widths(model, (X, targets), method="ablation")
    assert axis in found.layers[0].curve.axis
    assert wua.slim(model, (X, targets), widths={"0": 3}).units["0"] == (8, 3)
