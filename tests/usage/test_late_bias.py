"""A bias that the model adds to a product by itself counts as the product's own."""

from __future__ import annotations

import math
import operator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.networks import rows
from tests.references import unnamed
from wua_mlflow.usage.analyze import analyze, layer_importance


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def tensor(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _gated(z: Tensor, b: Tensor) -> Tensor:
    return torch.where(z + b > 0, z + b, 0.0)


LATE = {
    "x @ W + b": (lambda x, w, b: x @ w.T + b, (4, 3), (4,)),
    "b + x @ W": (lambda x, w, b: b + x @ w.T, (4, 3), (4,)),
    "in place": (lambda x, w, b: (x @ w.T).add_(b), (4, 3), (4,)),
    "+=": (lambda x, w, b: operator.iadd(x @ w.T, b), (4, 3), (4,)),
    "torch.add": (lambda x, w, b: torch.add(b, functional.linear(x, w)), (4, 3), (4,)),
    "a row": (lambda x, w, b: x @ w.T + b, (4, 3), (1, 4)),
    "by name": (lambda x, w, b: torch.add(functional.linear(x, w), other=b), (4, 3), (4,)),
    "after a view": (lambda x, w, b: (x @ w.T).view(-1, 4) + b, (4, 3), (4,)),
    "after what changes nothing": (lambda x, w, b: functional.dropout(
        (x @ w.T).contiguous(), 0.5, training=False) + b, (4, 3), (4,)),
    "from the left": (lambda x, w, b: (w @ x.T + b[:, None]).T, (4, 3), (4,)),
    "twice to one product": (lambda x, w, b: _gated(x @ w.T, b), (4, 3), (4,)),
    "unsqueezed": (lambda x, w, b: functional.linear(x, w) + b[None], (4, 3), (4,)),
}


UNSEEN = [LATE[name][0] for name in ("from the left", "twice to one product")]
"""Whose ReLU is not one that is seen."""


class Late(nn.Module):
    """A product with a bias that is added afterwards, and a ReLU."""

    def __init__(self, function, weight, bias) -> None:
        super().__init__()
        self.function, self.own = function, nn.Parameter(tensor(*weight))
        self.bias = nn.Parameter(torch.linspace(-9, 2, math.prod(bias)).reshape(bias))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.function(x, self.own, self.bias)))


@pytest.mark.parametrize(("function", "weight", "bias"), LATE.values(), ids=LATE)
def test_a_bias_that_is_added_afterwards(function, weight, bias):
    model, x, y = Late(function, weight, bias), rows(6, 3), torch.tensor([0, 1] * 3)
    fused = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), model.head)
    fused[0].weight, fused[0].bias = model.own, nn.Parameter(model.bias.detach().flatten())
    torch.testing.assert_close(model(x), fused(x))
    for criterion in ("output", "taylor"):
        options = {"criterion": criterion, "loss": functional.cross_entropy}
        found = analyze(model, [(x, y)], layers=["own"], **options).layers["own"]
        expected = analyze(fused, [(x, y)], layers=["0"], **options).layers["0"]
        for seen, known in ((found.unit_importance, expected.unit_importance),
                            ([found.entropy], [expected.entropy])):
            torch.testing.assert_close(torch.as_tensor(seen), torch.as_tensor(known),
                                       rtol=1e-6, atol=0)
        if function not in UNSEEN:
            assert found.dead_units == expected.dead_units > 0
        assert unnamed(model, analyze(model, [(x, y)], **options)) == []


def test_a_convolutions_bias_that_is_added_afterwards():
    class Conv(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(x, self.weight, None) + self.bias[:, None, None]

    late, plain = Conv(2, 3, 3), nn.Conv2d(2, 3, 3)
    plain.load_state_dict(late.state_dict())
    x = rows(2, 2, 5, 5)
    found, expected = (analyze(nn.Sequential(one, nn.Conv2d(3, 2, 1)), x).layers["0"]
                       for one in (late, plain))
    torch.testing.assert_close(torch.from_numpy(found.unit_importance),
                               torch.from_numpy(expected.unit_importance), rtol=1e-5, atol=1e-7)


def test_what_is_no_bias_of_its_units_is_not_added():
    def twice(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return torch.relu(x @ w.T) + b + x @ w.T

    model, x = Late(twice, (4, 3), (4,)), rows(6, 3)
    found = layer_importance(model, x, ["own"])["own"]
    mean = (x @ model.own.T).mean(0)  # without b: it is added to what a ReLU gave
    torch.testing.assert_close(found, (model.own * mean[:, None]).abs().double(), rtol=1e-5, atol=0)


def test_a_bias_with_more_dimensions_is_named():
    class Modulated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(3, 4, bias=False), nn.Linear(4, 2)
            self.shift = nn.Parameter(torch.ones(1, 1, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.first(x) + self.shift)

    skipped = analyze(Modulated(), rows(6, 5, 3)).skipped
    assert "add" in skipped["shift"], skipped
