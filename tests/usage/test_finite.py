"""NaN and infinity name layer and batch; an importance of zero everywhere is legal."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.networks import Layers, labels, mlp, rows
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.usage.criteria import CRITERIA


def breaking(value: float) -> Layers:
    """Activations between two layers that are no longer finite in some batch."""
    def run(model: Layers, x: Tensor) -> Tensor:
        hidden = model.first(x)
        return model.head(model.second(hidden * value if (x > 5).any() else hidden))

    return Layers(run, first=nn.Linear(3, 4), second=nn.Linear(4, 4), head=nn.Linear(4, 2))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("criterion", "what"), [
    ("output", "output"), ("magnitude", "output"), ("taylor", "output"), ("input", "input"),
    ("wanda", "input"), (["input", "wanda"], "input"), (list(CRITERIA), "output")])
def test_activations_that_are_not_finite_name_layer_and_batch(criterion, what, value):
    data = [(rows(4, 3), labels(4))] * 4 + [(rows(4, 3) + 10, labels(4))] + [
        (rows(4, 3), labels(4))]
    with pytest.raises(ValueError, match=f"^layer second: expected a finite {what}, but got NaN or "
                                         "infinity by batch 4$"):
        analyze(breaking(value), data, criterion=criterion,
                loss=lambda outputs, targets: outputs.nan_to_num(0, 0, 0).sum())


@pytest.mark.parametrize("value", [math.nan, -math.inf])
@pytest.mark.parametrize("criterion", ["output", "wanda"])
def test_data_that_are_not_finite_name_layer_and_batch(criterion, value):
    broken = rows(7, 3)
    broken[6, 2] = value
    with pytest.raises(ValueError, match="^layer 0: expected a finite (in|out)put, but got NaN or "
                                         "infinity by batch 2, which is not finite itself$"):
        analyze(mlp(3, 4, 2), [rows(7, 3), rows(7, 3), broken, rows(7, 3)], criterion=criterion)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_weights_that_are_not_finite_name_the_layer(criterion, value):
    model = mlp(3, 4, 4, 2)
    model[2].weight.data[1, 1] = value
    layer, what = (4, "input") if criterion in ("input", "wanda") else (2, "output")
    with pytest.raises(ValueError, match=f"^layer {layer}: expected a finite {what}, but got NaN "
                                         "or infinity by batch 0; parameter '2.weight' is not "
                                         "finite$"):
        analyze(model, [(rows(5, 3), labels(5))], criterion=criterion,
                loss=lambda outputs, targets: outputs.nan_to_num(0, 0, 0).sum())


@pytest.mark.parametrize("criterion", ["magnitude", "wanda"])
def test_a_weight_that_is_not_finite_where_no_sum_shows_it(criterion):
    model = mlp(3, 4, 2)
    model[0].weight.data[1, 1] = math.inf
    inputs = rows(5, 3).clamp(min=0.5) * -1  # minus infinity, which the ReLU makes zero
    with pytest.raises(ValueError, match="^layer 0: expected a finite "):
        analyze(model, inputs, criterion=criterion)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_an_importance_of_zero_everywhere_is_legal_and_flagged(criterion):
    model = mlp(3, 4, 4, 2)
    with torch.no_grad():  # as LoRA's B before training
        model[2].weight.zero_()
        model[2].bias.fill_(1.0)
    usage = analyze(model, [(rows(5, 3), labels(5))], criterion=criterion,
                    loss=nn.functional.cross_entropy)
    layer = usage.layers["2"]
    assert layer.dead
    assert (layer.entropy, layer.effective_weights, layer.effective_share, layer.top90_share) == (
        0.0, 0.0, 0.0, 0.0)
    assert layer.low_share == (1.0 if criterion == "output" else 0.0)
    if criterion != "taylor":  # whose units have a measure of their own
        units = layer.unit_usage
        assert (units.count, units.effective, units.top90_share) == (4, 0.0, 0.0)
    assert not usage.layers["0"].dead or criterion == "taylor"  # its gradient passes the dead one
    assert usage.weights == 12 + 16


def test_hardly_anything_is_no_zero():
    model = mlp(3, 4, 2)
    model[0].weight.data.mul_(1e-20)
    layer = analyze(model, rows(5, 3), criterion="magnitude").layers["0"]
    assert not layer.dead
    expected = analyze(mlp(3, 4, 2), rows(5, 3), criterion="magnitude").layers["0"]
    assert layer.entropy == pytest.approx(expected.entropy, rel=1e-6)


@pytest.mark.parametrize("criterion", ["wanda", ["input", "wanda"]])
def test_finite_activations_whose_squares_overflow(criterion):
    with pytest.raises(ValueError, match=(
            "^layer second: expected inputs whose squares float32 can hold, but their sum "
            "overflows by batch 1; scale the data down, choose criterion input, or run the model "
            r"in float64 \(model.double\(\)\)$")):
        analyze(breaking(1e22), [rows(4, 3), rows(4, 3) + 10], criterion=criterion)
    model, data = mlp(3, 4, 2), rows(5, 3) * 1e25
    assert analyze(model.double(), data, criterion="wanda").layers["0"].effective_weights > 1
    with pytest.raises(ValueError, match="^layer 0: expected inputs whose squares float64 can hold,"
                                         ".* scale the data down, choose criterion input$"):
        analyze(model, rows(5, 3).double() * 1e200, criterion="wanda")


@pytest.mark.parametrize(("model", "x"), [
    (nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.rand(64, 8)),
    (nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Flatten(), nn.Linear(144, 3)),
     torch.rand(8, 2, 6, 6)),
], ids=["linear", "convolution"])
def test_squares_too_small_for_float32_are_not_lost(model, x):
    """The share does not change with the scale of the data, down to float32's own end."""
    near, far = (analyze(model, x * scale, criterion="wanda", layers=["0"]).layers["0"]
                 for scale in (1.0, 1e-30))
    assert near.effective_weights == pytest.approx(far.effective_weights, rel=1e-5)
    assert not far.dead and far.unit_importance.sum() > 0


