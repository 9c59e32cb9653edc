"""The passes over an importance as numba compiles them: one read of each tile, not ten.

Only the logarithm is NumPy's, whose vector loop is faster. Needs the extra ``fast``.
May import: numba, numpy, torch, survey. Tests: ``tests/test_summary.py``.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from wua_mlflow.survey import Kept, NumpyKernels, Survey, Tiles, flat, logarithms, total_of

__all__ = ["CompiledKernels", "above_sum", "count", "gather", "mark", "number"]


@njit(cache=True, fastmath=True)
def _add_rows(values, by_row):  # type: ignore[no-untyped-def]
    """Adds the sum of each row of a tile."""
    for row in range(values.shape[0]):
        total = 0.0
        for column in range(values.shape[1]):
            total += np.float64(values[row, column])
        by_row[row] += total


@njit(cache=True, fastmath=True)
def above_sum(values, high):  # type: ignore[no-untyped-def]
    """The sum and the number of what lies above the window."""
    total, count = 0.0, 0
    for i in range(values.size):
        if values[i] > high:
            total += np.float64(values[i])
            count += 1
    return total, count


@njit(cache=True, fastmath=True)
def _weighted(values, logs):  # type: ignore[no-untyped-def]
    """Σ i ln i, added up in float64."""
    total = 0.0
    for i in range(values.size):
        total += np.float64(values[i]) * np.float64(logs[i])
    return total


@njit(cache=True)
def mark(values, low, high, flags):  # type: ignore[no-untyped-def]
    """1 for each value within the window, else 0."""
    for i in range(values.size):
        flags[i] = np.uint8((values[i] >= low) & (values[i] <= high))


@njit(cache=True)
def gather(values, flags, words, found):  # type: ignore[no-untyped-def]
    """The values that are marked, one after the other; gives how many.

    ``words`` are the flags eight at a time: most of them are all zero.
    """
    count = 0
    for word in range(words.size):
        if words[word]:
            for i in range(8 * word, 8 * word + 8):
                found[count] = values[i]
                count += flags[i]
    for i in range(8 * words.size, values.size):
        found[count] = values[i]
        count += flags[i]
    return count


@njit(cache=True, fastmath=True)
def number(values, scale, last, numbers):  # type: ignore[no-untyped-def]
    """The number of each value's bin."""
    for i in range(values.size):
        numbers[i] = np.uint8(min(np.int32(values[i] * scale), last))


@njit(cache=True)
def count(numbers, counts):  # type: ignore[no-untyped-def]
    """Adds to eight counts in turns, so that no addition waits for the one before."""
    whole = numbers.size // 8 * 8
    for i in range(0, whole, 8):
        counts[0, numbers[i]] += 1
        counts[1, numbers[i + 1]] += 1
        counts[2, numbers[i + 2]] += 1
        counts[3, numbers[i + 3]] += 1
        counts[4, numbers[i + 4]] += 1
        counts[5, numbers[i + 5]] += 1
        counts[6, numbers[i + 6]] += 1
        counts[7, numbers[i + 7]] += 1
    for i in range(whole, numbers.size):
        counts[0, numbers[i]] += 1


class CompiledKernels:
    """For a CPU, from a million weights on."""

    def survey(self, tiles: Tiles, rows: int, low: float, high: float) -> Survey:
        by_row = np.zeros(rows)
        total_weighted = above = inside_sum = 0.0
        least, largest, inside_least, inside_most = math.inf, -math.inf, math.inf, -math.inf
        above_count = inside_count = 0
        kept, window = Kept(), _Window()
        for place, tile in tiles:
            values = flat(tile)
            kind = values.dtype.type
            _add_rows(tile.numpy(), by_row[place])
            small, large = float(values.min()), float(values.max())
            least, largest = min(least, small), max(largest, large)  # NaN: the sum will tell
            total_weighted += _weighted(values, logarithms(values, small))
            if large > high:
                more, others = above_sum(values, kind(high))
                above, above_count = above + more, above_count + others
            inside = window.of(values, kind(low), kind(high))
            if len(inside):
                inside_count += len(inside)
                inside_sum += total_of(inside)
                inside_least = min(inside_least, float(inside.min()))
                inside_most = max(inside_most, float(inside.max()))
                kept.add(inside)
        return Survey(total_of(by_row), total_weighted, by_row, least, largest, above,
                      above_count, inside_sum, inside_count, inside_least, inside_most,
                      kept.values())

    def spread(
        self, tiles: Tiles, bins: int, top: float, low: float
    ) -> tuple[np.ndarray, int]:
        counts, below = np.zeros((8, bins), np.int64), 0
        scale = bins / top if top > 0 else 0.0
        if scale > float(np.finfo(np.float32).max) or bins > 2**8:
            return NumpyKernels().spread(tiles, bins, top, low)
        numbers = np.empty(0, np.uint8)
        for _, tile in tiles:
            values = flat(tile)
            kind = values.dtype.type
            if len(numbers) != len(values):
                numbers = np.empty(len(values), np.uint8)
            below += int(np.count_nonzero(values < kind(low)))
            number(values, kind(scale), np.int32(bins - 1), numbers)
            count(numbers, counts)
        return counts.sum(0), below


class _Window:
    """The values of a tile that lie within a window; its arrays are made once."""

    def __init__(self) -> None:
        self._flags, self._found = np.empty(0, np.uint8), np.empty(0, np.float32)

    def of(self, values: np.ndarray, low: float, high: float) -> np.ndarray:
        if len(self._flags) != len(values) or self._found.dtype != values.dtype:
            self._flags = np.empty(len(values), np.uint8)
            self._found = np.empty(len(values) + 1, values.dtype)
        mark(values, low, high, self._flags)
        words = self._flags[:len(values) // 8 * 8].view(np.uint64)
        return self._found[:gather(values, self._flags, words, self._found)].copy()
