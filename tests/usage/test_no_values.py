"""Models and layers that hold no values: on the meta device, or of no width."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.networks import labels, rows
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.usage.criteria import CRITERIA


@pytest.mark.parametrize("part", ["all", "buffer"])
def test_a_model_on_the_meta_device(part):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    (model if part == "all" else model[1]).to("meta")
    with pytest.raises(ValueError, match=(
            "^model: expected parameters and buffers with values, but got some on the meta device; "
            r"call model.to_empty\(device=...\) and load a state dict first$")):
        analyze(model, rows(5, 3))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("criterion", CRITERIA)
def test_layers_without_weights_are_named(criterion):
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.none, self.some, self.head = nn.Linear(3, 0), nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.cat([self.none(x), self.some(x)], 1))

    data, how = [(rows(5, 3), labels(5))], {"loss": nn.functional.cross_entropy}
    usage = analyze(Beside(), data, criterion=criterion, **how)
    assert list(usage.layers) == ["some"]
    assert usage.skipped["none"] == "it has no weights: its shape is (0, 3)"
    empty = nn.Sequential(nn.Linear(3, 0), nn.Linear(0, 2))
    with pytest.raises(ValueError, match=r"^model: expected a layer .* but found none \(0: it has "
                                         r"no weights: its shape is \(0, 3\); 1: it has no"):
        analyze(empty, data, criterion=criterion, **how)
