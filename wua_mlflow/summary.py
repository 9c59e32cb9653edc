"""Interim: a plain summary until the streaming one is in its place.

May import: torch, concentration, usage. Tests: ``tests/test_summary.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from wua_mlflow.concentration import entropy_nats, histogram, low_share, top_share
from wua_mlflow.usage import Concentration, Histogram

__all__ = ["Summary", "summarize"]


@dataclass(frozen=True)
class Summary:
    count: int
    total: float
    usage: Concentration
    histogram: Histogram
    unit_importance: np.ndarray
    dead: bool


def summarize(part: Callable[[slice, slice], Tensor], shape: tuple[int, int], *,
              low: float | None = None, by_column: bool = False, bins: int = 50) -> Summary:
    whole = part(slice(None), slice(None)).double()
    entropy, dead = entropy_nats(whole), not bool((whole > 0).any())
    usage = Concentration(whole.numel(), entropy, 0.0 if dead else math.exp(entropy),
                          top_share(whole), low_share(whole, below=0.01 * whole.mean().item()
                                                      if low is None else low))
    return Summary(whole.numel(), whole.sum().item(), usage, histogram(whole, bins),
                   whole.sum(1).cpu().numpy(), dead)
