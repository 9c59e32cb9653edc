"""A criterion of one's own: one function, by its parameters' names; and what is no criterion."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy as loss

from tests.networks import labels, mlp, numpys, rows
from wua_mlflow.usage.analyze import analyze, layer_importance


def test_a_criterion_of_ones_own():
    def squared(weight: Tensor, mean_input: Tensor, gradient: Tensor) -> Tensor:
        assert weight.shape == gradient.shape == (6, 8)
        return (weight * mean_input) ** 2 + gradient.abs()

    model, data = mlp(3, 8, 6, 2), [(rows(40, 3), labels(40))]
    usage = analyze(model, data, criterion=squared, loss=loss, layers=["2"])
    assert usage.criterion == "squared"
    x = numpys(model[:2](data[0][0]))
    gradient, = torch.autograd.grad(loss(model(data[0][0]), data[0][1]), [model[2].weight])
    expected = (numpys(model[2].weight) * np.abs(x).mean(0)) ** 2 + np.abs(numpys(gradient))
    assert usage.layers["2"].entropy == pytest.approx(scipy.stats.entropy(expected.ravel()),
                                                      rel=1e-6)
    np.testing.assert_allclose(usage.layers["2"].unit_importance, expected.sum(1), rtol=1e-5)
    found = layer_importance(model, data, ["2"], squared, loss=loss)["2"]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-8)


def test_ones_own_beside_the_others_and_as_a_callable_object():
    class Cubed:
        def __call__(self, weight: Tensor) -> Tensor:
            return weight.abs() ** 3

    found = analyze(mlp(3, 8, 2), rows(9, 3),
                    criterion=["wanda", Cubed(), lambda weight: weight ** 2])
    assert list(found) == ["wanda", "Cubed", "<lambda>"]
    weight = np.abs(numpys(mlp(3, 8, 2)[0].weight))
    for name, power in (("Cubed", 3), ("<lambda>", 2)):
        assert found[name].layers["0"].entropy == pytest.approx(
            scipy.stats.entropy((weight ** power).ravel()), rel=1e-6)


def raising(weight: Tensor) -> Tensor:
    raise KeyError("mine")


OWN = {
    "negative": (lambda weight: -weight.abs(), "at least 0, but got a negative one"),
    "not a number": (lambda weight: weight * math.nan, "finite .* but got NaN or infinity"),
    "infinite": (lambda weight: weight.abs() / 0, "finite .* but got NaN or infinity"),
    "by unit": (lambda weight: weight.abs().sum(1), r"of shape \(8, 3\), but got \(8,\)"),
    "turned": (lambda weight: weight.abs().T, r"of shape \(8, 3\), but got \(3, 8\)"),
    "nothing": (lambda weight: None, r"of shape \(8, 3\), but got NoneType"),
    "an array": (lambda weight: weight.abs().numpy(), r"of shape \(8, 3\), but got ndarray"),
}


@pytest.mark.parametrize(("criterion", "message"), OWN.values(), ids=OWN)
def test_ones_own_that_gives_something_else_names_the_layer(criterion, message):
    with pytest.raises(ValueError, match=f"^layer 0: .*expected .*{message}$") as caught:
        analyze(mlp(3, 8, 2), rows(9, 3), criterion=criterion)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="expected (finite )?importances of"):
        layer_importance(mlp(3, 8, 2), rows(9, 3), ["0"], criterion)


@pytest.mark.parametrize(("criterion", "message"), [
    (None, "expected a name, a function, or several of them, but got None"),
    (5, "expected a name, a function, or several of them, but got 5"),
    ([], "expected at least one, but got none"),
    ("outputs", "expected one of output, input, wanda, magnitude, taylor, or a function, but got "
                "'outputs'"),
    (["output", 7], "expected one of output, .* but got 7"),
    ([["output"]], r"expected one of output, .* but got \['output'\]"),
    (lambda weights: weights, "expected a function of weight and some of"),
    ([lambda weight: weight, lambda weight: weight],
     "expected functions of different names, but got two of '<lambda>'"),
])
def test_what_is_no_criterion(criterion, message):
    with pytest.raises(ValueError, match=f"^criterion: {message}"):
        analyze(mlp(3, 8, 2), rows(9, 3), criterion=criterion)


def test_the_same_criterion_twice_is_one():
    assert list(analyze(mlp(3, 8, 2), rows(9, 3), criterion=["wanda", "wanda"])) == ["wanda"]
