"""What functions do with a parameter or with a layer's outputs, by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from wua_mlflow.usage.tracing.calls import name_of
from wua_mlflow.usage.tracing.op_tables import PRODUCTS, UNITWISE_OPS, is_metadata_op, is_relu


class Heard(TorchFunctionMode):
    """The last call, its arguments and its result."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.call = name_of(func), args, kwargs or {}, result
        return result


def heard(function):
    x = torch.linspace(-1, 1, 8).reshape(2, 4)
    with Heard() as mode:
        function(x)
    return mode.call


@pytest.mark.parametrize("function", [
    functional.relu, torch.relu_, functional.relu6, torch.nn.ReLU6(), torch.nn.ReLU(inplace=True),
    lambda x: x.clamp(0), lambda x: x.clamp_(min=0.0), lambda x: torch.clamp_min(x, 0),
    lambda x: functional.hardtanh(x, min_val=0, max_val=3), torch.nn.Threshold(0, 0.0),
    lambda x: torch.threshold(x, 0, value=0), lambda x: torch.threshold_(x, 0, 0)])
def test_what_cuts_off_below_zero(function):
    name, args, kwargs, result = heard(function)
    assert is_relu(name, args, kwargs)
    assert result.min() == 0 < result.max()
    assert name in UNITWISE_OPS


@pytest.mark.parametrize("function", [
    torch.tanh, functional.gelu, functional.hardtanh, lambda x: x.clamp(-1), torch.abs,
    lambda x: x.clamp(max=0), lambda x: torch.clamp(x, torch.zeros(4))])
def test_what_does_not(function):
    name, args, kwargs, _ = heard(function)
    assert not is_relu(name, args, kwargs)


@pytest.mark.parametrize("function", [
    Tensor.t, lambda x: x[1], lambda x: x[:, 1:2], lambda x: x.view(-1), lambda x: x.shape,
    lambda x: x.detach(), lambda x: x.dtype, lambda x: x.chunk(2)])
def test_what_only_looks(function):
    name, _, _, result = heard(function)
    assert is_metadata_op(name, result)


@pytest.mark.parametrize("function", [
    lambda x: x * 2, lambda x: x[torch.tensor([0])], lambda x: x[x > 0], torch.sum,
    lambda x: torch.cat([x, x])])
def test_what_computes(function):
    name, _, _, result = heard(function)
    assert not is_metadata_op(name, result)


def test_products_that_are_not_read_are_no_looks():
    assert not [name for name in PRODUCTS if is_metadata_op(name, None)]
