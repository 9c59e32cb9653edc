"""Widths of trained networks, against units deleted by hand and widths that are known.

What is wrong with a request is said in one line; the model is left as found, come what may.
"""

import numpy as np
import pytest
import torch
from torch import nn

from tests.model_forms import Layers
from tests.networks import labels, mlp, rows, snapshot
from tests.pruning.cutting_cases import Stream
from tests.widths.network_cases import rescaled, trained, with_copies, without
from wua_mlflow.pruning.cut import cut, unit_groups
from wua_mlflow.pruning.importance import most_important, unit_importance
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.widths.recommend import METHODS, effective_widths, recommend_widths
from wua_mlflow.widths.retrain_search import Search

GOOD = rows(10, 3), labels(10, 2)
STRUCTURES = {}


def recommended(model, data, **options):
    """With the groups of units, which are found once for networks of the same layers."""
    if str(model) not in STRUCTURES:
        STRUCTURES[str(model)] = unit_groups(model, data[0][:2])
    return recommend_widths(model, data, structure=STRUCTURES[str(model)], **options)


def accuracy(model, data):
    return (model(data[0]).argmax(1) == data[1]).double().mean().item()


def by_taylor(model, data, index):
    """Units from the least important up: |Σ a · dL/da| over activations, by autograd."""
    hidden = model[:index + 2](data[0])
    loss = nn.functional.cross_entropy(model[index + 2:](hidden), data[1])
    gradient, = torch.autograd.grad(loss, hidden)
    return (hidden * gradient).sum(0).abs().argsort().tolist()


def smallest(scores, margin):
    """The smallest number of units from which on every score is within the margin."""
    return next(kept for kept in range(1, len(scores) + 1)
                if min(scores[kept - 1:]) >= scores[-1] - margin - 1e-9)


@pytest.mark.parametrize(("criterion", "seed", "margin"), [
    (None, 0, 0.02), (None, 1, 0.1), ("magnitude", 0, 0.02), ("wanda", 0, 0.0)])
def test_ablation_of_one_layer_by_deleting_units(criterion, seed, margin):
    model, data = trained(12, seed=seed)
    order = by_taylor(model, data, 0) if criterion is None else unit_importance(
        model, unit_groups(model, data[0][:2]), data, nn.functional.cross_entropy,
        criterion=criterion)["0"].argsort().tolist()
    scores = [accuracy(without(model, {0: order[:12 - kept]}), data) for kept in range(1, 13)]
    result = recommended(model, data, margin=margin, method="ablation", criterion=criterion)
    (layer,), exact = result.layers, smallest(scores, margin)
    assert result.widths == {"0": exact} and layer.alone == exact and result.joint is None
    assert layer.curve.widths == tuple(range(1, 13)) and layer.curve.scores == pytest.approx(scores)
    assert layer.curve.baseline == pytest.approx(accuracy(model, data))
    assert layer.curve.axis == "accuracy"


@pytest.mark.parametrize(("method", "margin"), [("ablation", 0.05), ("projection", 0.02)])
def test_all_layers_at_once_are_within_the_margin(method, margin):
    """Each may lose its units alone; by hand, not both theirs."""
    model, data = trained(16, 12, seed=2)
    result = recommended(model, data, method=method, margin=margin)
    floor, score = accuracy(model, data) - margin - 1e-9, dict(zip(
        result.joint.widths, result.joint.scores, strict=True))[sum(result.widths.values())]
    assert score >= floor
    for layer in result.layers:
        assert 1 <= layer.alone <= layer.width <= layer.units
    apart = recommended(model, data, method=method, margin=margin, jointly=False)
    assert apart.widths == {layer.layer: layer.alone for layer in result.layers}
    assert recommended(model, data, method=method, margin=margin, layers=["2"]).widths == {
        "2": apart.widths["2"]}
    if method == "ablation":
        def score_at(widths):
            return accuracy(without(model, {
                index: by_taylor(model, data, index)[:units - widths[str(index)]]
                for index, units in ((0, 16), (2, 12)) if str(index) in widths}), data)

        assert score_at(result.widths) == pytest.approx(score)
        assert all(score_at({name: width}) >= floor for name, width in apart.widths.items())
        assert score_at(apart.widths) < floor and apart.widths != result.widths


