"""What is wrong with a request is said in one line; the model is left as found, come what may."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.model_forms import Layers
from tests.networks import kept_streams, labels, mlp, rows, snapshot
from tests.widths.network_cases import trained
from wua_mlflow.pruning.cut import unit_groups
from wua_mlflow.widths.recommend import METHODS, recommend_widths
from wua_mlflow.widths.retrain_search import Search

GOOD = rows(10, 3), labels(10, 2)


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


@pytest.mark.parametrize("method", ["rank", "projection", "ablation"])
def test_the_model_is_left_as_found_when_its_forward_raises(method):
    def run(model, x):
        calls.append(x)
        if len(calls) == model.at:
            raise RuntimeError("now")
        return model.second(model.first(x).relu())

    calls = []
    model = Layers(run, first=nn.Linear(3, 5), second=nn.Linear(5, 2))
    model.at = 0
    structure, before = unit_groups(model, rows(2, 3)), snapshot(model)
    calls.clear()
    recommend_widths(model, GOOD, method=method, structure=structure)
    for model.at in range(1, len(calls) + 1):
        calls.clear()
        with pytest.raises(RuntimeError, match="now"):
            recommend_widths(model, GOOD, method=method, structure=structure)
        assert snapshot(model) == before


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
