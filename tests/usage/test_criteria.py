"""The criteria, against loops over every weight, their scaling laws, and what they may ask for."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch

from wua_mlflow.usage.criteria import (
    CRITERIA,
    activation,
    inputs_of,
    magnitude,
    output,
    taylor,
    taylor_units,
    wanda,
)

UNITS, EACH = 5, 6
SHAPES = {"mean_output": (UNITS, 1), "mean_input": (1, EACH), "input_norm": (UNITS, EACH),
          "gradient": (UNITS, EACH)}


def drawn(name: str, dtype: torch.dtype = torch.float64):
    """A weight and what a criterion asks for beside it."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(UNITS, EACH, generator=generator, dtype=dtype)
    given = {what: torch.randn(SHAPES[what], generator=generator, dtype=dtype)
             for what in inputs_of(CRITERIA[name])}
    for what in ("mean_input", "input_norm"):
        if what in given:
            given[what] = given[what].abs()
    return weight, given


BY_HAND = {
    "output": lambda w, mean_output: abs(w) * abs(mean_output),
    "input": lambda w, mean_input: abs(w) * mean_input,
    "wanda": lambda w, input_norm: abs(w) * input_norm,
    "magnitude": lambda w: abs(w),
    "taylor": lambda w, gradient: abs(w * gradient),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CRITERIA)
def test_weight_by_weight(name, dtype):
    weight, given = drawn(name, dtype)
    found = CRITERIA[name](weight, **given)
    assert (found.shape, found.dtype) == (weight.shape, dtype)
    wide = {what: np.broadcast_to(tensor.numpy(), weight.shape) for what, tensor in given.items()}
    for place in itertools.product(range(UNITS), range(EACH)):
        expected = BY_HAND[name](float(weight[place]),
                                 **{what: float(array[place]) for what, array in wide.items()})
        assert float(found[place]) == pytest.approx(expected, rel=1e-6 if dtype == torch.float32
                                                    else 1e-15)


LAWS = {"output": 2, "input": 1, "wanda": 1, "magnitude": 1, "taylor": 0}
"""The power of c by which importance grows where a unit's incoming weights grow by c, and so its
output by c, its gradient by 1 / c (what reads it shrinks by c: the function is the same)."""
MOVES = {"mean_output": 1, "gradient": -1}


@pytest.mark.parametrize("name", CRITERIA)
def test_scaling_laws(name):
    weight, given = drawn(name)
    scale = torch.tensor([1.0, -2.0, 0.5, 3.0, 8.0], dtype=torch.float64)[:, None]
    moved = {what: tensor * scale ** MOVES.get(what, 0) for what, tensor in given.items()}
    torch.testing.assert_close(
        CRITERIA[name](weight * scale, **moved),
        CRITERIA[name](weight, **given) * scale.abs() ** LAWS[name], rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", CRITERIA)
def test_permuted_units_have_permuted_importance(name):
    weight, given = drawn(name)
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = {what: tensor[order] if len(tensor) == UNITS else tensor
             for what, tensor in given.items()}
    assert torch.equal(CRITERIA[name](weight[order], **moved),
                       CRITERIA[name](weight, **given)[order])


@pytest.mark.parametrize("name", CRITERIA)
def test_the_inputs_are_left_alone(name):
    weight, given = drawn(name)
    before = [tensor.clone() for tensor in (weight, *given.values())]
    CRITERIA[name](weight, **given).mul_(0)
    for tensor, old in zip((weight, *given.values()), before, strict=True):
        assert torch.equal(tensor, old)


def test_the_names_of_the_criteria():
    assert list(CRITERIA) == ["output", "input", "wanda", "magnitude", "taylor"]
    assert list(CRITERIA.values()) == [output, activation, wanda, magnitude, taylor]


def test_the_units_of_taylor_by_loops():
    generator = torch.Generator().manual_seed(4)
    weight, gradient = torch.randn(2, UNITS, EACH, generator=generator)
    bias, bias_gradient = torch.randn(2, UNITS, generator=generator)
    bare = taylor_units(weight, gradient, None, None)
    whole = taylor_units(weight, gradient, bias, bias_gradient)
    assert bare.dtype == whole.dtype == torch.float64
    for unit in range(UNITS):
        total = sum(float(weight[unit, i]) * float(gradient[unit, i]) for i in range(EACH))
        assert float(bare[unit]) == pytest.approx(total, rel=1e-12)
        total += float(bias[unit]) * float(bias_gradient[unit])
        assert float(whole[unit]) == pytest.approx(total, rel=1e-12)


def test_what_a_criterion_needs_are_its_parameters():
    def own(weight, gradient, mean_output):
        return weight

    assert inputs_of(own) == ("gradient", "mean_output")
    assert inputs_of(functools.partial(own, gradient=None)) == ("gradient", "mean_output")
    assert inputs_of(lambda weight, *, input_norm: weight) == ("input_norm",)
    assert [inputs_of(criterion) for criterion in CRITERIA.values()] == [
        ("mean_output",), ("mean_input",), ("input_norm",), (), ("gradient",)]


@pytest.mark.parametrize(("criterion", "shown"), [
    (lambda weights: weights, "weights"),
    (lambda weight, hessian: weight, "weight, hessian"),
    (lambda: None, "nothing"),
    (lambda gradient, weight: weight, "gradient, weight"),
    (lambda weight, **anything: weight, "weight, anything"),
    (torch.abs, "nothing"),
])
def test_a_function_whose_parameters_are_others(criterion, shown):
    with pytest.raises(ValueError, match="^criterion: expected a function of weight and some of "
                                         "mean_output, mean_input, input_norm, gradient, but got "
                                         f"one of {shown}$"):
        inputs_of(criterion)