@pytest.mark.parametrize("method", ["rank", "projection"])
def test_directions_from_other_data(method):
    model, data = trained(12)
    curves = [recommended(model, data, method=method, fit_data=fit).layers[0].curve
              for fit in (None, data[0], torch.rand(50, 2) * 0.1)]
    assert curves[0] == curves[1] and curves[0].scores != curves[2].scores


@pytest.mark.parametrize("read", [True, False])
def test_three_functions_in_32_units(read):
    model, data = with_copies(read=read)
    widths = {method: recommended(model, data, method=method, margin=0.0).widths["0"]
              for method in ("rank", "projection", "ablation")}
    assert widths["rank"] == widths["projection"] == 3
    if read:  # ablation takes units away, and does not give their part to their copies
        assert widths["ablation"] > 3
    else:
        assert widths["ablation"] == 3


@pytest.mark.parametrize("method", ["rank", "projection", "ablation"])
def test_units_written_larger_and_read_less_change_nothing(method):
    model, data = trained(16, 12, seed=2)
    factors = 2.0 ** torch.randint(-3, 4, (16,))
    result, before = (recommended(network, data, method=method)
                      for network in (rescaled(model, factors), model))
    assert result.widths == before.widths
    for layer, other in zip(result.layers, before.layers, strict=True):
        assert layer.curve.scores == pytest.approx(other.curve.scores, abs=1e-6)


@pytest.mark.parametrize("criterion", [None, "magnitude", "taylor"])
def test_effective_is_the_tutorials_rule(criterion):
    model, data = trained(16, 12, seed=2)
    usage = analyze(model, [data] if criterion == "taylor" else data[0],
                    criterion=criterion or "output", loss=nn.functional.cross_entropy)
    result = recommended(model, data, method="effective", criterion=criterion)
    assert tuple(result.widths.values()) == effective_widths(usage, (16, 12), (("0",), ("2",)))
    for layer in result.layers:
        most = np.sort(usage.layers[layer.layer].unit_importance)[::-1]
        assert layer.curve.scores == pytest.approx(np.cumsum(most) / most.sum(), rel=1e-5)
        assert layer.curve.threshold == layer.curve.scores[layer.width - 1]
        assert f"{usage.layers[layer.layer].effective_share:.4f}" in layer.curve.axis


def test_a_convolution_with_batch_norm():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
                          nn.Linear(8 * 16, 3))
    model[1].running_mean.uniform_(-0.2, 0.2)
    model[1].bias.data.uniform_(0, 0.5)
    model[4].weight.data.unflatten(1, (8, 16))[:, 3:].zero_()  # five channels are not read
    inputs = rows(60, 1, 6, 6)
    data = inputs, model.eval()(inputs).argmax(1)
    before = snapshot(model.train())
    for method in ("rank", "projection", "ablation"):
        result = recommended(model, data, method=method, margin=0.0)
        assert 1 <= result.widths["0"] <= 3, method
        assert "1" in result.layers[0].layers or result.layers[0].layers == ("0",)
    assert snapshot(model) == before


def test_a_random_order_is_the_seeds():
    model, data = trained(12)
    curves = [recommended(model, data, method="ablation", criterion="random",
                               seed=seed).layers[0].curve for seed in (1, 1, 2)]
    assert curves[0] == curves[1] != curves[2]


def test_regression_and_a_score_of_ones_own():
    inputs, model = rows(80, 3), mlp(3, 9, 1)
    data = inputs, model(inputs).detach() + 0.01 * torch.randn(80, 1)
    curve = recommended(model, data, method="ablation").layers[0].curve
    assert curve.axis == "R²" and curve.baseline > 0.5
    curve = recommended(model, data, loss=lambda o, t: (o - t).abs().mean(),
                             score=lambda o, t: -(o - t).abs()[:, 0],
                             method="ablation").layers[0].curve
    assert curve.baseline == pytest.approx(-(model(inputs) - data[1]).abs().mean().item(), rel=1e-4)


