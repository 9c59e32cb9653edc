"""A function call read as a product of a weight with activations; pure, no model and no state.

May import: torch. Tests: ``tests/watching/test_calls.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["CALL_PARSERS", "ConvGeometry", "WeightCall", "name_of"]


@dataclass(frozen=True)
class ConvGeometry:
    """How a convolution's kernel lies on its input, an entry a spatial dimension.

    ``padding`` is that on the left; ``transposed`` swaps input and output.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool


@dataclass(frozen=True)
class WeightCall:
    """One product: ``weight`` as it was passed, the activations that it met, how they lie.

    ``operation`` is ``linear`` (weight (units, in), activations (..., in)), ``left_matmul``
    (weight (units, in), activations (..., in, columns)), ``conv`` (weight as
    ``nn.Conv2d`` or, transposed, ``nn.ConvTranspose2d`` has it), ``embedding`` (weight (entries,
    units), activations are indices) or ``bilinear`` (weight (units, in1, in2)). ``sure`` says that
    the function always takes a weight; a plain matrix product may be one of activations alone.
    """

    operation: str
    weight: Tensor
    inputs: tuple[Tensor, ...]
    bias: Tensor | None = None
    geometry: ConvGeometry | None = None
    sure: bool = True

    @property
    def unit_dim(self) -> int:
        """The dimension of the output that counts units, from its end; a convolution's: -1."""
        return -2 if self.operation == "left_matmul" else -1

    def lead(self, output: Tensor) -> tuple[int, ...]:
        """The shape of an output but for its units, in the order of its rows."""
        shape = tuple(output.shape)
        return (*shape[:-2], shape[-1]) if self.unit_dim == -2 else shape[:-1]

    @property
    def spatial(self) -> int:
        """The number of a convolution's spatial dimensions, else 0."""
        return self.weight.dim() - 2 if self.operation == "conv" else 0

    def flops(self, output: Tensor) -> int:
        """FLOPs of the product, 2 a multiply-accumulate, as ``count_flops`` has them.

        Each weight meets each position of the output once (transposed convolutions: of the input);
        ``bilinear`` multiplies by its first input, and then the sums by its second.
        """
        shape = self.weight.shape
        if self.operation == "embedding":
            return 0
        if self.operation == "bilinear":
            return 2 * output.numel() * (shape[1] + 1) * shape[2]
        if self.geometry is not None and self.geometry.transposed:
            return 2 * self.inputs[0].numel() * self.weight[0].numel()
        return 2 * output.numel() * self.weight[0].numel()


CallParser = Callable[[tuple[Any, ...], Mapping[str, Any]], list[WeightCall]]
"""From a call's arguments to the products that it may be, the likelier first."""


def name_of(func: Any) -> str:
    """A function's plain name: ``relu`` for ``F.relu``, ``Tensor.relu`` and ``aten.relu.default``.

    >>> name_of(torch.ops.aten.relu.default), name_of(functional.relu), name_of(torch.relu_)
    ('relu', 'relu', 'relu_')
    """
    return str(getattr(func, "__name__", "")).partition(".")[0]


