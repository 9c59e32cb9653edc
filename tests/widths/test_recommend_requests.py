"""What is wrong with a request is said in one line; the model is left as found, come what may."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.networks import kept_streams, labels, mlp, restless, rows, snapshot
from tests.widths.network_cases import trained
from wua_mlflow.pruning.cut import unit_groups
from wua_mlflow.widths.recommend import METHODS, recommend_widths

UNTRAINED = [method for method in METHODS if method != "search"]


@pytest.fixture(autouse=True)
def _seeded():
    with kept_streams():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("method", UNTRAINED)
def test_the_global_streams_and_the_model_are_left_alone(method):
    model, data = trained(8, 6)
    model.train()
    model[0].weight.requires_grad_(False)
    before, state = snapshot(model), torch.get_rng_state()
    recommend_widths(model, data, method=method)
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


class Failing(nn.Module):
    """Raises at a chosen call."""

    def __init__(self, at):
        super().__init__()
        self.first, self.second, self.calls, self.at = nn.Linear(3, 8), nn.Linear(8, 2), 0, at

    def forward(self, x):
        self.calls += 1
        found = self.second(self.first(x).relu())
        if self.calls == self.at:
            raise RuntimeError("now")
        return found


@pytest.mark.parametrize("method", ["rank", "projection", "ablation"])
def test_the_model_is_left_as_found_when_its_forward_raises(method):
    whole = Failing(at=0)
    structure = unit_groups(whole, rows(2, 3))
    data = rows(30, 3), labels(30)
    whole.calls = 0
    recommend_widths(whole, data, method=method, structure=structure)
    for at in range(1, whole.calls + 1):
        model = Failing(at)
        before = snapshot(model)
        with pytest.raises(RuntimeError, match="now"):
            recommend_widths(model, data, method=method, structure=structure)
        assert snapshot(model) == before


GOOD = rows(10, 3), labels(10, 2)


@pytest.mark.parametrize(("options", "message"), [
    ({"margin": 1.0}, r"margin: expected a number in \[0, 1\), but got 1.0"),
    ({"margin": -0.01}, r"margin: expected a number in \[0, 1\), but got -0.01"),
    ({"margin": float("nan")}, r"margin: expected a number in \[0, 1\), but got nan"),
    ({"margin": "0.1"}, r"margin: expected a number in \[0, 1\), but got '0.1'"),
    ({"method": "abblation"}, "method: expected one of effective, rank, projection, ablation, "
                              "search, but got 'abblation'; did you mean 'ablation'"),
    ({"method": "rank", "criterion": "taylor"}, "criterion: expected none for the method rank"),
    ({"criterion": "taylor"}, "criterion: expected none for the method rank"),
    ({"method": "ablation", "criterion": "tailor"}, "criterion: expected .*but got 'tailor'"),
    ({"method": "effective", "criterion": "tailor"}, "criterion: expected .*but got 'tailor'"),
    ({"layers": ["0", "3"]}, "layers: expected layers whose units can be cut, but got '3'"),
    ({"layers": ["2"]}, "layers: expected layers whose units can be cut, but got '2'"),
    ({"layers": []}, "layers: expected at least one name, but got none"),
    ({"seed": -1}, "seed: expected a whole number"),
    ({"task": "words"}, "task: expected one of binary, multiclass, regression, but got 'words'"),
    ({"task": "words", "method": "rank"}, "task: expected one of binary, multiclass, regression"),
    ({"method": "ablation", "fit_data": GOOD[0]},
     "fit_data: expected none for the method ablation"),
    ({"method": "projection", "fit_data": torch.full((9, 3), torch.nan)},
     "data: expected finite inputs"),
])
def test_what_is_wrong_in_one_line(options, message):
    model = mlp(3, 6, 2)
    before = snapshot(model)
    with pytest.raises(ValueError, match=message) as raised:
        recommend_widths(model, GOOD, **options)
    assert "\n" not in str(raised.value)
    assert snapshot(model) == before


@pytest.mark.parametrize("method", ["effective", "projection"])
@pytest.mark.parametrize(("data", "message"), [
    (GOOD[0], r"data: expected a pair \(inputs, targets\), but got Tensor"),
    ((GOOD[0], GOOD[1][:9]), "data: expected as many targets as inputs"),
    ((GOOD[0][:1], GOOD[1][:1]), "data: expected at least two examples, but got 1"),
    ((GOOD[0] * torch.nan, GOOD[1]), "data: expected finite inputs, but got NaN"),
])
def test_data_that_are_wrong(method, data, message):
    with pytest.raises(ValueError, match=message):
        recommend_widths(mlp(3, 6, 2), data, method=method)


def test_a_model_whose_units_all_go_out():
    with pytest.raises(ValueError, match="model: expected a layer whose units can be removed, but "
                                         "got none") as raised:
        recommend_widths(nn.Sequential(nn.Linear(3, 2)), GOOD)
    assert "\n" not in str(raised.value)


def test_a_model_that_changes_itself_is_left_as_found():
    model = restless()
    before = snapshot(model)
    with pytest.raises((ValueError, RuntimeError)):
        recommend_widths(model, (torch.full((4, 3), 101.0), labels(4)))
    assert snapshot(model) == before
