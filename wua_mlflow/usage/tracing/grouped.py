"""Grouped products, as of mixtures of experts, run group by group: each is a linear layer's then.

Tests: ``tests/usage/tracing/test_grouped.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["grouped_operands", "run_by_group"]


_GROUPED = frozenset(["_grouped_mm", "grouped_mm", "grouped_mm_fallback"])


def grouped_operands(
    name: str, args: Any, kwargs: Mapping[str, Any]
) -> tuple[Tensor, Tensor, list[int]] | None:
    """Rows, the groups' matrices, and where each group's rows end; None of any other call.

    Args:
        name: of the function.
        args: of the call.
        kwargs: of the call.
    """
    if name not in _GROUPED:
        return None
    rows, matrices, offsets, *more = (*args, None, None, None)[:max(3, len(args))]
    offsets = kwargs.get("offs", offsets)
    more += [value for key, value in kwargs.items() if key != "offs"]
    if not isinstance(offsets, Tensor) or any(value is not None for value in more) \
            or rows.dim() != 2 or matrices.dim() != 3:
        return None
    return rows, matrices, offsets.tolist()


def run_by_group(rows: Tensor, matrices: Tensor, ends: list[int]) -> Tensor:
    """The rows of each group times its matrix; rows of no group give zeros.

    Args:
        rows: shape (rows, in).
        matrices: shape (groups, in, out).
        ends: by group the row after its last one.

    >>> run_by_group(torch.ones(3, 1), torch.tensor([[[2.0]], [[3.0]]]), [1, 2]).tolist()
    [[2.0], [3.0], [0.0]]
    """
    parts = [functional.linear(rows[start:end], matrices[group].transpose(0, 1))
             for group, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True))
             if end > start]
    rest = rows.new_zeros(len(rows) - ends[-1], matrices.shape[2])
    return torch.cat([*parts, rest])