def _bound(
    names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _linear(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[WeightCall]:
    got = _bound(("input", "weight", "bias"), args, kwargs)
    return [WeightCall("linear", got["weight"], (got["input"],), got.get("bias"))]


def _embedding(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[WeightCall]:
    got = _bound(("input", "weight"), args, kwargs)
    return [WeightCall("embedding", got["weight"], (got["input"],))]


def _aten_embedding(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[WeightCall]:
    got = _bound(("weight", "indices"), args, kwargs)
    return [WeightCall("embedding", got["weight"], (got["indices"],))]


def _bilinear(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[WeightCall]:
    got = _bound(("input1", "input2", "weight", "bias"), args, kwargs)
    return [WeightCall("bilinear", got["weight"], (got["input1"], got["input2"]), got.get("bias"))]


def _matmul(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[WeightCall]:
    values = [*args, *kwargs.values()]
    return _either(values[0], values[1], None) if len(values) > 1 else []


def _reversed_matmul(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[WeightCall]:
    return _matmul(args[::-1], kwargs)


def _addmm(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[WeightCall]:
    got = _bound(("input", "mat1", "mat2"), args, kwargs)
    return _either(got["mat1"], got["mat2"], got["input"])


def _either(left: Any, right: Any, bias: Any) -> list[WeightCall]:
    """Either factor may be the weight; only a matrix is taken for one."""
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return []
    found = []
    if right.dim() == 2 and left.dim():
        found.append(WeightCall("linear", right.T, (left,), bias, sure=False))
    if left.dim() == 2 and right.dim() > 1:
        found.append(WeightCall("left_matmul", left, (right,), sure=False))
    return found


def _convolution(dims: int) -> CallParser:
    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[WeightCall]:
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        got = _bound(names, args, kwargs)
        return [_conv(got, dims, transposed=False)]

    return read


def _transposed_convolution(dims: int) -> CallParser:
    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[WeightCall]:
        names = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups",
                 "dilation")
        return [_conv(_bound(names, args, kwargs), dims, transposed=True)]

    return read


def _any_convolution(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[WeightCall]:
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "transposed",
             "output_padding", "groups")
    got = _bound(names, args, kwargs)
    return [_conv(got, got["weight"].dim() - 2, transposed=bool(got["transposed"]))]


def _conv(got: Mapping[str, Any], dims: int, *, transposed: bool) -> WeightCall:
    weight = got["weight"]
    dilation = _each(got.get("dilation", 1), dims)
    padding = got.get("padding", 0)
    if padding == "same":  # what is odd goes to the right
        kernel = weight.shape[2:]
        padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    elif padding == "valid":
        padding = 0
    geometry = ConvGeometry(_each(got.get("stride", 1), dims), _each(padding, dims), dilation,
                        int(got.get("groups", 1)), transposed)
    return WeightCall("conv", weight, (got["input"],), got.get("bias"), geometry)


def _each(value: Any, dims: int) -> tuple[int, ...]:
    """An option of a convolution, which may be one number for all spatial dimensions."""
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return values * dims if len(values) == 1 else values


_aten = torch.ops.aten

CALL_PARSERS: dict[Any, CallParser] = {
    functional.linear: _linear,
    functional.embedding: _embedding,
    functional.bilinear: _bilinear,
    functional.conv1d: _convolution(1),
    functional.conv2d: _convolution(2),
    functional.conv3d: _convolution(3),
    functional.conv_transpose1d: _transposed_convolution(1),
    functional.conv_transpose2d: _transposed_convolution(2),
    functional.conv_transpose3d: _transposed_convolution(3),
    torch.conv1d: _convolution(1),
    torch.conv2d: _convolution(2),
    torch.conv3d: _convolution(3),
    torch.conv_transpose1d: _transposed_convolution(1),
    torch.conv_transpose2d: _transposed_convolution(2),
    torch.conv_transpose3d: _transposed_convolution(3),
    torch.convolution: _any_convolution,
    torch.bilinear: _bilinear,
    torch.embedding: _aten_embedding,
    torch.matmul: _matmul,
    torch.mm: _matmul,
    torch.addmm: _addmm,
    Tensor.matmul: _matmul,
    Tensor.mm: _matmul,
    Tensor.addmm: _addmm,
    Tensor.__matmul__: _matmul,
    Tensor.__rmatmul__: _reversed_matmul,
    # the operators of a graph that torch.export made
    _aten.linear.default: _linear,
    _aten.embedding.default: _aten_embedding,
    _aten.bilinear.default: _bilinear,
    _aten.conv1d.default: _convolution(1),
    _aten.conv2d.default: _convolution(2),
    _aten.conv3d.default: _convolution(3),
    _aten.conv1d.padding: _convolution(1),
    _aten.conv2d.padding: _convolution(2),
    _aten.conv3d.padding: _convolution(3),
    _aten.conv_transpose1d.default: _transposed_convolution(1),
    _aten.conv_transpose2d.input: _transposed_convolution(2),
    _aten.conv_transpose3d.input: _transposed_convolution(3),
    _aten.convolution.default: _any_convolution,
    _aten.matmul.default: _matmul,
    _aten.mm.default: _matmul,
    _aten.addmm.default: _addmm,
}
"""The functions that multiply a weight with activations, as ``TorchFunctionMode`` names them."""
