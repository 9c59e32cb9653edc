"""Which positions of a padded batch are real, and where they lie in a layer's activations.

May import: torch. Tests: ``tests/watching/test_masks.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from wua_mlflow.usage.tracing.calls import ConvGeometry, WeightCall
from wua_mlflow.usage.tracing.tags import tag_of

__all__ = ["PaddingMask", "by_unit", "input_sums", "kept", "mask_of", "output_sums"]


@dataclass(frozen=True)
class PaddingMask:
    """``keep`` has shape (samples, positions), True where a position is real; ``kept`` of them."""

    keep: Tensor
    kept: int

    def rows(self, lead: Sequence[int], *, time_first: bool) -> tuple[Tensor, int] | None:
        """For activations of shape (*lead, features): which of their rows are real, and how many.

        None where the leading dimensions are no samples and positions: all rows count then.

        Args:
            lead: the activations' shape but for the features.
            time_first: whether positions come before samples; tried also where it is False and
                the other order does not fit.

        >>> import torch
        >>> mask = mask_of(torch.tensor([[1, 1, 0]]))
        >>> mask.rows((1, 3), time_first=False)[0].tolist(), mask.rows((7,), time_first=False)
        ([True, True, False], None)
        """
        for keep in (self.keep.T, self.keep) if time_first else (self.keep, self.keep.T):
            if tuple(lead[:2]) == tuple(keep.shape):
                each = math.prod(lead[2:])
                flat = keep.reshape(-1)
                return (flat.repeat_interleave(each) if each > 1 else flat), self.kept * each
            if tuple(lead) == (self.keep.numel(),):
                return keep.reshape(-1), self.kept
        return None

    def columns(self, shape: Sequence[int]) -> Tensor | None:
        """For activations of shape (samples, channels, positions): shape (samples, 1, positions).

        None where they are others: all positions count then.
        """
        fits = (shape[0], *shape[2:]) == tuple(self.keep.shape)
        return self.keep.unsqueeze(1) if fits else None


def mask_of(attention_mask: Tensor) -> PaddingMask | None:
    """The mask of an ``attention_mask`` of shape (samples, positions), 0 where padded.

    None where nothing is padded, or where the mask has another shape and says who attends to whom.
    """
    if attention_mask.dim() != 2:
        return None
    keep = attention_mask != 0
    kept = int(keep.sum())
    return None if kept == keep.numel() else PaddingMask(keep, kept)


_BLOCK = 2**17
"""So many numbers at a time."""
_FAINT = 1e-30
"""Sums of squares below this are taken again in float64: float32 has no squares below 1e-45."""
_MUCH = 2**16
"""From so many outputs on it is worth to ask whether the inputs are fewer."""
_LONG_ROW = 2**14
"""From so many numbers in a row on, a row at a time."""
Sums = tuple[Tensor, int]
"""The sums, and over how many samples and positions."""


def output_sums(
    product: WeightCall, output: Tensor, mask: PaddingMask | None, *, time_first: bool = False
) -> Sums:
    """Σ z of each unit's signed output, shape (units,), over samples and positions.

    Args:
        product: says which dimension of the output counts units.
        output: what the product gave.
        mask: the positions that count; all, if None.
        time_first: as ``Mask.rows`` takes it.
    """
    if mask is None and _is_cheaper_by_inputs(product, output):
        return _sums_by_inputs(product, output)
    rows = by_unit(output, product.spatial, product.unit_dim)
    real, count = kept(rows, product.lead(output), mask, time_first=time_first)
    if real.dim() == 3:  # a convolution's
        return real.sum(2, dtype=wide(rows)).sum(0), count
    return real.sum(0, dtype=wide(rows)), count


def _is_cheaper_by_inputs(product: WeightCall, output: Tensor) -> bool:
    """A convolution that makes much of little: a mean of its outputs is one of its inputs."""
    at = product.geometry
    return at is not None and not at.transposed and at.groups == 1 \
        and output.numel() >= _MUCH and output.numel() >= 4 * product.inputs[0].numel() \
        and output.dtype in (torch.float32, torch.float64) and output.device.type != "mps"


def _sums_by_inputs(product: WeightCall, output: Tensor) -> Sums:
    """Σ z = W Σ x + the bias a position: x by each weight, as for the sums of inputs."""
    at, x = cast(ConvGeometry, product.geometry), product.inputs[0].detach()
    batched = x if x.dim() == product.weight.dim() else x.unsqueeze(0)
    sums, count = _kernel_sums(batched.sum(0, dtype=wide(x)), x, product.weight, at, output)
    total = product.weight.detach().flatten(1).double() @ sums[0].double()
    if product.bias is not None:
        total = total + product.bias.detach().double() * count
    return total, count


def by_unit(output: Tensor, spatial: int, unit_dim: int = -1) -> Tensor:
    """The outputs as (rows, units), those of a convolution as (samples, units, positions).

    Args:
        output: of a layer, or what came of it with its units in place.
        spatial: the number of a convolution's spatial dimensions, else 0. An output without them
            is taken as (..., units).
        unit_dim: -1, or -2 where the last dimension counts columns.
    """
    if spatial and output.dim() in (spatial + 1, spatial + 2):
        batched = output if output.dim() == spatial + 2 else output.unsqueeze(0)
        return batched.flatten(2)
    if unit_dim == -2:
        output = output.transpose(-1, -2)
    return output.reshape(-1, output.shape[-1])


def input_sums(
    product: WeightCall,
    output: Tensor,
    power: int,
    mask: PaddingMask | None,
    *,
    time_first: bool = False,
) -> Sums:
    """Σ |x|^power of what each weight multiplies, over samples and output positions.

    Args:
        product: the weight and what it met.
        output: what the product gave; its shape says which input each weight of a kernel meets.
        power: 1 or 2.
        mask: the positions that count; all, if None.
        time_first: as ``Mask.rows`` takes it.

    Returns:
        Shape (groups, weights of a unit): padding counts as zero, exactly as unfolding would.
    """
    x = product.inputs[0]
    if product.geometry is not None:
        real = mask.columns(output.shape) if mask and output.dim() == 3 else None
        if mask and real is not None and not product.geometry.transposed:
            return _real_kernel_sums(product, real, power), mask.kept
        batched = x if x.dim() == product.weight.dim() else x.unsqueeze(0)
        by_place = _power_sum(batched, power)
        if _is_faint(by_place, power):
            by_place = _power_sum(batched.double(), power)
        return _kernel_sums(by_place, x, product.weight, product.geometry, output)
    if product.operation == "embedding":
        return _entry_counts(x, product.weight.shape[0], mask)
    if product.operation == "bilinear":
        (left, count), (right, _) = (
            kept(one.reshape(-1, one.shape[-1]), one.shape[:-1], mask, time_first=time_first)
            for one in product.inputs)
        sums = _exact(_power(left, power)).T @ _exact(_power(right, power))
        return sums.reshape(1, -1), count
    if product.operation == "left_matmul":
        x = x.transpose(-1, -2)
    rows, count = kept(x.reshape(-1, x.shape[-1]), x.shape[:-1], mask, time_first=time_first)
    sums = _power_sum(rows, power)
    return _power_sum(rows.double(), power).unsqueeze(0) if _is_faint(sums, power) else \
        sums.unsqueeze(0), count


def _is_faint(sums: Tensor, power: int) -> bool:
    """Whether squares may have been lost for being too small; a GPU would have to wait to tell."""
    return power == 2 and sums.dtype == torch.float32 and sums.device.type == "cpu" and \
        sums.numel() > 0 and float(sums.detach().max()) < _FAINT


def wide(tensor: Tensor) -> torch.dtype:
    """float32, or float64 where the tensor has it."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _exact(rows: Tensor) -> Tensor:
    """For a product, which the caller's autocast leaves alone in float64; a Mac's GPU has none."""
    return rows if rows.device.type == "mps" else rows.double()


