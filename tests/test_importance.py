"""The criteria, against loops over every weight, and their scaling laws."""

from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import pytest
import torch

from wua_mlflow.config import Settings
from wua_mlflow.importance import CRITERIA, magnitude, output

SHAPES = {"linear": (5, 3), "conv1d": (4, 2, 3), "conv2d": (3, 2, 2, 3), "conv3d": (2, 3, 2, 2, 2)}


def drawn(shape):
    generator = torch.Generator().manual_seed(len(shape))
    return (torch.randn(shape, generator=generator),
            torch.randn(shape[0], generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_output_weight_by_weight(shape):
    weight, mean_output = drawn(shape)
    found = output(weight, mean_output)
    assert (found.shape, found.dtype) == (weight.shape, torch.float64)
    for place in itertools.product(*(range(size) for size in shape)):
        expected = abs(float(weight[place])) * abs(float(mean_output[place[0]]))
        assert float(found[place]) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_magnitude_is_numpys_absolute_value(shape):
    weight, mean_output = drawn(shape)
    found = magnitude(weight, mean_output)
    assert found.dtype == torch.float64
    assert np.array_equal(found.numpy(), np.abs(weight.numpy().astype(np.float64)))


def test_a_unit_scaled_by_c_scales_its_importance_by_c_squared():
    weight, mean_output = drawn((5, 3))
    scale = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0], dtype=torch.float64)
    scaled = output(weight.double() * scale[:, None], mean_output * scale)
    torch.testing.assert_close(scaled, output(weight, mean_output) * scale[:, None] ** 2)


@pytest.mark.parametrize("name", ["output", "magnitude"])
def test_permuted_units_have_permuted_importance(name):
    weight, mean_output = drawn((5, 3))
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(CRITERIA[name](weight[order], mean_output[order]),
                       CRITERIA[name](weight, mean_output)[order])


@pytest.mark.parametrize("name", ["output", "magnitude"])
def test_the_inputs_are_left_alone(name):
    weight, mean_output = drawn((5, 3))
    before = weight.clone(), mean_output.clone()
    CRITERIA[name](weight, mean_output).mul_(0)
    assert torch.equal(weight, before[0])
    assert torch.equal(mean_output, before[1])


def test_magnitude_of_a_float64_weight_is_no_view_of_it():
    weight = torch.ones(2, 2, dtype=torch.float64)
    magnitude(weight, torch.ones(2)).zero_()
    assert weight.sum() == 4


def test_the_criteria_are_those_that_a_configuration_may_name():
    assert list(CRITERIA) == list(get_args(Settings.model_fields["criterion"].annotation))
    assert all(criterion.__name__ == name for name, criterion in CRITERIA.items())
