"""Dead units behind more than one ReLU, or one by another name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.networks import rows
from wua_mlflow.usage.analyze import analyze


class Reused(nn.Module):
    """What a ReLU gave, cut off once more, or a product cut off at two places."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.first, self.head = way, nn.Linear(3, 8), nn.Linear(8, 2)
        with torch.no_grad():
            self.first.bias[:3] = -100.0

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        if self.way == "twice in a row":
            return self.head(z.relu().relu())
        if self.way == "by a threshold":
            return self.head(functional.threshold(z, 0, value=0.0))
        if self.way == "with dropout between":
            return self.head(functional.relu6(functional.dropout(z.relu(), 0.5, training=False)))
        return self.head(z.relu() + torch.relu(z))


class Maxout(nn.Module):
    """The larger of two products; a ReLU after it cuts neither's units off."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(8, 2)
        with torch.no_grad():
            self.first.bias[:3] = -100.0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.maximum(self.first(x), self.second(x)).relu())


def test_the_larger_of_two_products_is_neithers():
    assert analyze(Maxout(), rows(50, 3), layers=["first"]).layers["first"].dead_units == 0


@pytest.mark.parametrize("way", ["twice in a row", "with dropout between", "at two places",
                                 "by a threshold"])
def test_a_unit_that_is_cut_off_twice_is_dead_all_the_same(way):
    model, x = Reused(way), rows(50, 3)
    never = int((model.first(x) <= 0).all(0).sum())
    assert analyze(model, x, layers=["first"]).layers["first"].dead_units == never >= 3
