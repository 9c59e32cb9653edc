"""Widths of trained networks, against units deleted by hand and widths that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.networks import kept_streams, labels, mlp, rows, snapshot
from tests.widths.network_cases import rescaled, trained, with_copies, without
from wua_mlflow.pruning.cut import unit_groups
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.widths.recommend import effective_widths, recommend_widths
from wua_mlflow.widths.results import WidthRecommendation


@pytest.fixture(autouse=True)
def _seeded():
    with kept_streams():
        torch.manual_seed(0)
        yield


def accuracy(model, data):
    return (model(data[0]).argmax(1) == data[1]).double().mean().item()


def by_taylor(model, data, index):
    """Units from the least important up: |Σ a · dL/da| over activations, by autograd."""
    hidden = model[:index + 2](data[0])
    loss = nn.functional.cross_entropy(model[index + 2:](hidden), data[1])
    gradient, = torch.autograd.grad(loss, hidden)
    return (hidden * gradient).sum(0).abs().argsort().tolist()


@pytest.mark.parametrize(("seed", "margin"), [(0, 0.02), (1, 0.0), (2, 0.1)])
def test_ablation_of_one_layer_by_deleting_units(seed, margin):
    model, data = trained(12, seed=seed)
    order = by_taylor(model, data, 0)
    scores = [accuracy(without(model, {0: order[:12 - kept]}), data) for kept in range(1, 13)]
    floor = scores[-1] - margin - 1e-9
    exact = next(k for k in range(1, 13) if min(scores[k - 1:]) >= floor)
    found = recommend_widths(model, data, margin=margin, method="ablation")
    layer, = found.layers
    assert found.widths == {"0": exact} and layer.alone == exact and found.joint is None
    assert layer.curve.widths == tuple(range(1, 13))
    assert layer.curve.scores == pytest.approx(scores)
    assert layer.curve.baseline == pytest.approx(accuracy(model, data))
    assert layer.curve.axis == "accuracy"


@pytest.mark.parametrize(("method", "margin"), [("ablation", 0.1), ("projection", 0.02)])
def test_all_layers_at_once_are_within_the_margin(method, margin):
    model, data = trained(16, 12)
    found = recommend_widths(model, data, method=method, margin=margin)
    points = dict(zip(found.joint.widths, found.joint.scores, strict=True))
    assert points[sum(found.widths.values())] >= accuracy(model, data) - margin - 1e-9
    for one in found.layers:
        assert 1 <= one.alone <= one.width <= one.units
    apart = recommend_widths(model, data, method=method, margin=margin, jointly=False)
    assert apart.widths == {one.layer: one.alone for one in found.layers}
    if method == "ablation":
        removed = {index: by_taylor(model, data, index)[:units - found.widths[str(index)]]
                   for index, units in ((0, 16), (2, 12))}
        assert accuracy(without(model, removed), data) == pytest.approx(
            points[sum(found.widths.values())])


def test_losses_that_add_up_leave_wider_layers():
    """Each may lose its units alone; by hand, not both theirs."""
    model, data = trained(16, 12, seed=5)
    found = recommend_widths(model, data, margin=0.05, method="ablation")
    floor = accuracy(model, data) - 0.05
    least = {index: by_taylor(model, data, index)[:one.units - one.alone]
             for index, one in zip((0, 2), found.layers, strict=True)}
    for index, units in least.items():
        assert accuracy(without(model, {index: units}), data) >= floor
    assert accuracy(without(model, least), data) < floor
    assert any(one.alone < one.width for one in found.layers)


@pytest.mark.parametrize("seed", [0, 2])
def test_projection_of_one_layer_by_hand(seed):
    model, data = trained(10, seed=seed)
    weight, bias = (p.detach().double().numpy() for p in (model[2].weight, model[2].bias))
    hidden = model[:2](data[0]).detach().double().numpy()
    scale, mean = np.linalg.norm(weight, axis=0), hidden.mean(0)
    _, _, directions = np.linalg.svd((hidden - mean) * scale)

    def score(kept):
        v = directions[:kept]
        outputs = (mean + (hidden - mean) * scale @ v.T @ v / scale) @ weight.T + bias
        return float((outputs.argmax(1) == data[1].numpy()).mean())

    scores = [score(kept) for kept in range(1, 11)]
    exact = next(k for k in range(1, 11) if min(scores[k - 1:]) >= scores[-1] - 0.02 - 1e-9)
    layer, = recommend_widths(model, data, method="projection").layers
    assert layer.width == exact
    assert layer.curve.scores == pytest.approx(scores)


def test_directions_from_other_data():
    model, data = trained(10)
    other = torch.rand(50, 2) * 0.1
    found = recommend_widths(model, data, method="projection", fit_data=other)
    same = recommend_widths(model, data, method="projection", fit_data=data[0])
    assert same == recommend_widths(model, data, method="projection")
    assert found.layers[0].curve.scores != same.layers[0].curve.scores
    ranks = [recommend_widths(model, data, method="rank", fit_data=fit).layers[0].curve.axis
             for fit in (None, data[0], other)]
    assert ranks[0] == ranks[1] != ranks[2]


@pytest.mark.parametrize("read", [True, False])
def test_three_functions_in_32_units(read):
    model, data = with_copies(read=read)
    widths = {method: recommend_widths(model, data, method=method, margin=0.0).widths["0"]
              for method in ("rank", "projection", "ablation")}
    assert widths["rank"] == widths["projection"] == 3
    if read:  # ablation takes units away, and does not give their part to their copies
        assert widths["ablation"] > 3
    else:
        assert widths["ablation"] == 3


@pytest.mark.parametrize("method", ["rank", "projection", "ablation"])
def test_units_written_larger_and_read_less_change_nothing(method):
    model, data = trained(16, 12)
    factors = 2.0 ** torch.randint(-3, 4, (16,))
    found = recommend_widths(rescaled(model, 0, factors), data, method=method)
    before = recommend_widths(model, data, method=method)
    assert found.widths == before.widths
    for one, other in zip(found.layers, before.layers, strict=True):
        assert one.curve.scores == pytest.approx(other.curve.scores, abs=1e-6)


def test_effective_is_the_tutorials_rule():
    model, data = trained(16, 12)
    for criterion in ("output", "magnitude", "taylor"):
        usage = analyze(model, [data] if criterion == "taylor" else data[0], criterion=criterion,
                        loss=nn.functional.cross_entropy)
        found = recommend_widths(model, data, method="effective", criterion=criterion)
        assert tuple(found.widths.values()) == effective_widths(usage, (16, 12), (("0",), ("2",)))
        for one in found.layers:
            most = np.sort(usage.layers[one.layer].unit_importance)[::-1]
            assert one.curve.scores == pytest.approx(np.cumsum(most) / most.sum(), rel=1e-5)
            assert one.curve.threshold == one.curve.scores[one.width - 1]
            assert f"{usage.layers[one.layer].effective_share:.4f}" in one.curve.axis
    assert recommend_widths(model, data, method="effective").widths == recommend_widths(
        model, data, method="effective", criterion="output").widths


def test_a_convolution_with_batch_norm():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
                          nn.Linear(8 * 16, 3))
    with torch.no_grad():
        model[1].running_mean.uniform_(-0.2, 0.2)
        model[1].bias.uniform_(0, 0.5)
        model[4].weight.unflatten(1, (8, 16))[:, 3:].zero_()  # five channels are not read
    inputs = rows(60, 1, 6, 6)
    model.eval()
    data = inputs, model(inputs).argmax(1)
    model.train()
    before = snapshot(model)
    for method in ("rank", "projection", "ablation"):
        found = recommend_widths(model, data, method=method, margin=0.0)
        assert 1 <= found.widths["0"] <= 3, method
        assert "1" in found.layers[0].layers or found.layers[0].layers == ("0",)
    assert snapshot(model) == before


def test_some_layers_only():
    model, data = trained(16, 12)
    found = recommend_widths(model, data, layers=["2"], method="ablation")
    assert list(found.widths) == ["2"] and found.joint is None
    apart = recommend_widths(model, data, jointly=False, method="ablation")
    assert found.widths["2"] == apart.widths["2"]


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "output"])
def test_units_in_the_order_of_another_criterion(criterion):
    model, data = trained(10)
    weight, out = model[0].weight.detach(), model[2].weight.detach()
    order = {
        "magnitude": weight.square().sum(1) + model[0].bias.detach().square()
        + out.square().sum(0),
        "wanda": (weight.abs() * data[0].norm(dim=0)).sum(1),
        "output": (weight * model[0](data[0]).detach().mean(0)[:, None]).abs().sum(1),
    }[criterion].argsort().tolist()
    found = recommend_widths(model, data, criterion=criterion, method="ablation").layers[0].curve
    assert found.scores == pytest.approx([
        accuracy(without(model, {0: order[:10 - kept]}), data) for kept in range(1, 11)])


def test_a_random_order_is_the_seeds():
    model, data = trained(16)
    curves = [recommend_widths(model, data, method="ablation", criterion="random",
                               seed=seed).layers[0].curve for seed in (1, 1, 2)]
    assert curves[0] == curves[1] != curves[2]


def test_regression_and_a_score_of_ones_own():
    inputs = rows(80, 3)
    model = mlp(3, 9, 1)
    data = inputs, model(inputs).detach() + 0.01 * torch.randn(80, 1)
    found = recommend_widths(model, data, method="ablation")
    assert found.layers[0].curve.axis == "R²" and found.layers[0].curve.baseline > 0.5
    own = recommend_widths(model, data, loss=lambda o, t: (o - t).abs().mean(),
                           score=lambda o, t: -(o - t).abs()[:, 0], method="ablation")
    assert own.layers[0].curve.baseline == pytest.approx(
        -(model(inputs) - data[1]).abs().mean().item(), rel=1e-4)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.LSTM(3, 7, batch_first=True), nn.Linear(7, 2)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


def test_recurrent_units():
    model, data = Recurrent(), (rows(40, 5, 3), labels(40))
    for method in ("rank", "ablation"):
        assert 1 <= recommend_widths(model, data, method=method, margin=0.1).widths["rnn"] <= 7
    found = recommend_widths(model, data, method="projection")
    assert isinstance(found, WidthRecommendation) and found.widths == {}
    assert found.skipped["rnn"] == "its units are read by their own layer at the next step"


def test_attention_and_feed_forward():
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(),
                          nn.Linear(40, 2))
    data = rows(40, 5, 8), labels(40)
    names = {group.kind: group.name for group in unit_groups(model, data[0][:2]).groups}
    assert set(names) == {"units", "heads"}
    for method in ("rank", "projection"):
        found = recommend_widths(model, data, method=method)
        assert list(found.widths) == [names["units"]]
        assert found.skipped[names["heads"]] == "its units are heads, not activations"
    assert set(recommend_widths(model, data, method="ablation").widths) == set(names.values())
