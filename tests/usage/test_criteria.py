"""The criteria against loops, their scaling laws, a function of one's own, what is no criterion."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy as loss

from tests.networks import labels, mlp, numpys, rows
from wua_mlflow.usage.analyze import analyze, layer_importance
from wua_mlflow.usage.criteria import CRITERIA, inputs_of

UNITS, EACH = 5, 6
SHAPES = {"mean_output": (UNITS, 1), "mean_input": (1, EACH), "input_norm": (UNITS, EACH),
          "gradient": (UNITS, EACH)}


def drawn(name: str, dtype: torch.dtype = torch.float64):
    """A weight and what a criterion asks for beside it."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(UNITS, EACH, generator=generator, dtype=dtype)
    evidence = {what: torch.randn(SHAPES[what], generator=generator, dtype=dtype)
             for what in inputs_of(CRITERIA[name])}
    for what in ("mean_input", "input_norm"):
        if what in evidence:
            evidence[what] = evidence[what].abs()
    return weight, evidence


BY_HAND = {
    "output": lambda w, mean_output: abs(w) * abs(mean_output),
    "input": lambda w, mean_input: abs(w) * mean_input,
    "wanda": lambda w, input_norm: abs(w) * input_norm, "magnitude": lambda w: abs(w),
    "taylor": lambda w, gradient: abs(w * gradient)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CRITERIA)
def test_weight_by_weight(name, dtype):
    weight, evidence = drawn(name, dtype)
    importance = CRITERIA[name](weight, **evidence)
    assert (importance.shape, importance.dtype) == (weight.shape, dtype)
    drawn_weight, drawn_evidence = drawn(name, dtype)  # what is given is left alone
    assert torch.equal(weight, drawn_weight)
    assert all(torch.equal(evidence[what], drawn_evidence[what]) for what in evidence)
    wide = {what: np.broadcast_to(tensor.numpy(), weight.shape)
            for what, tensor in evidence.items()}
    for place in itertools.product(range(UNITS), range(EACH)):
        expected = BY_HAND[name](float(weight[place]),
                                 **{what: float(array[place]) for what, array in wide.items()})
        assert float(importance[place]) == pytest.approx(
            expected, rel=1e-6 if dtype == torch.float32 else 1e-15)


def test_what_a_criterion_needs_are_its_parameters():
    def own(weight, gradient, mean_output):
        return weight

    assert inputs_of(own) == ("gradient", "mean_output")
    assert inputs_of(functools.partial(own, gradient=None)) == ("gradient", "mean_output")
    assert inputs_of(lambda weight, *, input_norm: weight) == ("input_norm",)
    assert [inputs_of(criterion) for criterion in CRITERIA.values()] == [
        ("mean_output",), ("mean_input",), ("input_norm",), (), ("gradient",)]


@pytest.mark.parametrize(("criterion", "shown"), [
    (lambda weights: weights, "weights"), (lambda weight, hessian: weight, "weight, hessian"),
    (lambda: None, "nothing"), (lambda gradient, weight: weight, "gradient, weight"),
    (lambda weight, **anything: weight, "weight, anything"), (torch.abs, "nothing")])
def test_a_function_whose_parameters_are_others(criterion, shown):
    with pytest.raises(ValueError, match="^criterion: expected a function of weight and some of "
                                         "mean_output, mean_input, input_norm, gradient, but got "
                                         f"one of {shown}$"):
        inputs_of(criterion)


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
    importance = layer_importance(model, data, ["2"], squared, loss=loss)["2"]
    np.testing.assert_allclose(importance.numpy(), expected, rtol=1e-5, atol=1e-8)


def test_ones_own_beside_the_others_and_as_a_callable_object():
    class Cubed:
        def __call__(self, weight: Tensor) -> Tensor:
            return weight.abs() ** 3

    usages = analyze(mlp(3, 8, 2), rows(9, 3),
                     criterion=["wanda", "wanda", Cubed(), lambda weight: weight ** 2])
    assert list(usages) == ["wanda", "Cubed", "<lambda>"]
    weight = np.abs(numpys(mlp(3, 8, 2)[0].weight))
    for name, power in (("Cubed", 3), ("<lambda>", 2)):
        assert usages[name].layers["0"].entropy == pytest.approx(
            scipy.stats.entropy((weight ** power).ravel()), rel=1e-6)


OWN = {
    "negative": (lambda weight: -weight.abs(), "at least 0, but got a negative one"),
    "not a number": (lambda weight: weight * math.nan, "finite .* but got NaN or infinity"),
    "infinite": (lambda weight: weight.abs() / 0, "finite .* but got NaN or infinity"),
    "by unit": (lambda weight: weight.abs().sum(1), r"of shape \(8, 3\), but got \(8,\)"),
    "turned": (lambda weight: weight.abs().T, r"of shape \(8, 3\), but got \(3, 8\)"),
    "nothing": (lambda weight: None, r"of shape \(8, 3\), but got NoneType"),
    "an array": (lambda weight: weight.abs().numpy(), r"of shape \(8, 3\), but got ndarray")}


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
     "expected functions of different names, but got two of '<lambda>'")])
def test_what_is_no_criterion(criterion, message):
    with pytest.raises(ValueError, match=f"^criterion: {message}"):
        analyze(mlp(3, 8, 2), rows(9, 3), criterion=criterion)
