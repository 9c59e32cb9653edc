"""How concentrated an importance is: entropy, effective count, top-90 share, histogram.

Up to a million weights are held in memory at once. More are read tile by tile, in bounded memory:
a radix select over the numbers' bits, 16 at a time, finds the border of the top 90% exactly. If
numba is installed, it compiles the loops of this case.
Tests: ``tests/usage/test_statistics.py``.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wua_mlflow.usage.criteria import WeightedImportance
from wua_mlflow.usage.results import Concentration, Histogram

__all__ = [
    "Summary", "effective_count", "entropy_nats", "is_finite", "low_share", "summarize",
    "top_share",
]


COVERAGE = 0.9
LOW_OF_MEAN = 0.01
BINS = 50
"""Of the histogram, from 0 to the largest importance."""
ROUNDING = 1e-12
"""Relative slack of a float64 cumulative sum, so that nine of ten equal weights reach 90%."""
WHOLE_UP_TO = 2**20
"""Up to so many weights the importance is held in memory at once, in float64."""
TILE, TILE_ON_GPU = 2**17, 2**24
"""Numbers in a tile: on a CPU a tile fits into the cache."""
COUNTED_AT_ONCE = 2**16
"""Numbers whose digits are counted in one go, each of 24 bytes more."""
FINITE_BLOCK = 2**20
CANCELS = 0.2
"""Below so many times the mean logarithm, the entropy loses digits to cancellation."""
FAINT = 1e-30
"""Products below this are computed in float64: in float32 they lose digits, or underflow."""
DIGIT = 16
"""Bits of one digit of the radix select."""
BITS = {torch.float32: torch.int32, torch.float64: torch.int64}

Part = Callable[[slice, slice], Tensor]
"""The importance of a tile: rows are units, columns a unit's weights."""


@dataclass(frozen=True)
class Summary:
    """The statistics of one layer's importance under one criterion.

    ``usage`` is of its weights; ``unit_importance`` has shape (units,), each the sum over a unit's
    weights, float64; ``dead`` says that every importance is zero.
    """

    usage: Concentration
    histogram: Histogram
    unit_importance: np.ndarray
    dead: bool


def entropy_nats(importance: Tensor | np.ndarray) -> float:
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
    return _entropy(*_checked_values(importance))


def effective_count(importance: Tensor | np.ndarray) -> float:
    """exp(entropy): the number of equally important weights of this entropy; 0 if all are zero.

    Raises:
        ValueError: as ``entropy_nats``.

    >>> round(effective_count(torch.tensor([1.0, 1.0, 0.0])), 4)
    2.0
    """
    values, total = _checked_values(importance)
    return math.exp(_entropy(values, total)) if total > 0 else 0.0


def top_share(importance: Tensor | np.ndarray, coverage: float = COVERAGE) -> float:
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
    values, total = _checked_values(importance)
    return _top_count(values, coverage * total * (1 - ROUNDING)) / values.size


def low_share(importance: Tensor | np.ndarray, *, below: float) -> float:
    """The share of entries that lie below ``below`` (an unnormalized importance).

    Raises:
        ValueError: ``below`` is NaN; or as ``entropy_nats``.

    >>> low_share(torch.tensor([0.001, 0.5]), below=0.01)
    0.5
    """
    if math.isnan(below):
        raise ValueError("below: expected a number, but got NaN")
    values, _ = _checked_values(importance)
    return float(np.count_nonzero(values < below)) / values.size


def summarize(
    part: Part,
    shape: tuple[int, int],
    *,
    low: float | None = None,
    by_column: bool = False,
    compiled: bool | None = None,
) -> Summary:
    """Entropy, effective count, top-90 share, low share, histogram and row sums of an importance.

    Sums are float64; the count of the top 90% is that of sorting everything and adding it up in
    float64. Extra memory: at most 64 MiB on a CPU, whatever the size, apart from the row sums.

    Args:
        part: the importance of rows and columns (slices): float32 or float64, finite, at least 0.
            Asked once for all of it, or, of a large layer, for each tile a few times.
        shape: (units, weights of a unit).
        low: an importance below this is low; 1% of the mean, if None.
        by_column: whether a column lies together in memory, rather than a row.
        compiled: whether a large layer goes through loops that numba compiles; where numba is
            installed and the layer on a CPU, if None.

    Raises:
        ValueError: no weights; an importance is negative, NaN or infinite, or their sum is; or
            numba is asked for and not installed.

    >>> importance = torch.tensor([[5.0, 4.0], [1.0, 0.0]])
    >>> summary = summarize(lambda rows, columns: importance[rows, columns], (2, 2))
    >>> summary.usage.top90_share, summary.unit_importance.tolist()
    (0.5, [9.0, 1.0])
    """
    if compiled and not _has_numba():
        raise ValueError("compiled: expected numba to be installed, but it is not; "
                         "pip install 'wua-mlflow[fast]'")
    if shape[0] * shape[1] <= WHOLE_UP_TO:
        return _summary_of_whole(part(slice(None), slice(None)), shape, low)
    return _summary_of_tiles(_make_tiles(part, shape, by_column, compiled), low)


