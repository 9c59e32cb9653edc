"""The passes over |weight · factor| in one: product, sums, logarithm and window in the first cache.

Every built-in criterion is such a product, so that large layers of float32 come this way; blocks of
rows are shared out over torch's threads, and the figures do not depend on how many these are.
Needs the extra ``fast``. May import: numba, numpy, torch, compiled, importance, survey.
Tests: ``tests/test_fused.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import njit

from wua_mlflow.compiled import above_sum, count, gather, mark, number
from wua_mlflow.importance import Product
from wua_mlflow.survey import Kept, NumpyKernels, Survey, Tiles, total_of

__all__ = ["FusedKernels"]

PIECE = 4096
"""So many numbers at a time go through all of a pass's steps."""
_BLOCK = 2**17
"""About so many weights are a thread's work before it takes the next."""
_AT_ONCE = 4
"""So many blocks a thread are under way: what they find is kept until its turn."""
ALIKE, BY_ROW, BY_COLUMN, BY_WEIGHT = range(4)
"""What a factor belongs to."""
_LN2 = math.log(2)
_SQRT_HALF = np.int32(0x3F3504F3)
_MANTISSA = np.int32(23)


@njit(cache=True, fastmath=True, nogil=True)
def _multiply(product, row, left, size, found):  # type: ignore[no-untyped-def]
    """|w · factor| of a piece of a row; ``product`` is (weight, factor, what it belongs to)."""
    weight, factor, kind = product
    if kind == BY_COLUMN:
        for i in range(size):
            found[i] = abs(weight[row, left + i] * factor[0, left + i])
    elif kind == BY_WEIGHT:
        for i in range(size):
            found[i] = abs(weight[row, left + i] * factor[row, left + i])
    else:
        scale = factor[row, 0] if kind == BY_ROW else factor[0, 0]
        for i in range(size):
            found[i] = abs(weight[row, left + i] * scale)


@njit(cache=True, fastmath=True, nogil=True)
def _weighted(values, bits, mantissas, size):  # type: ignore[no-untyped-def]
    """Σ i ln i, added up in float64; of 0 it is 0.

    A number is 2^k · (1 + m), 1 + m from √½ to √2, and ln (1 + m) the polynomial of Cephes'
    ``logf`` (Moshier 1989); in two loops, so that both are done many numbers at a time.
    """
    whole = mantissas.view(np.int32)
    for i in range(size):
        power = (bits[i] - _SQRT_HALF) >> _MANTISSA
        whole[i] = bits[i] - (power << _MANTISSA)
    powers, logarithms = 0.0, 0.0
    for i in range(size):
        power = (bits[i] - whole[i]) >> _MANTISSA
        m = mantissas[i] - np.float32(1)
        p = np.float32(7.0376836292e-2)
        p = p * m - np.float32(1.1514610310e-1)
        p = p * m + np.float32(1.1676998740e-1)
        p = p * m - np.float32(1.2420140846e-1)
        p = p * m + np.float32(1.4249322787e-1)
        p = p * m - np.float32(1.6668057665e-1)
        p = p * m + np.float32(2.0000714765e-1)
        p = p * m - np.float32(2.4999993993e-1)
        p = p * m + np.float32(3.3333331174e-1)
        logarithm = m + m * m * (m * p - np.float32(0.5))
        value = np.float64(values[i])
        powers += value * np.float64(power)
        logarithms += value * np.float64(logarithm)
    return powers * _LN2 + logarithms


