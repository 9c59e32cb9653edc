"""Sums over samples and positions of a layer's outputs and inputs, padding left out.

Tests: ``tests/usage/tracing/test_sums.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from wua_mlflow.data.batches import PaddingMask
from wua_mlflow.usage.tracing.calls import ConvGeometry, WeightCall
from wua_mlflow.usage.tracing.tags import tag_of

__all__ = [
    "ValidPositions", "by_unit", "feature_sums", "input_sums", "is_cheaper_by_inputs",
    "masked_rows", "output_sums_by_inputs", "unit_sums", "wide",
]


@dataclass(frozen=True)
class ValidPositions:
    """Which positions of the batch count, and how they lie in the activations of one call.

    Attributes:
        mask: the positions that count; all, if None.
        time_first: whether positions come before samples.
        packed: whether the rows are those of a packed sequence, whose samples are not known.
    """

    mask: PaddingMask | None = None
    time_first: bool = False
    packed: bool = False


_BLOCK = 2**17
"""Numbers that are summed at a time."""
_TINY = 1e-30
"""Sums of squares below this are taken again in float64: float32 has no squares below 1e-45."""
_MANY_OUTPUTS = 2**16
"""From so many outputs on it is worth to ask whether the inputs are fewer."""
_LONG_ROW = 2**14
"""Rows from this length on are summed one at a time."""
Sums = tuple[Tensor, int]
"""The sums, and over how many samples and positions."""


def unit_sums(rows: Tensor) -> Tensor:
    """Σ over samples and positions, shape (units,), of ``rows`` as ``by_unit`` gives them."""
    if rows.dim() == 3:  # a convolution's
        return rows.sum(2, dtype=wide(rows)).sum(0)
    return rows.sum(0, dtype=wide(rows))


def is_cheaper_by_inputs(call: WeightCall, output: Tensor) -> bool:
    """Whether a convolution has so many more outputs than inputs that these are summed faster."""
    geometry = call.geometry
    return geometry is not None and not geometry.transposed and geometry.groups == 1 \
        and output.numel() >= _MANY_OUTPUTS and output.numel() >= 4 * call.inputs[0].numel() \
        and output.dtype in (torch.float32, torch.float64) and output.device.type != "mps"


def output_sums_by_inputs(call: WeightCall, output: Tensor) -> Tensor:
    """Σ of a convolution's outputs by unit: W Σ x + the bias, Σ x by each weight of the kernel."""
    x = _batched(call).detach()
    sums, count = _kernel_sums(x.sum(0, dtype=wide(x)), call, output)
    total = call.weight.detach().flatten(1).double() @ sums[0].double()
    if call.bias is not None:
        total = total + call.bias.detach().double() * count
    return total


def by_unit(output: Tensor, spatial: int, unit_dim: int = -1) -> Tensor:
    """The outputs as (rows, units), those of a convolution as (samples, units, positions).

    Args:
        output: of a layer, or what came of it with its units in place.
        spatial: the number of a convolution's spatial dimensions, else 0. An output without them
            is taken as (..., units).
        unit_dim: -1, or -2 where the last dimension counts columns.
    """
    if spatial and output.dim() in (spatial + 1, spatial + 2):
        positions = output.flatten(-spatial)
        return positions if positions.dim() == 3 else positions.unsqueeze(0)
    if unit_dim == -2:
        output = output.transpose(-1, -2)
    return output.reshape(-1, output.shape[-1])


def input_sums(
    call: WeightCall, output: Tensor, power: int, positions: ValidPositions
) -> Sums:
    """Σ |x|^power of what each weight multiplies, over samples and output positions.

    Args:
        call: the weight and its activations.
        output: of the call; its shape says which input each weight of a kernel meets.
        power: 1 or 2.
        positions: those that count.

    Returns:
        Shape (groups, weights of a unit): padding counts as zero, exactly as unfolding would.
    """
    x, mask = call.inputs[0], positions.mask
    if call.geometry is not None:
        valid = mask.columns(output.shape) if mask and output.dim() == 3 else None
        if mask and valid is not None and not call.geometry.transposed:
            return _masked_kernel_sums(call, valid, power), mask.count
        return _kernel_sums(_exact_power_sum(_batched(call), power), call, output)
    if call.operation == "embedding":
        return _entry_counts(x, call.weight.shape[0], mask)
    if call.operation == "bilinear":
        (left, count), (right, _) = (
            masked_rows(side.reshape(-1, side.shape[-1]), side.shape[:-1], positions)
            for side in call.inputs)
        left, right = (_float64(side.to(wide(side)).abs() ** power) for side in (left, right))
        return (left.T @ right).reshape(1, -1), count
    if call.operation == "left_matmul":
        x = x.transpose(-1, -2)
    sums, count = feature_sums(x, power, positions)
    return sums.unsqueeze(0), count


def _batched(call: WeightCall) -> Tensor:
    """The inputs of a convolution with their batch dimension."""
    x = call.inputs[0]
    return x if x.dim() == call.weight.dim() else x.unsqueeze(0)


def feature_sums(x: Tensor, power: int, positions: ValidPositions) -> Sums:
    """Σ |x|^power of the last dimension's entries, over all the others."""
    rows, count = masked_rows(x.reshape(-1, x.shape[-1]), x.shape[:-1], positions)
    return _exact_power_sum(rows, power), count


def _exact_power_sum(rows: Tensor, power: int) -> Tensor:
    """``_power_sum``, in float64 where float32 may lose squares for being too small.

    Not asked on a GPU, which would have to wait for the answer.
    """
    sums = _power_sum(rows, power)
    if power == 2 and sums.dtype == torch.float32 and sums.device.type == "cpu" \
            and sums.numel() and float(sums.detach().max()) < _TINY:
        return _power_sum(rows.double(), power)
    return sums


