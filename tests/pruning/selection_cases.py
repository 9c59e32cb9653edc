"""The selection of units by hand: by least squares, one unit after the other."""

from __future__ import annotations

import numpy as np

__all__ = ["greedy"]


def greedy(rows: np.ndarray) -> np.ndarray:
    """What is left of each unit, when it is chosen, after a fit on those chosen before it.

    Args:
        rows: activations, shape (rows, units).
    """
    rows = rows - rows.mean(0)
    found, chosen = np.zeros(rows.shape[1]), []
    for _ in range(rows.shape[1]):
        basis = rows[:, chosen]
        left = rows - basis @ np.linalg.lstsq(basis, rows, rcond=None)[0] if chosen else rows
        sums = (left ** 2).sum(0)
        sums[chosen] = -1
        best = int(sums.argmax())
        found[best] = sums[best]
        chosen.append(best)
    return found
