"""Whether a weight of any size is finite, without a copy of it.

May import: torch. Tests: ``tests/test_finite.py``, ``tests/test_evidence.py``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["is_finite"]

_BLOCK = 2**20
"""So many weights at a time are looked at."""


def is_finite(weight: Tensor) -> bool:
    """Block by block: a weight of less than float32 is never copied whole; read back once."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    total = torch.zeros((), dtype=dtype, device=weight.device)
    for block in _blocks(weight):
        total += torch.linalg.vector_norm(block, 1, dtype=dtype)
    if bool(torch.isfinite(total)):
        return True
    finite = torch.ones((), dtype=torch.bool, device=weight.device)
    for block in _blocks(weight):  # finite ones can have an infinite sum
        finite &= torch.isfinite(block).all()
    return bool(finite)


def _blocks(tensor: Tensor) -> Iterator[Tensor]:
    """Views of all of a tensor, however it lies in memory, none above ``_BLOCK`` numbers."""
    if tensor.numel() <= _BLOCK:
        yield tensor
        return
    dim = max((dim for dim, size in enumerate(tensor.shape) if size > 1), key=tensor.stride)
    for half in tensor.chunk(2, dim):
        yield from _blocks(half)