def wide(tensor: Tensor) -> torch.dtype:
    """float32, or float64 where the tensor has it."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _float64(rows: Tensor) -> Tensor:
    """For a product, which the caller's autocast leaves alone in float64; a Mac's GPU has none."""
    return rows if rows.device.type == "mps" else rows.double()


def _power_sum(rows: Tensor, power: int) -> Tensor:
    """Σ |x|^power over the first dimension, without a copy of the activations.

    On a CPU block by block, each small enough to stay in its cache: eight times as fast there as
    ``vector_norm``, which a GPU fuses.
    """
    dtype = wide(rows)
    if rows.is_cuda:
        norm: Tensor = torch.linalg.vector_norm(rows, power, dim=0, dtype=dtype)
        return norm if power == 1 else norm.square()
    if power == 1 and tag_of(rows).positive:
        return rows.sum(0, dtype=dtype)
    flat = rows.flatten(1)
    sums = torch.zeros(flat.shape[1], dtype=dtype, device=rows.device)
    if power == 2 and flat.shape[1] >= _LONG_ROW and flat.dtype == dtype:
        for row in flat:
            sums.addcmul_(row, row)
        return sums.reshape(rows.shape[1:])
    columns = min(_BLOCK, max(1, flat.shape[1]))
    step = max(1, _BLOCK // columns)
    for start in range(0, flat.shape[1], columns):
        total = sums[start:start + columns]
        for block in flat[:, start:start + columns].split(step):
            block = block.to(dtype)
            total += (block.abs() if power == 1 else block.square()).sum(0)
    return sums.reshape(rows.shape[1:])


def masked_rows(rows: Tensor, lead: Sequence[int], positions: ValidPositions) -> Sums:
    """Activations with the positions that do not count set to zero, and how many count.

    Args:
        rows: as ``by_unit`` gives them.
        lead: the shape that they had, but for the last dimension.
        positions: those that count.
    """
    mask = positions.mask
    if rows.dim() == 3:
        valid = mask.columns(rows.shape) if mask and len(lead) == 2 else None
        if mask and valid is not None:
            return rows.masked_fill(~valid, 0), mask.count
        return rows, rows.shape[0] * rows.shape[2]
    valid_rows = mask.rows(lead, time_first=positions.time_first) if mask else None
    if valid_rows is None:
        return rows, len(rows)
    return rows.masked_fill(~valid_rows[0].unsqueeze(-1), 0), valid_rows[1]


def _entry_counts(indices: Tensor, entries: int, mask: PaddingMask | None) -> Sums:
    """How often each entry was looked up: the sum of one-hot inputs, of any power."""
    valid = mask.rows(indices.shape, time_first=False) if mask else None
    ones, count = valid or (torch.ones_like(indices), indices.numel())
    counts = torch.zeros(entries, dtype=torch.float32, device=indices.device)
    return counts.index_add_(0, indices.reshape(-1), ones.reshape(-1).float()).unsqueeze(0), count


def _kernel_sums(sums: Tensor, call: WeightCall, output: Tensor) -> Sums:
    """For each weight of a kernel, the sum over the inputs that it slides over.

    Args:
        sums: those over the samples, shape (channels, *input size); summed on, dimension by
            dimension.
        call: the convolution.
        output: of the convolution.
    """
    geometry, x = cast(ConvGeometry, call.geometry), call.inputs[0]
    kernel = call.weight.shape[2:]
    moving = x if geometry.transposed else output
    sizes = zip(kernel, x.shape[-len(kernel):], output.shape[-len(kernel):], strict=True)
    for dim, (entries, *ends) in enumerate(sizes, 1):  # (channels, *done, this, *to come)
        windows = [_window(dim - 1, offset, geometry, *ends) for offset in range(entries)]
        sums = torch.stack([sums[(slice(None),) * dim + (window,)].sum(dim)
                            for window in windows], dim)
    return sums.reshape(geometry.groups, -1), moving.numel() // moving.shape[-1 - len(kernel)]


def _masked_kernel_sums(call: WeightCall, valid: Tensor, power: int) -> Tensor:
    """The same for a padded sequence: only what the valid outputs are made of.

    Args:
        call: a convolution along one dimension.
        valid: shape (samples, 1, output positions).
        power: 1 or 2.
    """
    x, geometry = call.inputs[0], cast(ConvGeometry, call.geometry)
    sums = []
    for offset in range(call.weight.shape[2]):
        window = _window(0, offset, geometry, x.shape[2], valid.shape[2])
        part = x[:, :, window]
        shift = offset * geometry.dilation[0] - geometry.padding[0]
        start = (window.start - shift) // geometry.stride[0]
        inputs = part.masked_fill(~valid[:, :, start:start + part.shape[2]], 0)
        sums.append(_power_sum(inputs.transpose(1, 2).flatten(0, 1), power))
    return torch.stack(sums, 1).reshape(geometry.groups, -1)


def _window(dim: int, offset: int, geometry: ConvGeometry, size: int, out_size: int) -> slice:
    """Which inputs meet the kernel's entry ``offset`` of one dimension."""
    stride, shift = geometry.stride[dim], offset * geometry.dilation[dim] - geometry.padding[dim]
    moving, other = (size, out_size) if geometry.transposed else (out_size, size)
    first = max(0, -(shift // stride))  # entry t of what moves meets entry t * stride + shift
    last = min(moving - 1, (other - 1 - shift) // stride)
    if first > last:
        return slice(0, 0)
    if geometry.transposed:
        return slice(first, last + 1)
    return slice(first * stride + shift, last * stride + shift + 1, stride)