def test_recurrent_units():
    model = Layers(lambda model, x: model.head(model.rnn(x)[0][:, -1]),
                   rnn=nn.LSTM(3, 7, batch_first=True), head=nn.Linear(7, 2))
    data = rows(40, 5, 3), labels(40)
    for method in ("rank", "ablation"):
        assert 1 <= recommended(model, data, method=method, margin=0.1).widths["rnn"] <= 7
    result = recommended(model, data, method="projection")
    assert result.widths == {}
    assert result.skipped["rnn"] == "its units are read by their own layer at the next step"


def test_attention_and_feed_forward():
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(),
                          nn.Linear(24, 2))
    data = rows(20, 3, 8), labels(20)
    names = {group.kind: group.name for group in unit_groups(model, data[0][:2]).groups}
    assert set(names) == {"units", "heads"}
    for method in ("rank", "projection"):
        result = recommended(model, data, method=method)
        assert list(result.widths) == [names["units"]]
        assert result.skipped[names["heads"]] == "its units are heads, not activations"
    result = recommended(model, data, method="ablation")
    assert set(result.widths) == set(names.values())


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

    result = recommended(model, data, method="search", margin=0.02,
                              search=Search(retrain, runs=runs))
    layer, = result.layers
    assert trained[0] == {"0": 16}
    assert layer.alone == recommended(model, data, method="rank").widths["0"]
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
    first, second = recommended(model, data).widths

    def retrain(widths):
        assert list(widths) == [first, second]
        return right(90 if widths[first] >= 12 and widths[second] >= 2 else 60)

    widths = recommended(model, data, method="search", search=Search(
        retrain, runs=16, cost=lambda widths: widths[first] + 10 * widths[second])).widths
    assert widths[first] >= 12
    assert 2 <= widths[second] < 12, "moved by itself, off the common path"


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
        if len(calls) >= model.at > 0:
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
    ({"margin": 1.0}, f"{MARGIN}1.0"), ({"margin": -0.01}, f"{MARGIN}-0.01"),
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
    ({"method": "ablation", "fit_data": GOOD[0]},
     "fit_data: expected none for the method ablation"),
    ({"method": "projection", "fit_data": torch.full((9, 3), torch.nan)},
     "data: expected finite inputs"),
    ({"method": "search"}, r"^search: expected a Search \(how networks are trained\) for the "
                           "method search, but got None$"),
    ({"search": Search(len)}, "^search: expected none for the method rank, but got"),
    ({"data": GOOD[0]}, r"data: expected a pair \(inputs, targets\), .* but got Tensor"),
    ({"model": nn.Sequential(nn.Linear(3, 2))},
     "model: expected a layer whose units can be removed, but got none")])
def test_what_is_wrong_in_one_line(options, message):
    options = {"model": mlp(3, 6, 2), "data": GOOD, **options}
    before = snapshot(options["model"])
    with pytest.raises(ValueError, match=message) as raised:
        recommend_widths(**options)
    assert "\n" not in str(raised.value)
    assert snapshot(options["model"]) == before


def test_the_models_width_where_it_is_asked_for():
    """An ablation scores what a cut network scores."""
    torch.manual_seed(1)
    model, x = Stream(10, 6).eval(), torch.randn(80, 4)
    data = x, model(x).argmax(1)
    assert "stem" in recommend_widths(model, data, method="rank").skipped
    for method in ("rank", "projection", "effective", "ablation"):
        found = recommend_widths(model, data, method=method, margin=0.2, what="stream")
        assert list(found.widths) == ["stem"]
    (layer,) = found.layers
    structure = unit_groups(model, x[:4], ("stream",))
    importance = unit_importance(model, structure, data, nn.functional.cross_entropy)["stem"]
    for width, score in zip(layer.curve.widths, layer.curve.scores, strict=True):
        kept = most_important(importance, width)
        narrow = model if width == 10 else cut(model, x[:4], {"stem": kept}, structure).model
        assert score == pytest.approx(float((narrow(x).argmax(1) == data[1]).double().mean()))
    with pytest.raises(ValueError, match="^what: expected units, heads or stream, or several"):
        recommend_widths(model, data, what="streams")
