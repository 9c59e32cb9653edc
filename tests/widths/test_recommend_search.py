"""``recommend_widths(method="search")``: what is trained, what is found, and the curves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.networks import kept_streams, mlp
from wua_mlflow.widths.recommend import recommend_widths
from wua_mlflow.widths.retrain_search import Search


@pytest.fixture(autouse=True)
def _seeded():
    with kept_streams():
        yield


def right(share):
    """Scores of 1,000 examples of which so many in a hundred are right."""
    return (np.arange(1000) % 100 < share).astype(float)


@pytest.mark.parametrize("runs", [None, 3])
def test_the_smallest_width_whose_retrained_network_is_as_good(runs):
    model, data = mlp(4, 16, 3), (torch.randn(60, 4), torch.arange(60) % 3)
    trained = []

    def retrain(widths):
        trained.append(dict(widths))
        return right(90 if widths["0"] >= 5 else 60)

    result = recommend_widths(model, data, method="search", margin=0.02,
                              search=Search(retrain, runs=runs))
    layer, = result.layers
    assert trained[0] == {"0": 16}
    assert layer.alone == recommend_widths(model, data, method="rank").widths["0"]
    assert layer.curve.widths == tuple(sorted({widths["0"] for widths in trained}))
    assert layer.curve.scores == tuple(
        pytest.approx(0.9 if width >= 5 else 0.6) for width in layer.curve.widths)
    assert layer.curve.threshold == pytest.approx(0.88)
    assert f"{len(trained) - 1} narrower networks were tried" in result.note
    if runs is None:
        assert result.widths == {"0": 5} and {"0": 4} in trained
    else:
        assert len(trained) == runs and "ended by its budget" in result.note


def test_several_layers_at_once_and_the_cost():
    model = mlp(4, 16, 16, 3)
    data = torch.randn(60, 4), torch.arange(60) % 3
    first, second = recommend_widths(model, data).widths

    def retrain(widths):
        assert list(widths) == [first, second]
        return right(90 if widths[first] >= 12 and widths[second] >= 2 else 60)

    widths = recommend_widths(model, data, method="search", search=Search(
        retrain, runs=16, cost=lambda widths: widths[first] + 10 * widths[second])).widths
    assert widths[first] >= 12
    assert 2 <= widths[second] < 12, "moved by itself, off the common path"
