"""Σ a·g of units whose biases are shared, computed, lent to several products or added late."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.networks import labels, rows
from tests.watching.test_felt import SAMPLES, TwoBiases, close, loss, units_of


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class Shared(nn.Module):
    """Two layers with one bias, and one whose bias is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.made = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 4)
        self.two.bias = self.one.bias
        self.head = nn.Linear(4, 2)
        self.masks: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        found = {
            "one": self.one(x), "two": self.two(x),
            "made": functional.linear(x, self.made.weight, self.made.bias * 2)}
        return self.head(sum((one * self.masks.get(name, 1)).tanh()
                             for name, one in found.items()))


def test_biases_that_are_shared_or_computed():
    model, x, y = Shared(), rows(SAMPLES, 3), labels(SAMPLES)
    names = ["one", "two", "made"]
    model.masks = {name: torch.ones(4, requires_grad=True) for name in names}
    expected = torch.autograd.grad(loss(model(x), y), list(model.masks.values()))
    model.masks = {}
    found = units_of(model, [(x[:4], y[:4]), (x[4:], y[4:])], names)
    for name, one in zip(names, expected, strict=True):
        close(found[name], one.double().abs())


class Lent(nn.Module):
    """Two weights and one bias in one module, added by the function or afterwards."""

    def __init__(self, late: bool) -> None:
        super().__init__()
        self.late = late
        self.one, self.two = (nn.Parameter(torch.randn(4, 3)) for _ in range(2))
        self.bias, self.head = nn.Parameter(torch.randn(4)), nn.Linear(4, 2)
        self.masks: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        found = {name: functional.linear(x, weight) + self.bias if self.late
                 else functional.linear(x, weight, self.bias)
                 for name, weight in (("one", self.one), ("two", self.two))}
        return self.head(sum((one * self.masks.get(name, 1)).tanh()
                             for name, one in found.items()))


@pytest.mark.parametrize("late", [False, True])
def test_a_bias_that_two_products_of_a_module_share(late):
    model, x, y = Lent(late), rows(SAMPLES, 3), labels(SAMPLES)
    model.masks = {name: torch.ones(4, requires_grad=True) for name in ("one", "two")}
    expected = torch.autograd.grad(loss(model(x), y), list(model.masks.values()))
    model.masks = {}
    found = units_of(model, [(x[:4], y[:4]), (x[4:], y[4:])], ["one", "two"])
    for name, one in zip(("one", "two"), expected, strict=True):
        close(found[name], one.double().abs())


def test_a_bias_added_to_a_tied_weight():
    class Late(TwoBiases):
        def forward(self, x: Tensor) -> Tensor:
            mask = 1 if self.mask is None else self.mask
            x = torch.tanh((functional.linear(x, self.one.weight) + self.one.bias) * mask)
            return self.head(x)

    model, x, y = Late(), rows(SAMPLES, 3), labels(SAMPLES)
    model.mask = torch.ones(3, requires_grad=True)
    expected, = torch.autograd.grad(loss(model(x), y), [model.mask])
    model.mask = None
    close(units_of(model, [(x, y)], ["one"])["one"], expected.double().abs())
