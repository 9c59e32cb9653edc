"""What is wrong with a request is said in one line; the model is left as found, come what may."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.networks import kept_streams, labels, mlp, rows, snapshot
from tests.widths.network_cases import trained
from wua_mlflow.pruning.cut import unit_groups
from wua_mlflow.widths.recommend import METHODS, recommend_widths
from wua_mlflow.widths.retrain_search import Search


@pytest.fixture(autouse=True)
def _seeded():
    with kept_streams():
        yield


@pytest.mark.parametrize("method", [method for method in METHODS if method != "search"])
def test_the_global_streams_and_the_model_are_left_alone(method):
    model, data = trained(9, 7)
    model.train()
    model[0].weight.requires_grad_(False)
    before = snapshot(model)
    recommend_widths(model, data, method=method)
    assert snapshot(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())


class Failing(nn.Module):
    """Raises at a chosen call."""

    def __init__(self, at):
        super().__init__()
        self.first, self.second, self.calls, self.at = nn.Linear(3, 5), nn.Linear(5, 2), 0, at

    def forward(self, x):
        self.calls += 1
        if self.calls == self.at:
            raise RuntimeError("now")
        return self.second(self.first(x).relu())


@pytest.mark.parametrize("method", ["rank", "projection", "ablation"])
def test_the_model_is_left_as_found_when_its_forward_raises(method):
    whole, data = Failing(at=0), (rows(30, 3), labels(30))
    structure = unit_groups(whole, rows(2, 3))
    whole.calls = 0
    recommend_widths(whole, data, method=method, structure=structure)
    for at in range(1, whole.calls + 1):
        model = Failing(at)
        before = snapshot(model)
        with pytest.raises(RuntimeError, match="now"):
            recommend_widths(model, data, method=method, structure=structure)
        assert snapshot(model) == before


GOOD = rows(10, 3), labels(10, 2)
MARGIN = r"margin: expected a number in \[0, 1\), but got "


@pytest.mark.parametrize(("options", "message"), [
    ({"margin": 1.0}, f"{MARGIN}1.0"),
    ({"margin": -0.01}, f"{MARGIN}-0.01"),
    ({"margin": float("nan")}, f"{MARGIN}nan"),
    ({"margin": "0.1"}, f"{MARGIN}'0.1'"),
    ({"method": "abblation"}, "method: expected one of effective, rank, projection, ablation, "
                              "search, but got 'abblation'; did you mean 'ablation'"),
    ({"criterion": "taylor"}, "criterion: expected none for the method rank"),
    ({"method": "ablation", "criterion": "tailor"}, "criterion: expected .*but got 'tailor'"),
    ({"method": "effective", "criterion": "tailor"}, "criterion: expected .*but got 'tailor'"),
    ({"layers": ["0", "3"]}, "layers: expected layers whose units can be cut, but got '3'"),
    ({"layers": ["2"]}, "layers: expected layers whose units can be cut, but got '2'"),
    ({"layers": []}, "layers: expected at least one name, but got none"),
    ({"seed": -1}, "seed: expected a whole number"),
    ({"task": "words"}, "task: expected one of binary, multiclass, regression, but got 'words'"),
    ({"method": "ablation", "fit_data": GOOD[0]},
     "fit_data: expected none for the method ablation"),
    ({"method": "projection", "fit_data": torch.full((9, 3), torch.nan)},
     "data: expected finite inputs"),
    ({"method": "search"}, r"^search: expected a Search \(how networks are trained\) for the "
                           "method search, but got None$"),
    ({"search": Search(len)}, "^search: expected none for the method rank, but got"),
    ({"data": GOOD[0]}, r"data: expected a pair \(inputs, targets\), but got Tensor"),
    ({"model": nn.Sequential(nn.Linear(3, 2))},
     "model: expected a layer whose units can be removed, but got none"),
])
def test_what_is_wrong_in_one_line(options, message):
    options = {"model": mlp(3, 6, 2), "data": GOOD, **options}
    before = snapshot(options["model"])
    with pytest.raises(ValueError, match=message) as raised:
        recommend_widths(**options)
    assert "\n" not in str(raised.value)
    assert snapshot(options["model"]) == before
