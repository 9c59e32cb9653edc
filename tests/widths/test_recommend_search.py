"""``recommend_widths(method="search")``: what is trained, what is found, and the curves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.networks import kept_streams, mlp
from tests.widths.network_cases import trained
from wua_mlflow.widths.recommend import recommend_widths
from wua_mlflow.widths.retrain_search import Search


@pytest.fixture(autouse=True)
def _seeded():
    with kept_streams():
        torch.manual_seed(0)
        yield


def right(share, seeds=1):
    """Scores of 1,000 examples of which so many in a hundred are right."""
    return np.tile(np.arange(1000) % 100 < share, (seeds, 1)).astype(float)


def test_the_smallest_width_whose_retrained_network_is_as_good():
    model, data = mlp(4, 16, 3), (torch.randn(60, 4), torch.arange(60) % 3)
    asked = []

    def retrain(widths):
        asked.append(dict(widths))
        return right(90 if widths["0"] >= 5 else 60)

    found = recommend_widths(model, data, method="search", margin=0.02, search=Search(retrain))
    assert found.widths == {"0": 5}
    assert asked[0] == {"0": 16}
    assert {"0": 4} in asked
    layer, = found.layers
    assert layer.alone == recommend_widths(model, data, method="rank").widths["0"]
    assert layer.curve.widths == tuple(sorted({widths["0"] for widths in asked}))
    assert layer.curve.scores == tuple(
        pytest.approx(0.9 if width >= 5 else 0.6) for width in layer.curve.widths)
    assert layer.curve.threshold == pytest.approx(0.88)
    assert f"{len(asked) - 1} narrower networks were tried" in found.note


def test_several_layers_at_once_and_the_cost():
    model = mlp(4, 16, 16, 3)
    data = torch.randn(60, 4), torch.arange(60) % 3
    names = list(recommend_widths(model, data).widths)

    def retrain(widths):
        assert list(widths) == names
        return right(90 if widths[names[0]] >= 12 and widths[names[1]] >= 2 else 60)

    found = recommend_widths(model, data, method="search", search=Search(
        retrain, runs=30, cost=lambda widths: widths[names[0]] + 10 * widths[names[1]]))
    assert found.widths[names[0]] >= 12
    assert 2 <= found.widths[names[1]] < 12, "moved by itself, off the common path"


def test_the_budget_holds():
    calls = []
    model, data = trained(8, 16)
    found = recommend_widths(model, data, method="search", search=Search(
        lambda widths: calls.append(widths) or right(90), runs=3))
    assert len(calls) == 3
    assert "ended by its budget" in found.note


def test_a_search_that_is_lacking_or_not_asked_for():
    model, data = trained(8, 6)
    with pytest.raises(ValueError, match=r"^search: expected a Search \(how networks are trained\) "
                                         "for the method search, but got None$"):
        recommend_widths(model, data, method="search")
    with pytest.raises(ValueError, match="^search: expected none for the method rank, but got"):
        recommend_widths(model, data, method="rank", search=Search(lambda widths: right(90)))