def _power(rows: Tensor, power: int) -> Tensor:
    return rows.to(wide(rows)).abs() ** power


def _power_sum(rows: Tensor, power: int) -> Tensor:
    """Σ |x|^power over the first dimension, without a copy of the activations.

    On a CPU block by block, each small enough to stay in its cache: eight times as fast there as
    ``vector_norm``, which a GPU fuses.
    """
    dtype = wide(rows)
    if rows.is_cuda:
        norm = torch.linalg.vector_norm(rows, power, dim=0, dtype=dtype)
        return norm if power == 1 else norm.square()
    if power == 1 and tag_of(rows, "positive"):
        return rows.sum(0, dtype=dtype)
    flat = rows.flatten(1)
    sums = torch.zeros(flat.shape[1], dtype=dtype, device=rows.device)
    if power == 2 and flat.shape[1] >= _LONG_ROW and flat.dtype == dtype:
        for row in flat:
            sums.addcmul_(row, row)
        return sums.reshape(rows.shape[1:])
    columns = min(_BLOCK, max(1, flat.shape[1]))
    step = max(1, _BLOCK // columns)
    for left in range(0, flat.shape[1], columns):
        into = sums[left:left + columns]
        for block in flat[:, left:left + columns].split(step):
            block = block.to(dtype)
            into += (block.abs() if power == 1 else block.square()).sum(0)
    return sums.reshape(rows.shape[1:])


def kept(
    rows: Tensor, lead: Any, mask: PaddingMask | None, *, time_first: bool = False
) -> tuple[Tensor, int]:
    """Activations with the positions that do not count set to zero, and how many count.

    Args:
        rows: as ``by_unit`` gives them.
        lead: the shape that they had, but for the last dimension.
        mask: the positions that count; all, if None.
        time_first: as ``Mask.rows`` takes it.
    """
    if rows.dim() == 3:
        real = mask.columns(rows.shape) if mask and len(lead) == 2 else None
        if mask and real is not None:
            return rows.masked_fill(~real, 0), mask.kept
        return rows, rows.shape[0] * rows.shape[2]
    found = mask.rows(lead, time_first=time_first) if mask else None
    if found is None:
        return rows, len(rows)
    return rows.masked_fill(~found[0].unsqueeze(-1), 0), found[1]


def _entry_counts(indices: Tensor, entries: int, mask: PaddingMask | None) -> Sums:
    """How often each entry was looked up: the sum of one-hot inputs, of any power."""
    flat = indices.reshape(-1)
    found = mask.rows(indices.shape, time_first=False) if mask else None
    ones = torch.ones(flat.shape, device=flat.device)
    if found is not None:
        ones = ones * found[0]
    counts = torch.zeros(entries, device=flat.device).index_add_(0, flat, ones)
    return counts.unsqueeze(0), found[1] if found is not None else flat.numel()


def _kernel_sums(
    sums: Tensor, x: Tensor, weight: Tensor, geometry: ConvGeometry, output: Tensor
) -> Sums:
    """For each weight of a kernel, the sum over the inputs that it slides over.

    ``sums`` are those over the samples; what is left is small, and summed dimension by dimension.
    """
    dims = weight.dim() - 2
    if x.dim() == dims + 1:
        x, output = x.unsqueeze(0), output.unsqueeze(0)
    moving = x if geometry.transposed else output
    count = moving.shape[0] * math.prod(moving.shape[2:])
    for dim in range(dims):  # (channels, *done kernel sizes, this, *to come)
        windows = [_window(dim, offset, geometry, x.shape[2 + dim], output.shape[2 + dim])
                   for offset in range(weight.shape[2 + dim])]
        sums = torch.stack([sums.select(1 + dim, 0) * 0 if window is None else
                            sums[(slice(None),) * (1 + dim) + (window,)].sum(1 + dim)
                            for window in windows], dim=1 + dim)
    return sums.reshape(geometry.groups, -1), count


def _real_kernel_sums(product: WeightCall, real: Tensor, power: int) -> Tensor:
    """Those of a sequence with padding: only the outputs that are ``real`` have met something.

    Args:
        product: a convolution along one dimension.
        real: shape (samples, 1, output positions).
        power: 1 or 2.
    """
    x, at = product.inputs[0], cast(ConvGeometry, product.geometry)
    found = []
    for offset in range(product.weight.shape[2]):
        window = _window(0, offset, at, x.shape[2], real.shape[2])
        part = x[:, :, window or slice(0)]
        shift = offset * at.dilation[0] - at.padding[0]
        start = (window.start - shift) // at.stride[0] if window else 0
        met = part.masked_fill(~real[:, :, start:start + part.shape[2]], 0)
        found.append(_power_sum(met.transpose(1, 2).flatten(0, 1), power))
    return torch.stack(found, 1).reshape(at.groups, -1)


def _window(
    dim: int, offset: int, geometry: ConvGeometry, size: int, out_size: int
) -> slice | None:
    """Which inputs meet the kernel's entry ``offset`` of one dimension."""
    stride, padding = geometry.stride[dim], geometry.padding[dim]
    shift = offset * geometry.dilation[dim] - padding
    if geometry.transposed:  # input i goes to output i * stride + shift
        first = max(0, -(shift // stride))
        last = min(size - 1, (out_size - 1 - shift) // stride)
        return slice(first, last + 1) if first <= last else None
    first = max(0, -(shift // stride))  # output t takes input t * stride + shift
    last = min(out_size - 1, (size - 1 - shift) // stride)
    if first > last:
        return None
    return slice(first * stride + shift, last * stride + shift + 1, stride)
