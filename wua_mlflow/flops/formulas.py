"""FLOPs of single operators: corrections to torch's own formulas, and the operators left out.

Pure functions of shapes, for torch's counter.
Tests: ``tests/flops/test_formulas.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import conv_flop_count, sdpa_backward_flop_count, sdpa_flop_count

__all__ = ["FORMULAS", "is_left_out"]


Shape = Sequence[int]

_NOT_COUNTED = {
    "elementwise": """
        __and__ __or__ _add_relu _fused_dropout _masked_scale _prelu_kernel
        _thnn_fused_gru_cell _thnn_fused_lstm_cell _to_copy _transform_bias_rescale_qkv
        binary_cross_entropy binary_cross_entropy_with_logits clone complex dequantize elu
        floor_divide glu hardshrink hardsigmoid hardswish hardtanh huber_loss leaky_relu
        linalg_cross log_sigmoid mish mse_loss native_dropout polar quantize_per_tensor
        rrelu_with_noise smooth_l1_loss soft_margin_loss softplus softshrink
    """,
    "creation, random numbers, copies, checks": """
        _assert_async _assert_scalar _assert_tensor_metadata _efficientzerotensor
        _functional_assert_async _fused_sdp_choice _linalg_check_errors _local_scalar_dense
        _pin_memory allclose arange
        bernoulli blackman_window cauchy copy empty empty_like empty_permuted empty_strided
        exponential eye fill full full_like geometric hamming_window hann_window is_same_size
        kaiser_window lift linspace log_normal logspace multinomial new_empty new_empty_strided
        new_full new_ones new_zeros normal normal_functional ones ones_like poisson rand rand_like
        randint randint_like randn randn_like random randperm range scalar_tensor tril_indices
        triu_indices uniform zero zeros zeros_like
    """,
    "views, and what only moves, chooses or orders entries": """
        _chunk_cat _index_put_impl _nested_from_padded _nested_tensor_from_mask
        _pack_padded_sequence _reshape_copy _stack _unique _unique2 _unsafe_index
        _unsafe_index_put _unsafe_masked_index _unsafe_masked_index_put_accumulate _unsafe_view
        _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
        as_strided as_strided_scatter block_diag bucketize cat channel_shuffle col2im
        constant_pad_nd detach diag_embed diagonal diagonal_scatter embedding flip gather im2col
        index index_add
        index_copy index_fill index_put index_reduce index_select isin kthvalue masked_fill
        masked_scatter masked_select max_unpool2d max_unpool3d nonzero nonzero_static
        pixel_shuffle pixel_unshuffle put reflection_pad1d reflection_pad2d reflection_pad3d
        repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d resize
        resize_as roll rot90 scatter scatter_add scatter_reduce searchsorted select
        select_scatter set slice sort squeeze stack t take to_padded_tensor topk
        transpose tril triu unfold unique_consecutive unique_dim unsafe_split
        unsafe_split_with_sizes unsqueeze upsample_nearest1d upsample_nearest2d
        upsample_nearest3d
    """,
    "reductions and scans, pooling and losses among them": """
        _adaptive_avg_pool2d _adaptive_avg_pool3d _aminmax _cummax_helper _cummin_helper
        _embedding_bag _embedding_bag_forward_only _is_all_true _is_any_true _logcumsumexp
        adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d all amax amin aminmax any argmax
        argmin avg_pool2d avg_pool3d bincount count_nonzero cummax cummin cumprod cumsum dist
        fractional_max_pool2d fractional_max_pool3d hash_tensor histc histogram linalg__powsum
        linalg_vector_norm logcumsumexp logsumexp max max_pool2d max_pool2d_with_indices
        max_pool3d_with_indices mean median min mode multi_margin_loss multilabel_margin_loss
        nanmedian nansum nll_loss nll_loss2d norm prod segment_reduce std std_mean sum trace var
        var_mean
    """,
    "normalisation": """
        _batch_norm_no_update _batch_norm_with_update _fused_rms_norm _log_softmax _masked_softmax
        _native_batch_norm_legit _native_batch_norm_legit_functional
        _native_batch_norm_legit_no_training _safe_softmax _softmax _weight_norm_interface
        batch_norm cudnn_batch_norm embedding_renorm native_batch_norm native_group_norm
        native_layer_norm renorm
    """,
}
"""Operators that count as no FLOPs, beside those that torch itself marks as pointwise or as views.

