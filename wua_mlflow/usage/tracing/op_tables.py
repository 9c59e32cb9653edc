"""Tables of functions by name: what they do with a parameter or with a layer's units.

Tests: ``tests/usage/test_units.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

__all__ = [
    "BROADCASTING", "CONTRACTIONS", "RESHAPE_OPS", "SUMS", "SUMS_AND_DIFFERENCES", "TRANSPOSITIONS",
    "UNITWISE_OPS", "floored_at_zero", "is_metadata_op", "is_relu",
]


_METADATA_OPS = frozenset([
    "__get__", "__set__", "__len__", "__getitem__", "__format__", "__repr__", "__hash__",
    "__deepcopy__", "_is_view", "bfloat16", "chunk", "contiguous", "data_ptr", "detach", "detach_",
    "dim", "double", "element_size", "expand", "flatten", "float", "half", "is_complex", "is_conj",
    "is_contiguous", "is_floating_point", "is_inference", "is_neg", "is_same_size", "movedim",
    "narrow", "nelement", "numel", "permute", "requires_grad_", "reshape", "select", "size",
    "split", "squeeze", "storage_offset", "stride", "swapaxes", "t", "to", "transpose", "type",
    "type_as", "unbind", "unflatten", "unsqueeze", "untyped_storage", "view", "view_as",
])
"""Functions that read a parameter or its metadata without computing with it."""
UNITWISE_OPS = frozenset([
    "relu", "relu_", "relu6", "gelu", "silu", "silu_", "tanh", "sigmoid", "leaky_relu",
    "leaky_relu_", "elu", "elu_", "hardtanh", "hardtanh_", "hardswish", "hardswish_", "mish",
    "softplus", "batch_norm", "dropout", "dropout_", "dropout2d", "max_pool1d", "max_pool2d",
    "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "flatten", "contiguous", "clamp", "clamp_",
    "clamp_min", "clamp_min_", "clip", "clip_", "_threshold", "threshold", "threshold_",
])
"""Functions after which a layer's units are still the same ones, each in its place."""
CONTRACTIONS = frozenset([
    "einsum", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "addmm", "addmv", "addbmm",
    "baddbmm", "dot", "vdot", "inner", "outer", "tensordot", "linear", "bilinear", "embedding_bag",
    "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell", "_grouped_mm",
    "grouped_mm", "grouped_mm_fallback", "scaled_dot_product_attention",
])
"""Products; those of these functions' calls that are analysed are known by themselves."""
RESHAPE_OPS = frozenset(["view", "reshape"])
"""Functions that may rearrange rows, each row whole."""
SUMS = frozenset(["add", "add_", "__add__", "__radd__", "__iadd__"])
"""Functions that may add a bias to a product."""
SUMS_AND_DIFFERENCES = SUMS | {"sub", "sub_", "subtract", "rsub", "__sub__", "__rsub__", "__isub__"}
BROADCASTING = SUMS_AND_DIFFERENCES | {
    "mul", "mul_", "multiply", "__mul__", "__rmul__", "__imul__", "div", "div_", "divide",
    "true_divide", "__truediv__", "__rtruediv__", "__itruediv__", "pow", "__pow__", "maximum",
    "minimum", "where", "lerp", "addcmul", "addcdiv",
}
"""Functions that repeat a smaller tensor for a larger one, entry by entry."""
TRANSPOSITIONS = frozenset(["__get__", "t", "transpose", "swapaxes", "swapdims", "permute",
                            "movedim", "moveaxis", "adjoint"])
"""Functions that may move the last dimension; ``__get__`` is of properties, such as ``T``."""
_RELU = frozenset(["relu", "relu_", "relu6"])
_MAXIMA = frozenset(["maximum", "fmax", "max"])
_THRESHOLDS = frozenset(["_threshold", "threshold", "threshold_"])
_LOWER = {"hardtanh": "min_val", "hardtanh_": "min_val", "clamp": "min", "clamp_": "min",
          "clamp_min": "min", "clamp_min_": "min", "clip": "min", "clip_": "min"}
"""A ReLU where this argument, the second one, is zero: ``nn.ReLU6`` is made so."""


def is_metadata_op(name: str, result: Any) -> bool:
    """Whether a function reads its tensors without computing; indexing may view or copy.

    >>> import torch
    >>> table = torch.ones(3, 2)
    >>> [is_metadata_op("__getitem__", result) for result in (table[1], table[torch.tensor([1])])]
    [True, False]
    """
    if name == "__getitem__":
        return not isinstance(result, Tensor) or result._base is not None
    return name in _METADATA_OPS


def is_relu(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call sets what is below zero of its first argument to zero.

    >>> is_relu("relu", (), {}), is_relu("clamp", (), {"min": 0}), is_relu("clamp", (None, 1), {})
    (True, True, False)
    """
    if name in _RELU:
        return True
    if name in _THRESHOLDS:  # nn.Threshold(0, 0)
        numbers = [*args[1:3], *(kwargs[key] for key in ("threshold", "value") if key in kwargs)]
        return len(numbers) == 2 and all(isinstance(number, int | float) and number == 0
                                         for number in numbers)
    if name not in _LOWER:
        return False
    low = args[1] if len(args) > 1 else kwargs.get(_LOWER[name])
    return isinstance(low, int | float) and low == 0


def floored_at_zero(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The argument of an elementwise maximum whose other one is zero everywhere; None if neither.

    Values on a GPU, which would have to wait for the answer, are not looked at.

    >>> import torch
    >>> x = torch.ones(2)
    >>> floored_at_zero("maximum", (torch.zeros(2), x), {}) is x, floored_at_zero("max", (x, 0), {})
    (True, None)
    """
    terms = [term for term in (*args, *kwargs.values()) if isinstance(term, Tensor)] \
        if name in _MAXIMA else []
    if len(terms) == 2:
        for term, floor in (terms, terms[::-1]):
            if floor.device.type == "cpu" and not bool(floor.any()):
                return term
    return None
