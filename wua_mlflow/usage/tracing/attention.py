"""Attention: torch's own code run so that its calls are seen, its fused weight, and its heads.

Tests: ``tests/usage/tracing/test_attention.py``.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional

from wua_mlflow.usage.tracing.calls import WeightCall
from wua_mlflow.usage.tracing.parameters import ParameterIndex, ParameterView

__all__ = ["ATTENTION", "attention", "heads_of", "is_time_first", "split_qkv"]


_PROJECTION = re.compile(r"(to_)?(q|k|v|query|key|value)(_proj|_lin|_linear|_layer)?|w[qkv]")
_FUSED = {("c_attn", "Conv1D"): 3, ("query_key_value", "Linear"): 1}
"""By name and class what makes queries, keys and values at once, in so many blocks of all heads."""
_SIZES = ("head_dim", "head_size")
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")

ATTENTION = functional.multi_head_attention_forward


def _without_check(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same Python function without its check for overrides, so that a mode sees its calls."""
    plain = cast(types.FunctionType, function)
    names = {**plain.__globals__, "has_torch_function": lambda *_: False}
    copy = types.FunctionType(plain.__code__, names, plain.__name__, plain.__defaults__,
                              plain.__closure__)
    copy.__kwdefaults__ = plain.__kwdefaults__
    return copy


attention = _without_check(ATTENTION)


def split_qkv(
    call: WeightCall, output: Tensor, view: ParameterView | None, index: ParameterIndex
) -> list[tuple[WeightCall, Tensor, ParameterView | None]]:
    """The rows of attention's fused weight apart: queries, keys, values; any other product alone.

    Args:
        call: of the weight.
        output: what it gave.
        view: of the weight's parameter; None for a computed weight.
        index: of the model.
    """
    owner, _, attribute = view.parameter.rpartition(".") if view else ("", "", "")
    module = index.modules.get(owner)
    if attribute != "in_proj_weight" or not isinstance(module, nn.MultiheadAttention):
        return [(call, output, view)]
    width, parts = module.embed_dim, []
    for start in range(0, call.weight.shape[0], width):
        bias = None if call.bias is None else call.bias.narrow(0, start, width)
        part = WeightCall("linear", call.weight.narrow(0, start, width), call.inputs, bias)
        parts.append((part, output.narrow(-1, start, width), index.find(part.weight)))
    return parts


def heads_of(index: ParameterIndex, module: str, units: int) -> tuple[int, int]:
    """How many heads share out the units of a projection, and in how many blocks they all lie.

    Known of ``nn.MultiheadAttention``, and of a layer that is called as queries, keys and values
    are in a module that has the size of a head or the number of heads: ``transformers``' models. A
    layer that makes all three at once has a block of all heads for each (GPT-2's ``c_attn``), or
    lays out a head's three together (``query_key_value`` of GPT-NeoX and BLOOM).

    Args:
        index: of the model.
        module: the name of the one that holds the weight.
        units: of the layer.

    Returns:
        (0, 1) where it has no heads, or how many is not known.
    """
    projection = index.modules.get(module)
    if isinstance(projection, nn.MultiheadAttention):
        return projection.num_heads, 1
    parent, _, leaf = module.rpartition(".")
    attention_module = index.modules.get(parent)
    fused = _FUSED.get((leaf, type(projection).__name__))
    if attention_module is None or not (fused or _PROJECTION.fullmatch(leaf)):
        return 0, 1
    size, heads = (_first_number(attention_module, names) for names in (_SIZES, _HEADS))
    if fused:
        heads = heads or (units // (3 * size) if size else 0)
        whole = heads and (units == 3 * heads * size if size else units % (heads * fused) == 0)
        return (heads, fused) if whole else (0, 1)  # else heads share their keys
    if size:  # keys and values may have fewer heads
        heads = units // size if units % size == 0 else 0
    return (heads, 1) if heads and units % heads == 0 else (0, 1)


def _first_number(module: nn.Module, names: Sequence[str]) -> int:
    """The first of these attributes that is a positive integer; 0 where none is."""
    values = (getattr(module, name, None) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), 0)


def is_time_first(module: nn.Module) -> bool:
    """Whether everything in a module has positions before samples."""
    return isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer) \
        and not module.self_attn.batch_first
