"""Function calls read as products, with arguments in each way that they take them; op tables."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from wua_mlflow.usage.tracing.calls import CALL_PARSERS, ConvGeometry, WeightCall, name_of
from wua_mlflow.usage.tracing.op_tables import PRODUCTS, UNITWISE_OPS, is_metadata_op, is_relu

aten = torch.ops.aten
W, X, B = torch.randn(4, 3), torch.randn(5, 3), torch.zeros(4)
KERNEL, SIGNAL = torch.randn(4, 2, 3), torch.randn(5, 2, 9)


class Recorder(TorchFunctionMode):
    """The calls, their arguments and their results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict, Any]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result


def read(run) -> tuple[list[WeightCall], Tensor]:
    """The one readable function that a call ends up as, read."""
    with Recorder() as recorder:
        result = run()
    (func, args, kwargs, _), = (call for call in recorder.calls if call[0] in CALL_PARSERS)
    return CALL_PARSERS[func](args, kwargs), result


def last_call(function) -> tuple[str, tuple, dict, Any]:
    x = torch.linspace(-1, 1, 8).reshape(2, 4)
    with Recorder() as recorder:
        function(x)
    func, *call = recorder.calls[-1]
    return name_of(func), *call


LINEAR = {
    "keywords": lambda: functional.linear(input=X, weight=W),
    "reversed": lambda: W.T.__rmatmul__(X),
    "method mm": lambda: X.mm(W.T),
    "addmm by keywords": lambda: torch.addmm(B, mat1=X, mat2=W.T, beta=2),
    "aten.linear": lambda: aten.linear.default(X, W, None),
    "aten.mm": lambda: aten.mm.default(X, W.T),
    "aten.addmm": lambda: aten.addmm.default(B, X, W.T),
}


@pytest.mark.parametrize("run", LINEAR.values(), ids=LINEAR)
def test_a_product_with_a_matrix_from_the_right(run):
    calls, result = read(run)
    assert calls[0].operation == "linear"
    assert torch.equal(calls[0].weight, W)
    assert torch.equal(calls[0].inputs[0], X)
    torch.testing.assert_close(result, X @ W.T)


@pytest.mark.parametrize(("run", "operations"), [
    (lambda: W @ X.T, ["linear", "left_matmul"]),  # the likelier comes first
    (lambda: W @ torch.randn(7, 3, 2), ["left_matmul"]),
    (lambda: X @ torch.ones(3), []), (lambda: torch.ones(5) @ torch.ones(5), []),
    (lambda: torch.randn(2, 5, 3) @ torch.randn(2, 3, 4), [])])
def test_either_factor_may_be_the_weight_if_it_is_a_matrix(run, operations):
    calls, _ = read(run)
    assert [call.operation for call in calls] == operations
    assert not any(call.always_a_weight for call in calls)
    assert all(call.weight is W for call in calls if call.operation == "left_matmul")


CONVOLUTIONS = {
    "numbers": (lambda: torch.conv1d(SIGNAL, KERNEL, None, 2, 1, 3), ((2,), (1,), (3,), 1, False)),
    "same": (lambda: functional.conv1d(SIGNAL, KERNEL, padding="same", dilation=2),
             ((1,), (2,), (2,), 1, False)),
    "two dimensions": (lambda: functional.conv2d(SIGNAL[..., None], KERNEL[..., None],
                                                 stride=(2, 1), padding=1, dilation=[1, 2]),
                       ((2, 1), (1, 1), (1, 2), 1, False)),
    "transposed": (lambda: functional.conv_transpose1d(torch.randn(5, 4, 9), KERNEL, None,
                                                       2, 1, 1, 1, 2), ((2,), (1,), (2,), 1, True)),
    "any": (lambda: torch.convolution(SIGNAL, KERNEL, None, [2], [1], [1], False, [0], 1),
            ((2,), (1,), (1,), 1, False)),
    "aten": (lambda: aten.conv1d.default(SIGNAL, KERNEL, None, [2], [1]),
             ((2,), (1,), (1,), 1, False)),
    "aten by words": (lambda: aten.conv1d.padding(SIGNAL, KERNEL, None, [1], "same"),
                      ((1,), (1,), (1,), 1, False)),
}


@pytest.mark.parametrize(("run", "geometry"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_how_a_kernel_lies(run, geometry):
    (call,), _ = read(run)
    assert call.operation == "conv"
    assert call.geometry == ConvGeometry(*geometry)


def test_lookups_and_forms():
    ids = torch.tensor([[0, 2]])
    for run in (lambda: torch.embedding(W, ids),
                lambda: functional.embedding(weight=W, input=ids, padding_idx=1)):
        (call,), _ = read(run)
        assert (call.operation, call.always_a_weight) == ("embedding", True)
        assert call.weight is W and call.inputs[0] is ids
    bias = torch.ones(2)
    (call,), _ = read(lambda: functional.bilinear(X, X + 1, torch.randn(2, 3, 3), bias))
    assert call.operation == "bilinear" and call.bias is bias
    assert torch.equal(call.inputs[1], X + 1)


@pytest.mark.parametrize(("function", "name"), [
    (functional.relu, "relu"), (Tensor.relu_, "relu_"), (aten.relu.default, "relu"),
    (object(), "")])
def test_plain_names(function, name):
    assert name_of(function) == name


@pytest.mark.parametrize("function", [
    functional.relu, torch.relu_, nn.ReLU6(), lambda x: x.clamp(0), lambda x: x.clamp_(min=0.0),
    lambda x: torch.clamp_min(x, 0), lambda x: functional.hardtanh(x, min_val=0, max_val=3),
    nn.Threshold(0, 0.0), lambda x: torch.threshold(x, 0, value=0)])
def test_what_cuts_off_below_zero(function):
    name, args, kwargs, result = last_call(function)
    assert is_relu(name, args, kwargs)
    assert result.min() == 0 < result.max()
    assert name in UNITWISE_OPS


@pytest.mark.parametrize("function", [
    torch.tanh, functional.hardtanh, lambda x: x.clamp(-1), nn.Threshold(0, 1.0),
    lambda x: x.clamp(max=0), lambda x: torch.clamp(x, torch.zeros(4))])
def test_what_does_not(function):
    name, args, kwargs, _ = last_call(function)
    assert not is_relu(name, args, kwargs)


@pytest.mark.parametrize(("function", "expected"), [
    (Tensor.t, True), (lambda x: x[:, 1:2], True), (lambda x: x.shape, True),
    (lambda x: x.chunk(2), True), (lambda x: x * 2, False), (lambda x: x[x > 0], False)])
def test_what_only_looks(function, expected):
    name, _, _, result = last_call(function)
    assert is_metadata_op(name, result) == expected
    assert not [name for name in PRODUCTS if is_metadata_op(name, None)]
