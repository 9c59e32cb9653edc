"""Which positions of a padded batch are real, and where they lie in a layer's activations.

May import: torch. Tests: ``tests/watching/test_masks.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Mask", "mask_of"]


@dataclass(frozen=True)
class Mask:
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


def mask_of(attention_mask: Tensor) -> Mask | None:
    """The mask of an ``attention_mask`` of shape (samples, positions), 0 where padded.

    None where nothing is padded, or where the mask has another shape and says who attends to whom.
    """
    if attention_mask.dim() != 2:
        return None
    keep = attention_mask != 0
    kept = int(keep.sum())
    return None if kept == keep.numel() else Mask(keep, kept)