@njit(cache=True, fastmath=True, nogil=True)
def _survey(product, rows, window, by_row, found):  # type: ignore[no-untyped-def]
    """Of a block of rows: Σ i ln i, sum and number above, number within, least and largest."""
    values, mantissas = np.empty(PIECE, np.float32), np.empty(PIECE, np.float32)
    bits, ends = values.view(np.int32), np.array(window, np.float32).view(np.int32)
    flags, columns = np.empty(PIECE, np.uint8), product[0].shape[1]
    words = flags.view(np.uint64)
    weighted, above, above_count, inside = 0.0, 0.0, 0, 0
    least, largest = np.int32(2**31 - 1), np.int32(0)
    for row in range(rows[0], rows[1]):
        total = 0.0
        for left in range(0, columns, PIECE):
            size = min(PIECE, columns - left)
            _multiply(product, row, left, size, values)
            small, large = np.int32(2**31 - 1), np.int32(0)
            for i in range(size):
                total += np.float64(values[i])
                small, large = min(small, bits[i]), max(large, bits[i])
            least, largest = min(least, small), max(largest, large)
            weighted += _weighted(values, bits, mantissas, size)
            if large > ends[1]:
                more, others = above_sum(values[:size], window[1])
                above, above_count = above + more, above_count + others
            if large >= ends[0] and small <= ends[1]:
                mark(values[:size], window[0], window[1], flags)
                inside += gather(values[:size], flags, words[:size // 8], found[inside:])
        by_row[row] = total
    extremes = np.array([least, largest], np.int32).view(np.float32)
    return weighted, above, above_count, inside, extremes[0], extremes[1]


@njit(cache=True, fastmath=True, nogil=True)
def _spread(product, rows, scale, last, low, counts):  # type: ignore[no-untyped-def]
    """Adds a block's counts over equal bins, eight in turns; gives how many lie below ``low``."""
    values, numbers = np.empty(PIECE, np.float32), np.empty(PIECE, np.uint8)
    below, columns = np.int64(0), product[0].shape[1]
    for row in range(rows[0], rows[1]):
        for left in range(0, columns, PIECE):
            size = min(PIECE, columns - left)
            _multiply(product, row, left, size, values)
            few = np.int32(0)
            for i in range(size):
                few += np.int32(values[i] < low)
            below += few
            number(values[:size], scale, last, numbers)
            count(numbers[:size], counts)
    return below


class FusedKernels:
    """For a CPU, from a million weights on, of one product.

    Args:
        product: one that ``is_plain``; a row of it is not divided.
    """

    def __init__(self, product: Product) -> None:
        weight, factor = product.weight.detach().numpy(), np.ones((1, 1), np.float32)
        if product.factor is not None:
            factor = product.factor.detach().numpy()
        self._product = weight, factor, _kind(factor)
        rows, columns = weight.shape
        each = max(1, _BLOCK // columns)
        self._blocks = [(top, min(top + each, rows)) for top in range(0, rows, each)]

    def survey(self, tiles: Tiles, rows: int, low: float, high: float) -> Survey:
        by_row = np.zeros(rows)

        def of(block: tuple[int, int]) -> tuple[Any, ...]:
            size = (block[1] - block[0]) * self._product[0].shape[1]
            found = np.empty(size + 1, np.float32)
            *sums, inside, least, largest = _survey(
                self._product, block, (np.float32(low), np.float32(high)), by_row, found)
            return *sums, least, largest, found[:inside].copy()

        kept, sums = Kept(), np.zeros(5)  # weighted, above and their number, inside and theirs
        ends = np.array([math.inf, -math.inf] * 2)  # least and largest, of all and inside
        for weighted, above, others, least, largest, held in self._shared(of):
            sums += weighted, above, others, total_of(held), len(held)
            ends[:2] = min(ends[0], least), max(ends[1], largest)
            if len(held):
                ends[2:] = min(ends[2], held.min()), max(ends[3], held.max())
                kept.add(held)
        weights, over, over_count, within, within_count = sums.tolist()
        least, largest, inside_least, inside_most = ends.tolist()
        return Survey(total_of(by_row), weights, by_row, least, largest, over, int(over_count),
                      within, int(within_count), inside_least, inside_most, kept.values())

    def spread(
        self, tiles: Tiles, bins: int, top: float, low: float
    ) -> tuple[np.ndarray, int]:
        scale = bins / top if top > 0 else 0.0
        if bins > 2**8 or scale > float(np.finfo(np.float32).max):
            return NumpyKernels().spread(tiles, bins, top, low)

        def of(block: tuple[int, int]) -> tuple[np.ndarray, int]:
            counts = np.zeros((8, bins), np.int64)
            below = _spread(self._product, block, np.float32(scale), np.int32(bins - 1),
                            np.float32(low), counts)
            return counts.sum(0), below

        counts, below = np.zeros(bins, np.int64), 0
        for more, fewer in self._shared(of):
            counts, below = counts + more, below + fewer
        return counts, below

    def _shared(self, work: Callable[[tuple[int, int]], Any]) -> Iterator[Any]:
        """What each block gives, in their order."""
        threads = min(torch.get_num_threads(), len(self._blocks))
        if threads < 2:
            yield from map(work, self._blocks)
            return
        with ThreadPoolExecutor(threads) as pool:
            for start in range(0, len(self._blocks), _AT_ONCE * threads):
                yield from pool.map(work, self._blocks[start: start + _AT_ONCE * threads])


def _kind(factor: np.ndarray) -> int:
    rows, columns = (size > 1 for size in factor.shape)
    if rows:
        return BY_WEIGHT if columns else BY_ROW
    return BY_COLUMN if columns else ALIKE