def test_states_of_a_recurrent_layer_whose_squares_overflow():
    large = Layers(lambda model, x: model.head(model.rnn(x)[0]),
                   rnn=nn.RNN(3, 4, nonlinearity="relu"), head=nn.Linear(4, 2))
    with pytest.raises(ValueError, match="^layer rnn.weight_hh_l0: expected inputs whose squares "):
        analyze(large, rows(5, 2, 3) * 1e25, criterion="wanda", layers=["rnn.weight_hh_l0"])


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bias_that_is_not_finite(criterion, value):
    model = nn.Sequential(nn.Linear(3, 4))
    model[0].bias.data[1] = value
    with pytest.raises(ValueError, match="^(layer 0: expected a finite|loss: expected a finite)"):
        analyze(model, [(rows(5, 3), torch.zeros(5, dtype=torch.long))], criterion=criterion,
                loss=nn.functional.cross_entropy)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("criterion", CRITERIA)
def test_layers_without_weights_are_named(criterion):
    data, how = [(rows(5, 3), labels(5))], {"loss": nn.functional.cross_entropy}
    beside = Layers(lambda model, x: model.head(torch.cat([model.none(x), model.some(x)], 1)),
                    none=nn.Linear(3, 0), some=nn.Linear(3, 4), head=nn.Linear(4, 2))
    usage = analyze(beside, data, criterion=criterion, **how)
    assert list(usage.layers) == ["some"]
    assert usage.skipped["none"] == "it has no weights: its shape is (0, 3)"
    empty = nn.Sequential(nn.Linear(3, 0), nn.Linear(0, 2))
    with pytest.raises(ValueError, match=r"^model: expected a layer .* but found none \(0: it has "
                                         r"no weights: its shape is \(0, 3\); 1: it has no"):
        analyze(empty, data, criterion=criterion, **how)
