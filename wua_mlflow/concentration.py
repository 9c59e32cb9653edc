"""How concentrated importance is: entropy, effective count, coverage, low share, histogram.

Functions of whole tensors, for the tutorial's functions and for small ones; ``summary.py`` does the
same in bounded memory. Definitions: ``docs/conventions.md``.
May import: torch, numpy, usage. Tests: ``tests/test_concentration.py``.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from wua_mlflow.usage import Histogram

__all__ = ["effective_count", "entropy_nats", "histogram", "low_share", "top_share"]

_ROUNDING = 1e-12
"""Relative slack of a float64 cumulative sum, so that nine of ten equal weights reach 90%."""
_CHUNK = 2**16
"""So many weights at a time pass through the entropy: they stay in the processor's cache."""


def entropy_nats(importance: Tensor) -> float:
    """Shannon entropy −Σ p ln p of p = importance / sum, in nats; nothing is added to p.

    Args:
        importance: any shape, finite, not negative.

    Returns:
        The entropy; 0.0 where every importance is zero.

    Raises:
        ValueError: an importance is negative, NaN or infinite, their sum is, or there is none.

    >>> round(entropy_nats(torch.ones(2, 4)), 4)
    2.0794
    """
    values, total = _checked(importance)
    if total == 0:
        return 0.0
    shares = (chunk / total for chunk in values.split(_CHUNK))
    return max(0.0, -math.fsum(torch.special.xlogy(p, p).sum().item() for p in shares))


def effective_count(importance: Tensor) -> float:
    """exp(entropy): as many equally important weights have this entropy; 0 where all are zero.

    Raises:
        ValueError: as ``entropy_nats``.

    >>> round(effective_count(torch.tensor([1.0, 1.0, 0.0])), 4)
    2.0
    """
    entropy = entropy_nats(importance)
    return math.exp(entropy) if bool((importance > 0).any()) else 0.0


def top_share(importance: Tensor, coverage: float = 0.9) -> float:
    """The smallest share of entries, from the largest down, that holds ``coverage`` of the total.

    Args:
        importance: any shape, finite, not negative.
        coverage: above 0, at most 1.

    Returns:
        The share, in 0..1; 0.0 where every importance is zero.

    Raises:
        ValueError: ``coverage`` lies outside (0, 1]; or as ``entropy_nats``.

    >>> top_share(torch.tensor([5.0, 4.0, 1.0, 0.0]))
    0.5
    """
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage: expected a number in (0, 1], but got {coverage}")
    values, total = _checked(importance)
    if total == 0:
        return 0.0
    wanted = coverage * total * (1 - _ROUNDING)
    cumulative = values.sort(descending=True).values.cumsum(0)
    return min(int(torch.searchsorted(cumulative, wanted)) + 1, values.numel()) / values.numel()


def low_share(importance: Tensor, *, below: float) -> float:
    """The share of entries that lie below ``below`` (an unnormalized importance).

    Raises:
        ValueError: ``below`` is NaN; or as ``entropy_nats``.

    >>> low_share(torch.tensor([0.001, 0.5]), below=0.01)
    0.5
    """
    if math.isnan(below):
        raise ValueError("below: expected a number, but got NaN")
    values, _ = _checked(importance)
    return int(torch.count_nonzero(values < below)) / values.numel()


def histogram(importance: Tensor, bins: int = 50) -> Histogram:
    """Counts of the normalized importance over ``bins`` equal bins from 0 to its largest value.

    Raises:
        ValueError: ``bins`` below 1; or as ``entropy_nats``.

    >>> histogram(torch.tensor([1.0, 3.0]), bins=2).counts.tolist()
    [1, 1]
    """
    if bins < 1:
        raise ValueError(f"bins: expected a whole number of at least 1, but got {bins}")
    values, total = _checked(importance)
    p = values / total if total > 0 else values
    top = p.max().item() or 1.0
    counts = torch.histc(p, bins=bins, min=0.0, max=top)
    return Histogram(
        edges=np.linspace(0.0, top, bins + 1),
        counts=counts.to(torch.int64).cpu().numpy(),
        entropy=entropy_nats(importance),
    )


def _checked(importance: Tensor) -> tuple[Tensor, float]:
    """The importance as a flat float64 tensor, and its sum."""
    values = importance.detach().double().flatten()
    if values.numel() == 0:
        raise ValueError("importance: expected at least one weight, but got none")
    total = values.sum().item()
    if not math.isfinite(total):
        raise ValueError("importance: expected finite numbers with a finite sum, but got NaN or "
                         "infinity")
    if values.min().item() < 0:
        raise ValueError("importance: expected numbers of at least 0, but got a negative one")
    return values, total
