"""Which function calls multiply a weight with activations, and which of their arguments is which.

Pure functions of a call's arguments: no model and no state.
Tests: ``tests/usage/test_layer_kinds.py``, ``tests/usage/test_convolutions.py``.
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
    """A convolution's options, one entry for each spatial dimension.

    ``padding`` is that on the left; ``transposed`` swaps input and output.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool


@dataclass(frozen=True)
class WeightCall:
    """A function call that multiplies a weight with activations.

    Attributes:
        operation: ``linear`` (weight (units, in), activations (..., in)), ``left_matmul`` (weight
            (units, in), activations (..., in, columns)), ``conv`` (weight as ``nn.Conv2d`` or,
            transposed, ``nn.ConvTranspose2d`` has it), ``embedding`` (weight (entries, units),
            activations are indices) or ``bilinear`` (weight (units, in1, in2)).
        weight: as it was passed.
        inputs: the activations.
        bias: that the call adds.
        geometry: of a convolution.
        always_a_weight: False for a plain matrix product, which may be one of two activations.
    """

    operation: str
    weight: Tensor
    inputs: tuple[Tensor, ...]
    bias: Tensor | None = None
    geometry: ConvGeometry | None = None
    always_a_weight: bool = True

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


def _parser(operation: str, *names: str, transposed: bool = False) -> CallParser:
    """The parser of a function whose argument ``weight`` is always one.

    Args:
        operation: as in ``WeightCall``.
        names: of the function's arguments in order; those of activations begin with ``in``.
        transposed: whether it is a transposed convolution, unless an argument says so.
    """
    def parse(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[WeightCall]:
        bound = {"transposed": transposed, **dict(zip(names, args, strict=False)), **kwargs}
        inputs = tuple(bound[name] for name in names if name.startswith("in"))
        geometry = _geometry(bound) if operation == "conv" else None
        return [WeightCall(operation, bound["weight"], inputs, bound.get("bias"), geometry)]

    return parse


def _geometry(bound: Mapping[str, Any]) -> ConvGeometry:
    """The options of a convolution from its arguments by name."""
    kernel = bound["weight"].shape[2:]

    def per_dim(value: Any) -> tuple[int, ...]:
        values = tuple(value) if isinstance(value, Sequence) else (value,)
        return values * len(kernel) if len(values) == 1 else values

    dilation, padding = per_dim(bound.get("dilation", 1)), bound.get("padding", 0)
    if padding == "same":  # what is odd goes to the right
        padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    elif padding == "valid":
        padding = 0
    return ConvGeometry(per_dim(bound.get("stride", 1)), per_dim(padding), dilation,
                        int(bound.get("groups", 1)), bool(bound["transposed"]))


def _matmul(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[WeightCall]:
    factors = [*args, *kwargs.values()]
    return _either_factor(factors[0], factors[1], None) if len(factors) > 1 else []


def _addmm(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[WeightCall]:
    bound = {**dict(zip(("input", "mat1", "mat2"), args, strict=False)), **kwargs}
    return _either_factor(bound["mat1"], bound["mat2"], bound["input"])


def _either_factor(left: Any, right: Any, bias: Any) -> list[WeightCall]:
    """Either factor may be the weight; only a matrix is taken for one."""
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return []
    calls = []
    if right.dim() == 2 and left.dim():
        calls.append(WeightCall("linear", right.T, (left,), bias, always_a_weight=False))
    if left.dim() == 2 and right.dim() > 1:
        calls.append(WeightCall("left_matmul", left, (right,), always_a_weight=False))
    return calls


_aten = torch.ops.aten
_linear = _parser("linear", "input", "weight", "bias")
_bilinear = _parser("bilinear", "input1", "input2", "weight", "bias")
_embedding = _parser("embedding", "input", "weight")
_aten_embedding = _parser("embedding", "weight", "indices")
_conv = _parser("conv", "input", "weight", "bias", "stride", "padding", "dilation", "groups")
_conv_transpose = _parser("conv", "input", "weight", "bias", "stride", "padding",
                          "output_padding", "groups", "dilation", transposed=True)
_any_conv = _parser("conv", "input", "weight", "bias", "stride", "padding", "dilation",
                    "transposed", "output_padding", "groups")

CALL_PARSERS: dict[Any, CallParser] = {
    func: parser
    for parser, functions in {
        _linear: (functional.linear, _aten.linear.default),
        _bilinear: (functional.bilinear, _aten.bilinear.default),
        _embedding: (functional.embedding,),
        _aten_embedding: (torch.embedding, _aten.embedding.default),
        _conv: (torch.conv1d, torch.conv2d, torch.conv3d,  # functional has the same objects
                _aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default,
                _aten.conv1d.padding, _aten.conv2d.padding, _aten.conv3d.padding),
        _conv_transpose: (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
                          _aten.conv_transpose1d.default, _aten.conv_transpose2d.input,
                          _aten.conv_transpose3d.input),
        _any_conv: (torch.convolution, _aten.convolution.default),
        _matmul: (torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__,
                  _aten.matmul.default, _aten.mm.default),
        lambda args, kwargs: _matmul(args[::-1], kwargs): (Tensor.__rmatmul__,),
        _addmm: (torch.addmm, Tensor.addmm, _aten.addmm.default),
    }.items()
    for func in functions
}
"""The functions that multiply a weight with activations, as ``TorchFunctionMode`` names them.

Those of ``aten`` are the operators of a graph that ``torch.export`` made.
"""