An in-place or backward variant goes with its operator.
"""

_NOT_COUNTED_NAMES = frozenset(name for names in _NOT_COUNTED.values() for name in names.split())
_NOT_COUNTED_TAGS = {torch.Tag.pointwise, torch.Tag.view_copy}
_VARIANT = re.compile(r"(_forward|_(dense_)?backward(_data|_impl)?|_)$")


def is_left_out(operator: torch._ops.OpOverload) -> bool:
    """Whether ``operator`` is elementwise, a view, a reduction, a normalisation or a creation.

    Such operators count as no FLOPs by convention; any other one without a formula is reported.

    >>> is_left_out(torch.ops.aten.relu_.default), is_left_out(torch.ops.aten._fft_r2c.default)
    (True, False)
    """
    if operator.namespace == "prim":
        return True
    if operator.namespace != "aten":
        return False
    if operator.is_view or _NOT_COUNTED_TAGS & set(operator.tags):
        return True
    name = operator._schema.name.removeprefix("aten::")
    base = _VARIANT.sub("", name)
    return bool({name, base} & _NOT_COUNTED_NAMES) or (base != name and _is_pointwise(base))


def _is_pointwise(name: str) -> bool:
    packet = getattr(torch.ops.aten, name, None)
    overloads = packet.overloads() if packet is not None else []
    return any(torch.Tag.pointwise in getattr(packet, overload).tags for overload in overloads)


def _convolution_backward(
    grad_out: Shape, x: Shape, weight: Shape, *arguments: Any, out_shape: Any = None
) -> int:
    """Input and weight gradient cost as much as the forward each, grouped or not.

    torch multiplies the weight gradient by the number of groups. The bias gradient is a sum.
    """
    transposed, output_mask = arguments[4], arguments[7]
    forward: int = conv_flop_count(list(x), list(weight), list(grad_out), transposed=transposed)
    return forward * int(sum(output_mask[:2]))


def _grouped_mm(a: Shape, b: Shape, *options: Any, out_shape: Any = None, **more: Any) -> int:
    """A mixture of experts: each row of ``a`` meets one matrix of ``b``, or each one its own."""
    batches = a[0] if len(a) == len(b) == 3 else 1
    return 2 * batches * a[-2] * a[-1] * b[-1]


def _trilinear(*arguments: Any, out_shape: Any = None) -> int:
    """``nn.Bilinear``: the first operand by the second, then by the third, as einsum would.

    Arguments 0 to 2 are the operands, 3 to 5 the dimensions that each of them lacks, 6 the
    dimensions summed. Those that the third operand lacks are summed in the first product.
    """
    lacking = [set(dims) for dims in arguments[3:6]]
    sizes: dict[int, int] = {}
    for shape, lacks in zip(arguments[:3], lacking, strict=True):
        dims = [dim for dim in range(len(shape) + len(lacks)) if dim not in lacks]
        sizes.update(zip(dims, shape, strict=True))
    first = set(sizes) - (lacking[0] & lacking[1])
    second = first - (set(arguments[6]) & lacking[2]) | (set(sizes) - lacking[2])
    return 2 * sum(prod(sizes[dim] for dim in dims) for dims in (first, second))


_aten = torch.ops.aten

FORMULAS: dict[Any, Callable[..., int]] = {
    _aten.convolution_backward: _convolution_backward,
    _aten.mv: lambda matrix, *_, **__: 2 * prod(matrix),
    _aten.addmv: lambda bias, matrix, *_, **__: 2 * prod(matrix),
    _aten.dot: lambda a, *_, **__: 2 * prod(a),
    _aten.vdot: lambda a, *_, **__: 2 * prod(a),
    _aten.addr: lambda bias, a, b, **_: 2 * prod(a) * prod(b),
    _aten.addbmm: lambda bias, a, b, **_: 2 * prod(a) * b[-1],
    _aten._int_mm: lambda a, b, **_: 2 * prod(a) * b[-1],
    _aten._grouped_mm: _grouped_mm,
    _aten._trilinear: _trilinear,
    _aten._scaled_dot_product_flash_attention_for_cpu:
        lambda q, k, v, *_, **__: int(sdpa_flop_count(q, k, v)),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward:
        lambda grad, q, k, v, *_, **__: int(sdpa_backward_flop_count(grad, q, k, v)),
}
"""What torch 2.13 counts wrongly or not at all, for ``FlopCounterMode(custom_mapping=...)``.

Each function takes the operator's own arguments, with shapes in place of tensors.
"""
