"""Function calls read as products: every function with arguments in each way that it takes them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from wua_mlflow.usage.tracing.calls import CALL_PARSERS, ConvGeometry, WeightCall, name_of

aten = torch.ops.aten
W, X, B = torch.randn(4, 3), torch.randn(5, 3), torch.zeros(4)
KERNEL, SIGNAL = torch.randn(4, 2, 3), torch.randn(5, 2, 9)


class Recorder(TorchFunctionMode):
    """Which readable function a call ends up as, and its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[object, tuple, dict]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in CALL_PARSERS:
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def read(run) -> tuple[list[WeightCall], Tensor]:
    with Recorder() as recorder:
        result = run()
    (func, args, kwargs), = recorder.calls
    return CALL_PARSERS[func](args, kwargs), result


LINEAR = {
    "F.linear": lambda: functional.linear(X, W),
    "keywords": lambda: functional.linear(input=X, weight=W),
    "method": lambda: X.matmul(W.T),
    "reversed": lambda: W.T.__rmatmul__(X),
    "method mm": lambda: X.mm(W.T),
    "addmm": lambda: torch.addmm(B, X, W.T),
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
    "defaults": (lambda: functional.conv1d(SIGNAL, KERNEL), ((1,), (0,), (1,), 1, False)),
    "numbers": (lambda: torch.conv1d(SIGNAL, KERNEL, None, 2, 1, 3), ((2,), (1,), (3,), 1, False)),
    "groups": (lambda: functional.conv1d(SIGNAL.repeat(1, 2, 1), KERNEL, groups=2),
               ((1,), (0,), (1,), 2, False)),
    "valid": (lambda: functional.conv1d(SIGNAL, KERNEL, padding="valid"),
              ((1,), (0,), (1,), 1, False)),
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