def is_finite(weight: Tensor) -> bool:
    """Whether all of a weight is finite; checked block by block, without a copy."""
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
    """Views of all of a tensor, however it lies in memory, none above ``FINITE_BLOCK`` numbers."""
    if tensor.numel() <= FINITE_BLOCK:
        yield tensor
        return
    dim = max((dim for dim, size in enumerate(tensor.shape) if size > 1), key=tensor.stride)
    for half in tensor.chunk(2, dim):
        yield from _blocks(half)


# An importance that is held in memory at once: NumPy, float64


def _summary_of_whole(importance: Tensor, shape: tuple[int, int], low: float | None) -> Summary:
    values, total = _checked_values(importance)
    sums = _Sums(values.reshape(shape).sum(1), total, float(values.max()))
    limit = _low_limit(low, total / values.size, importance.dtype)
    bin_numbers = (values / (sums.largest or 1.0) * BINS).astype(np.int64)
    return _make_summary(
        values.size, sums, _entropy(values, total),
        (_top_count(values, COVERAGE * total * (1 - ROUNDING)),
         int(np.count_nonzero(values < limit))),
        np.bincount(np.minimum(bin_numbers, BINS - 1), minlength=BINS))


@dataclass(frozen=True)
class _Sums:
    """Sums over all importances i: by row, the total, the largest one, and Σ i ln i."""

    by_row: np.ndarray
    total: float
    largest: float
    weighted: float = 0.0


def _make_summary(
    count: int, sums: _Sums, entropy: float, top_and_low: tuple[int, int], bin_counts: np.ndarray
) -> Summary:
    """The summary; ``top_and_low`` counts the weights of the top 90%, and the low ones."""
    dead = sums.total == 0
    edges = np.linspace(0.0, 1.0 if dead else sums.largest / sums.total, len(bin_counts) + 1)
    return Summary(
        usage=Concentration(count, entropy, 0.0 if dead else math.exp(entropy),
                            top_and_low[0] / count, top_and_low[1] / count),
        histogram=Histogram(edges, bin_counts, entropy),
        unit_importance=sums.by_row,
        dead=dead,
    )


def _low_limit(low: float | None, mean: float, dtype: torch.dtype) -> float:
    """The limit below which an importance is low, rounded to the importances' dtype."""
    limit = LOW_OF_MEAN * mean if low is None else low
    return float(np.float32(limit)) if dtype.itemsize <= 4 else limit


def _checked_values(importance: Tensor | np.ndarray) -> tuple[np.ndarray, float]:
    """The importance as a flat float64 array, and its sum."""
    if isinstance(importance, Tensor):
        importance = importance.detach().cpu().double().numpy()
    values = np.asarray(importance, dtype=np.float64).ravel()
    if values.size == 0:
        raise ValueError("importance: expected at least one weight, but got none")
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(values.sum())
    _check_sums(total, float(values.min()))
    return values, total


def _check_sums(total: float, least: float) -> None:
    if not math.isfinite(total):
        raise ValueError("importance: expected finite numbers with a finite sum, but got NaN or "
                         "infinity")
    if least < 0:
        raise ValueError("importance: expected numbers of at least 0, but got a negative one")


def _entropy(values: np.ndarray, total: float) -> float:
    p = values / (total or 1.0)
    p = p[p > 0]  # 0 ln 0 = 0
    return max(0.0, -float(p @ np.log(p)))


def _top_count(values: np.ndarray, wanted: float) -> int:
    """How many of the largest values have a sum of at least ``wanted``; 0 where that is 0."""
    if wanted <= 0:
        return 0
    cumulative = np.sort(values)[::-1].cumsum()
    return min(int(np.searchsorted(cumulative, wanted)) + 1, values.size)


