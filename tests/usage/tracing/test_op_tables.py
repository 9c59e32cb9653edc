"""What functions do with a parameter or with a layer's outputs, by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from wua_mlflow.usage.tracing.calls import name_of
from wua_mlflow.usage.tracing.op_tables import PRODUCTS, UNITWISE_OPS, is_metadata_op, is_relu


class LastCall(TorchFunctionMode):
    """The last call's name, arguments and result."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.result = func(*args, **(kwargs or {}))
        self.name, self.args, self.kwargs = name_of(func), args, kwargs or {}
        return self.result


def call_of(function) -> LastCall:
    x = torch.linspace(-1, 1, 8).reshape(2, 4)
    with LastCall() as call:
        function(x)
    return call


@pytest.mark.parametrize("function", [
    functional.relu, torch.relu_, nn.ReLU6(), lambda x: x.clamp(0), lambda x: x.clamp_(min=0.0),
    lambda x: torch.clamp_min(x, 0), lambda x: functional.hardtanh(x, min_val=0, max_val=3),
    nn.Threshold(0, 0.0), lambda x: torch.threshold(x, 0, value=0)])
def test_what_cuts_off_below_zero(function):
    call = call_of(function)
    assert is_relu(call.name, call.args, call.kwargs)
    assert call.result.min() == 0 < call.result.max()
    assert call.name in UNITWISE_OPS


@pytest.mark.parametrize("function", [
    torch.tanh, functional.hardtanh, lambda x: x.clamp(-1), nn.Threshold(0, 1.0),
    lambda x: x.clamp(max=0), lambda x: torch.clamp(x, torch.zeros(4))])
def test_what_does_not(function):
    call = call_of(function)
    assert not is_relu(call.name, call.args, call.kwargs)


@pytest.mark.parametrize(("function", "expected"), [
    (Tensor.t, True), (lambda x: x[:, 1:2], True), (lambda x: x.shape, True),
    (lambda x: x.chunk(2), True), (lambda x: x * 2, False), (lambda x: x[x > 0], False)])
def test_what_only_looks(function, expected):
    call = call_of(function)
    assert is_metadata_op(call.name, call.result) == expected
    assert not [name for name in PRODUCTS if is_metadata_op(name, None)]
