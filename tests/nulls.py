"""Networks that can be re-initialised, wholly or in part, and what each draw makes of them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from wua_mlflow.usage.analyze import analyze
from wua_mlflow.usage.null import with_null
from wua_mlflow.usage.results import ModelUsage


class Plain(nn.Module):
    """A layer with a weight and nothing to initialise it anew."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(units, inputs).exp())
        self.bias = nn.Parameter(torch.randn(units))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


class Scale(nn.Module):
    """A layer with a parameter and nothing to initialise it anew."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(units))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def trained(*extra: nn.Module) -> nn.Sequential:
    """A network whose first layer holds a pattern that no initialisation would draw."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), *extra, nn.ReLU(), nn.Linear(40, 2))
    model[0].weight.data = torch.randn(40, 30).exp()
    return model


def stuck() -> nn.Sequential:
    """A network whose first layer cannot be re-initialised, and the two after it can."""
    torch.manual_seed(0)
    return nn.Sequential(Plain(30, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 2))


def states(model: nn.Module, inputs: Tensor, draws: int = 2) -> list[dict[str, Tensor]]:
    """What each draw's network holds; the model itself must be left exactly as found."""
    before, seen = copy.deepcopy(model.state_dict()), []
    usage = analyze(model, inputs)

    def measure(blank: nn.Module) -> dict[str, ModelUsage]:
        seen.append(copy.deepcopy(blank.state_dict()))
        return {"output": usage}

    with_null({"output": usage}, model, measure, draws=draws, seed=0)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    return seen


INPUTS = torch.rand(50, 30, generator=torch.Generator().manual_seed(1))