# A large importance: tile by tile, on its own device


@dataclass(frozen=True)
class _Tiles:
    """The tiles of a large importance, each small enough for a processor's cache."""

    part: Part
    shape: tuple[int, int]
    by_column: bool
    compiled: bool
    device: torch.device
    dtype: torch.dtype
    _scratch: dict[str, Tensor] = field(default_factory=dict)

    def scratch(self, name: str, like: Tensor, dtype: torch.dtype) -> Tensor:
        """A buffer of a tile's shape, reused for each tile: allocating costs more than filling."""
        buffer = self._scratch.get(name)
        if buffer is None or buffer.shape != like.shape or like.stride() != buffer.stride():
            buffer = self._scratch[name] = torch.empty_like(like, dtype=dtype)
        return buffer

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Each tile (float32 or float64) with the slice of its rows."""
        most = TILE if self.device.type == "cpu" else TILE_ON_GPU
        rows, columns = self.shape
        if self.by_column:
            height = min(rows, most)
            width = max(1, most // height)
        else:
            width = min(columns, most)
            height = max(1, most // width)
        for top in range(0, rows, height):
            tile_rows = slice(top, top + height)
            for start in range(0, columns, width):
                tile = self.part(tile_rows, slice(start, start + width))
                yield tile_rows, tile.detach().to(self.device, self.dtype)


def _make_tiles(
    part: Part, shape: tuple[int, int], by_column: bool, compiled: bool | None
) -> _Tiles:
    first = part(slice(0, 1), slice(0, 1))
    device = torch.device("cpu") if first.device.type == "mps" else first.device  # no float64 there
    compiled = device.type == "cpu" and (_has_numba() if compiled is None else compiled)
    dtype = torch.promote_types(first.dtype, torch.float32)
    return _Tiles(part, shape, by_column, compiled, device, dtype)


def _summary_of_tiles(tiles: _Tiles, low: float | None) -> Summary:
    sums, digits = _first_pass(tiles)
    count = tiles.shape[0] * tiles.shape[1]
    if (
        isinstance(tiles.part, WeightedImportance)
        and tiles.dtype == torch.float32
        and sums.largest < FAINT
    ):
        exact = _make_tiles(tiles.part.exact, tiles.shape, tiles.by_column, tiles.compiled)
        return _summary_of_tiles(exact, low)
    limit = _low_limit(low, sums.total / count, tiles.dtype)
    histogram = _BinCounts(tiles, sums.largest, limit)
    wanted, above = COVERAGE * sums.total * (1 - ROUNDING), 0.0
    consumers: list[_BinCounts | _Digits] = [histogram]
    while digits.shift:
        digit, above = digits.border(wanted, above)
        digits = _Digits(tiles, digits.prefix << DIGIT | digit, digits.shift - DIGIT)
        for _, tile in tiles:
            values = _flat(tile)
            for consumer in (*consumers, digits):
                consumer.add(values)
        consumers = []
    top = 0
    if sums.total > 0:
        digit, above = digits.border(wanted, above)
        top = digits.count_above(digit)
        equal = int(digits.counts[digit])
        value = float(digits.sums[digit]) / equal
        top += min(math.ceil((wanted - above) / value), equal) if value else equal
    return _make_summary(count, sums, _entropy_of_tiles(tiles, sums), (top, int(histogram.below)),
                    histogram.result())


def _first_pass(tiles: _Tiles) -> tuple[_Sums, _Digits]:
    """All sums, and the sums by the numbers' first digit.

    Raises:
        ValueError: the sum is not finite, or an importance is negative.
    """
    digits = _Digits(tiles, 0, 8 * tiles.dtype.itemsize - DIGIT)
    by_row = torch.zeros(tiles.shape[0], dtype=torch.float64, device=tiles.device)
    weighted = torch.zeros((), dtype=torch.float64, device=tiles.device)
    # nothing small is allocated to stay between tiles: the memory would be broken up
    least = torch.full((), math.inf, dtype=tiles.dtype, device=tiles.device)
    largest, tiny = -least, torch.finfo(tiles.dtype).tiny  # of 0 the logarithm is -inf: 0 ln 0 = 0
    for rows, tile in tiles:
        torch.minimum(least, tile.amin(), out=least)
        torch.maximum(largest, tile.amax(), out=largest)
        logarithms = tiles.scratch("logarithms", tile, tile.dtype)
        if tiles.compiled:
            array, logs = tile.numpy(), logarithms.numpy()
            np.log(np.maximum(array, array.dtype.type(tiny), out=logs), out=logs)
            weighted += _compiled(_add_rows)(array, logs, by_row.numpy()[rows])
            _compiled(_add_digits)(_flat(_bits(tile)).numpy(), _flat(tile).numpy(), digits.shift,
                                   digits.sums.numpy())
            continue
        torch.clamp(tile, min=tiny, out=logarithms).log_()
        exact = tiles.scratch("exact", tile, torch.float64).copy_(tile)
        by_row[rows] += exact.sum(1)
        digits.add_first(tile, exact)
        wide = tiles.scratch("wide", tile, torch.float64).copy_(logarithms)
        weighted += torch.dot(_flat(exact), _flat(wide))
    sums = _Sums(by_row.cpu().numpy(), float(by_row.sum()), float(largest), float(weighted))
    _check_sums(sums.total, float(least))
    return sums, digits


def _on_cpu(values: Tensor) -> bool:
    return values.device.type == "cpu"


def _bits(values: Tensor) -> Tensor:
    return values.view(BITS[values.dtype])


class _Digits:
    """Counts and sums of the numbers whose bits begin with ``prefix``, by their next 16 bits.

    Floating-point numbers of at least 0 have the same order as their bits. ``larger`` counts the
    numbers that begin with a larger prefix.
    """

    def __init__(self, tiles: _Tiles, prefix: int, shift: int) -> None:
        self.prefix, self.shift, self._tiles = prefix, shift, tiles
        self.counts = torch.zeros(2**DIGIT, dtype=torch.int64, device=tiles.device)
        self.sums = torch.zeros(2**DIGIT, dtype=torch.float64, device=tiles.device)
        self.larger: Tensor | int = 0
        size = tiles.dtype.itemsize
        if shift + DIGIT < 8 * size:  # the range of numbers with this prefix
            ends = np.array([prefix, prefix + 1], f"i{size}") << shift + DIGIT
            self._least, self._end = ends.view(f"f{size}").tolist()

    def add_first(self, tile: Tensor, exact: Tensor) -> None:
        """Add a tile to the sums by first digit; ``exact`` is the tile in float64."""
        bits, first_digits = _bits(tile), self._tiles.scratch("digits", tile, torch.int64)
        shifted = self._tiles.scratch("shifted", bits, bits.dtype)
        torch.bitwise_right_shift(bits, self.shift, out=shifted)
        first_digits.copy_(shifted).clamp_(min=0)  # -0.0
        self.sums.scatter_add_(0, _flat(first_digits), _flat(exact))

    def add(self, values: Tensor) -> None:
        """Count the larger numbers, and those with the prefix by their digit."""
        if _on_cpu(values):  # NumPy compares several times as fast
            array = values.numpy()
            self.larger += int(np.count_nonzero(array >= self._end))
            inside = torch.from_numpy(array[(array >= self._least) & (array < self._end)])
        else:
            self.larger += torch.count_nonzero(values >= self._end)
            inside = values[(values >= self._least) & (values < self._end)]
        for block in inside.split(COUNTED_AT_ONCE):
            digits = (_bits(block) >> self.shift & 2**DIGIT - 1).long()
            self.counts.scatter_add_(0, digits, torch.ones_like(digits))
            self.sums.scatter_add_(0, digits, block.double())

    def border(self, wanted: float, above: float) -> tuple[int, float]:
        """The digit at which the sum of the numbers, from the largest down, reaches ``wanted``.

        ``above`` is the sum of the numbers with a larger prefix. Returned with the digit is the
        sum of the numbers with a larger digit.
        """
        sums = self.sums.flip(0).cpu().numpy()
        cumulative = above + sums.cumsum()
        last = np.flatnonzero(sums)[-1:].tolist() or [2**DIGIT - 1]
        index = min(int(np.searchsorted(cumulative, wanted)), *last)
        return 2**DIGIT - 1 - index, float(cumulative[index] - sums[index])

    def count_above(self, digit: int) -> int:
        """How many numbers have a larger prefix or digit."""
        return int(self.larger) + int(self.counts[digit + 1:].sum())


class _BinCounts:
    """Counts of the numbers in equal bins from 0 to the largest, and of those below a limit."""

    def __init__(self, tiles: _Tiles, largest: float, limit: float) -> None:
        self.below: Tensor | int = 0
        self._limit, self._tiles = limit, tiles
        scale = BINS / largest if largest else 1.0
        self._overflows = scale > torch.finfo(tiles.dtype).max  # the largest is subnormal
        self._scale = largest if self._overflows else scale
        self._counts = torch.zeros(BINS + 1, dtype=torch.int64, device=tiles.device)
        self._pairs = np.zeros(2**16 if _on_cpu(self._counts) else 0, np.int64)

    def add(self, values: Tensor) -> None:
        """Count these numbers."""
        if self._tiles.compiled and not self._overflows:
            array = values.numpy()
            scale, limit = array.dtype.type(self._scale), array.dtype.type(self._limit)
            self.below += _compiled(_add_bins)(array, scale, limit, self._counts.numpy())
            return
        if _on_cpu(values):
            self.below += int(np.count_nonzero(values.numpy() < self._limit))
        else:
            self.below += torch.count_nonzero(values < self._limit)
        scaled = self._tiles.scratch("scaled", values, values.dtype)
        if self._overflows:
            torch.div(values, self._scale, out=scaled).mul_(BINS)
        else:
            torch.mul(values, self._scale, out=scaled)
        if len(self._pairs):  # two neighbours at a time, as one number of 16 bits
            even = len(values) // 2 * 2
            pairs = np.bincount(scaled[:even].numpy().astype(np.uint8).view(np.uint16))
            self._pairs[:len(pairs)] += pairs
            scaled = scaled[even:]
        self._counts += torch.bincount(scaled.long(), minlength=BINS + 1)

    def result(self) -> np.ndarray:
        """The counts; the largest number belongs to the last bin."""
        counts = self._counts.cpu().numpy()
        if len(self._pairs):
            pairs = self._pairs.reshape(2**8, 2**8)
            counts = counts + (pairs.sum(0) + pairs.sum(1))[:BINS + 1]
        return np.append(counts[:-2], counts[-2] + counts[-1])


def _flat(tile: Tensor) -> Tensor:
    """A tile's numbers in memory order; no copy if the tile is dense."""
    return (tile if tile.is_contiguous() else tile.T).reshape(-1)


