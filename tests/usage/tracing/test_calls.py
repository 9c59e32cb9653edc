"""Function calls read as products: every function with arguments in each way that it takes them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from wua_mlflow.usage.tracing.calls import CALL_PARSERS, ConvGeometry, name_of

aten = torch.ops.aten
W, X = torch.randn(4, 3), torch.randn(5, 3)
K, I = torch.randn(4, 2, 3), torch.randn(5, 2, 9)  # noqa: E741


class Heard(TorchFunctionMode):
    """Which readable function a call ends up as, and its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[object, tuple, dict]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in CALL_PARSERS:
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def read(call):
    with Heard() as heard:
        result = call()
    (func, args, kwargs), = heard.calls
    return CALL_PARSERS[func](args, kwargs), result


LINEAR = {
    "F.linear": lambda: functional.linear(X, W),
    "keywords": lambda: functional.linear(input=X, weight=W),
    "matmul": lambda: torch.matmul(X, W.T),
    "method": lambda: X.matmul(W.T),
    "at": lambda: X @ W.T,
    "reversed": lambda: W.T.__rmatmul__(X),
    "mm": lambda: torch.mm(X, W.T),
    "method mm": lambda: X.mm(W.T),
    "addmm": lambda: torch.addmm(torch.zeros(4), X, W.T),
    "method addmm": lambda: torch.zeros(4).addmm(X, W.T),
    "addmm by keywords": lambda: torch.addmm(torch.zeros(4), mat1=X, mat2=W.T, beta=2),
    "aten.linear": lambda: aten.linear.default(X, W, None),
    "aten.mm": lambda: aten.mm.default(X, W.T),
    "aten.addmm": lambda: aten.addmm.default(torch.zeros(4), X, W.T),
}


@pytest.mark.parametrize("call", LINEAR.values(), ids=LINEAR)
def test_a_product_with_a_matrix_from_the_right(call):
    products, result = read(call)
    product = products[0]
    assert product.operation == "linear"
    assert torch.equal(product.weight, W)
    assert torch.equal(product.inputs[0], X)
    torch.testing.assert_close(result, X @ W.T)


def test_either_factor_may_be_the_weight_and_the_likelier_comes_first():
    products, _ = read(lambda: W @ X.T)
    assert [product.operation for product in products] == ["linear", "left_matmul"]
    assert products[1].weight is W
    assert not any(product.always_a_weight for product in products)
    stacked = torch.randn(7, 3, 2)
    products, _ = read(lambda: W @ stacked)
    assert [product.operation for product in products] == ["left_matmul"]


@pytest.mark.parametrize("call", [lambda: X @ torch.ones(3), lambda: torch.ones(5) @ torch.ones(5),
                                  lambda: torch.randn(2, 5, 3) @ torch.randn(2, 3, 4)])
def test_vectors_and_stacks_are_no_weights(call):
    assert [product.operation for product in read(call)[0]] == []


CONVOLUTIONS = {
    "defaults": (lambda: functional.conv1d(I, K), ConvGeometry((1,), (0,), (1,), 1, False)),
    "numbers": (
        lambda: torch.conv1d(I, K, None, 2, 1, 3),
        ConvGeometry((2,), (1,), (3,), 1, False),
    ),
    "groups": (
        lambda: functional.conv1d(torch.randn(5, 4, 9), K, groups=2),
        ConvGeometry((1,), (0,), (1,), 2, False),
    ),
    "valid": (
        lambda: functional.conv1d(I, K, padding="valid"),
        ConvGeometry((1,), (0,), (1,), 1, False),
    ),
    "same": (
        lambda: functional.conv1d(I, K, padding="same", dilation=2),
        ConvGeometry((1,), (2,), (2,), 1, False),
    ),
    "two dimensions": (
        lambda: functional.conv2d(
            I[..., None], K[..., None], stride=(2, 1), padding=1, dilation=[1, 2]
        ),
        ConvGeometry((2, 1), (1, 1), (1, 2), 1, False),
    ),
    "three dimensions": (
        lambda: functional.conv3d(I[..., None, None], K[..., None, None]),
        ConvGeometry((1,) * 3, (0,) * 3, (1,) * 3, 1, False),
    ),
    "transposed": (
        lambda: functional.conv_transpose1d(torch.randn(5, 4, 9), K, None, 2, 1, 1, 1, 2),
        ConvGeometry((2,), (1,), (2,), 1, True),
    ),
    "any": (
        lambda: torch.convolution(I, K, None, [2], [1], [1], False, [0], 1),
        ConvGeometry((2,), (1,), (1,), 1, False),
    ),
    "aten": (
        lambda: aten.conv1d.default(I, K, None, [2], [1]),
        ConvGeometry((2,), (1,), (1,), 1, False),
    ),
    "aten by words": (
        lambda: aten.conv1d.padding(I, K, None, [1], "same"),
        ConvGeometry((1,), (1,), (1,), 1, False),
    ),
}


@pytest.mark.parametrize(("call", "geometry"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_how_a_kernel_lies(call, geometry):
    (product,), result = read(call)
    assert product.operation == "conv"
    assert product.geometry == geometry
    assert len(product.geometry.stride) == result.dim() - 2


def test_lookups_and_forms():
    ids = torch.tensor([[0, 2]])
    for call in (lambda: functional.embedding(ids, W), lambda: torch.embedding(W, ids),
                 lambda: functional.embedding(weight=W, input=ids, padding_idx=1)):
        (product,), _ = read(call)
        assert (product.operation, product.always_a_weight) == ("embedding", True)
        assert product.weight is W
        assert product.inputs[0] is ids
    form, bias = torch.randn(2, 3, 3), torch.ones(2)
    (product,), _ = read(lambda: functional.bilinear(X, X + 1, form, bias))
    assert product.operation == "bilinear"
    assert product.bias is bias
    assert torch.equal(product.inputs[1], X + 1)


@pytest.mark.parametrize(("function", "name"), [
    (functional.relu, "relu"), (Tensor.relu_, "relu_"), (aten.relu.default, "relu"),
    (torch.einsum, "einsum"), (object(), "")])
def test_plain_names(function, name):
    assert name_of(function) == name