def _entropy_of_tiles(tiles: _Tiles, sums: _Sums) -> float:
    """ln T − Σ i ln i / T; if these nearly cancel, −Σ p ln p in float64, by one more pass."""
    if sums.total == 0:
        return 0.0
    mean_log = sums.weighted / sums.total
    entropy = math.log(sums.total) - mean_log
    if entropy < CANCELS * abs(mean_log):
        shares = (tile.double() / sums.total for _, tile in tiles)
        entropy = -math.fsum(float(torch.special.xlogy(p, p).sum()) for p in shares)
    return max(0.0, entropy)


# Loops that numba compiles


def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


@cache
def _compiled(loop: Callable[..., Any]) -> Callable[..., Any]:
    from numba import njit  # an extra; loads for a second

    compiled: Callable[..., Any] = njit(cache=True, fastmath=True)(loop)
    return compiled


def _add_rows(tile: np.ndarray, logarithms: np.ndarray, by_row: np.ndarray) -> float:
    """Add the sum of each row to ``by_row``; returns Σ number · logarithm."""
    weighted = 0.0
    for row in range(tile.shape[0]):
        total = 0.0
        for column in range(tile.shape[1]):
            value = np.float64(tile[row, column])
            total += value
            weighted += value * np.float64(logarithms[row, column])
        by_row[row] += total
    return weighted


def _add_digits(bits: np.ndarray, values: np.ndarray, shift: int, sums: np.ndarray) -> None:
    """Add each value to the sum of its first digit."""
    for i in range(values.size):
        sums[(bits[i] >> shift) & 0x7FFF] += np.float64(values[i])


def _add_bins(values: np.ndarray, scale: Any, limit: Any, counts: np.ndarray) -> int:
    """Add the count of numbers in each bin to ``counts``; returns how many lie below the limit.

    Four sets of counts are used in turn, so that no addition waits for the previous one.
    """
    below = 0
    bins, turns = np.empty(4096, np.int32), np.zeros((4, counts.size), np.int64)
    for start in range(0, values.size, 4096):
        block = values[start:start + 4096]
        for i in range(block.size):
            below += block[i] < limit
        for i in range(block.size):
            bins[i] = np.int32(block[i] * scale)
        for i in range(block.size):
            turns[i & 3, bins[i]] += 1
    counts += turns.sum(0)
    return below
