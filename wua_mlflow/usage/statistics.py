"""Whether a weight of any size is finite, without a copy of it.

May import: torch. Tests: ``tests/test_finite.py``, ``tests/test_evidence.py``.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numba import njit
from torch import Tensor

from wua_mlflow.usage.criteria import WeightedImportance
from wua_mlflow.usage.results import Concentration, Histogram

__all__ = [
    "CompiledKernels", "FusedKernels", "Kernels", "Summary", "SumsAboveThreshold", "ThinnedValues",
    "above_sum", "count", "effective_count", "entropy_nats", "gather", "histogram", "is_finite",
    "kernels_for", "low_share", "mark", "number", "summarize", "top_share",
]


_FINITE_BLOCK = 2**20
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
    if tensor.numel() <= _FINITE_BLOCK:
        yield tensor
        return
    dim = max((dim for dim, size in enumerate(tensor.shape) if size > 1), key=tensor.stride)
    for half in tensor.chunk(2, dim):
        yield from _blocks(half)


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


WORTHWHILE = 2**20
"""From so many weights on the compiled kernels are worth their start."""
_WIDEST = 2**20
"""Products with rows of more weights go tile by tile: the fused kernels do not divide a row."""
_MOST_KEPT = 2**20
Tiles = Iterable[tuple[slice, Tensor]]


@dataclass(frozen=True)
class SumsAboveThreshold:
    """What a pass found. ``weighted`` is Σ i ln i; ``by_row`` the sums of the rows.

    ``above`` and ``inside`` are sums of the importances above the window and within it; ``kept``
    are those within, or every so-many-th of them where they are too many.
    """

    total: float
    weighted: float
    by_row: np.ndarray
    least: float
    largest: float
    above: float
    above_count: int
    inside: float
    inside_count: int
    inside_least: float
    inside_most: float
    kept: np.ndarray


class Kernels(Protocol):
    """The two passes."""

    def survey(self, tiles: Tiles, rows: int, low: float, high: float) -> SumsAboveThreshold:
        """One pass; the window is low ≤ importance ≤ high."""
        ...

    def spread(
        self, tiles: Tiles, bins: int, top: float, low: float
    ) -> tuple[np.ndarray, int]:
        """Counts over equal bins from 0 to ``top``, and how many lie below ``low``."""
        ...


def kernels_for(
    device: torch.device,
    count: int,
    compiled: bool | None,
    product: WeightedImportance | None = None,
) -> Kernels:
    """The kernels for importances on a device; ``product``, if they are one that ``is_plain``.

    Raises:
        ValueError: compiled ones are asked for, and numba is not installed.
    """
    if device.type != "cpu":
        return TorchKernels(compiled=bool(compiled))
    installed = importlib.util.find_spec("numba") is not None
    if compiled and not installed:
        raise ValueError("compiled: expected numba to be installed, but it is not; "
                         "pip install 'wua-mlflow[fast]'")
    if compiled or compiled is None and installed and count >= WORTHWHILE:
        if product is not None and product.weight.shape[1] <= _WIDEST:
            pass

            return FusedKernels(product)
        pass

        return CompiledKernels()
    return NumpyKernels()


class ThinnedValues:
    """The importances within a window, thinned evenly where they become too many."""

    def __init__(self) -> None:
        self._pieces: list[np.ndarray] = []
        self._step, self._size, self._seen = 1, 0, 0

    def add(self, values: np.ndarray) -> None:
        first = -self._seen % self._step
        self._seen += len(values)
        piece = values[first::self._step]
        self._pieces.append(piece if self._step == 1 else piece.copy())
        self._size += len(piece)
        if self._size > _MOST_KEPT:
            kept = np.concatenate(self._pieces)[::2]
            self._pieces, self._step, self._size = [kept.copy()], 2 * self._step, len(kept)

    def values(self) -> np.ndarray:
        return np.concatenate(self._pieces) if self._pieces else np.empty(0, np.float32)


def flat(tile: Tensor) -> np.ndarray:
    """A tile's numbers in the order of memory, without a copy where it is dense."""
    return tile.detach().numpy().ravel(order="K")


class NumpyKernels:
    """For a CPU: NumPy's vector loops, tile by tile in its cache."""

    def survey(self, tiles: Tiles, rows: int, low: float, high: float) -> SumsAboveThreshold:
        by_row = np.zeros(rows)
        found = np.zeros(3)  # weighted, above, inside
        least, largest, inside_least, inside_most = math.inf, -math.inf, math.inf, -math.inf
        above_count = inside_count = 0
        kept = ThinnedValues()
        for place, tile in tiles:
            exact = tile.double()
            by_row[place] += exact.sum(1).numpy()
            values = flat(tile)
            small, large = float(values.min()), float(values.max())
            found[0] += dot(exact, logarithms(values, small))
            least, largest = min(least, small), max(largest, large)  # NaN: the sum will tell
            if large > high:
                over = values > high
                above_count += int(np.count_nonzero(over))
                found[1] += dot(exact, over)
            inside = within(values, low, high)
            if len(inside):
                inside_count += len(inside)
                found[2] += total_of(inside)
                inside_least = min(inside_least, float(inside.min()))
                inside_most = max(inside_most, float(inside.max()))
                kept.add(inside)
        weights, above, inside_sum = found.tolist()
        return SumsAboveThreshold(
            total_of(by_row),
            weights,
            by_row,
            least,
            largest,
            above,
            above_count,
            inside_sum,
            inside_count,
            inside_least,
            inside_most,
            kept.values(),
        )

    def spread(
        self, tiles: Tiles, bins: int, top: float, low: float
    ) -> tuple[np.ndarray, int]:
        counts, below = np.zeros(bins, np.int64), 0
        scale = bins / top if top > 0 else 0.0
        by_pairs = bins < 2**8 and scale <= float(np.finfo(np.float32).max)
        pairs = np.zeros((2**8, 2**8) if by_pairs else 0, np.int64)
        for _, tile in tiles:
            values = flat(tile)
            below += int(np.count_nonzero(values < low))
            if by_pairs:
                even = len(values) // 2 * 2
                add_pairs((values[:even] * values.dtype.type(scale)).astype(np.uint8), pairs)
                values = values[even:]
            if len(values):
                counts += binned(values, scale, bins)
        if by_pairs:
            numbers = pairs.sum(0) + pairs.sum(1)
            counts += numbers[:bins]
            counts[bins - 1] += numbers[bins:].sum()
        return counts, below


def dot(tile: Tensor, factors: np.ndarray) -> float:
    """Σ of a tile's numbers, float64, each times its factor; these lie as ``flat`` gives them."""
    return float(torch.dot(torch.from_numpy(flat(tile)), torch.from_numpy(factors).double()))


def logarithms(values: np.ndarray, least: float) -> np.ndarray:
    """ln of each, that of the smallest normal number for those below it: so 0 ln 0 = 0."""
    tiny = np.finfo(values.dtype).tiny
    return np.log(values if least >= tiny else np.maximum(values, tiny))


def within(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """The values of a window; few as a rule, which makes their places the faster way to them."""
    return values[np.flatnonzero((values >= low) & (values <= high))]


def total_of(values: np.ndarray) -> float:
    """The sum in float64; infinite where it is too large."""
    with np.errstate(over="ignore"):
        return float(values.sum(dtype=np.float64))


def add_pairs(numbers: np.ndarray, pairs: np.ndarray) -> None:
    """Counts two neighbours at a time, as one number of 16 bits: half as many additions.

    Args:
        numbers: of bins, uint8, an even number of them.
        pairs: the counts, shape (256, 256): rows and columns together count each number.
    """
    found = np.bincount(numbers.view(np.uint16))
    pairs.reshape(-1)[:len(found)] += found


def binned(values: np.ndarray, scale: float, bins: int) -> np.ndarray:
    """How many values each of the bins holds; the largest value belongs to the last one."""
    if scale > float(np.finfo(values.dtype).max):  # the reciprocal of a subnormal number
        above = np.count_nonzero(values > 0)
        return np.array([len(values) - above, *[0] * (bins - 2), above][:bins])
    counts = np.bincount((values * values.dtype.type(scale)).astype(np.int32), minlength=bins + 2)
    counts[bins - 1] += counts[bins:].sum()
    return counts[:bins]


class TorchKernels:
    """For a GPU: sums stay there until the end of a pass. Not measured on one.

    Compiled, the sums of a tile are taken in one read; compiling takes longer than an eager report
    of billions of weights, so it is done only where it is asked for.
    """

    def __init__(self, *, compiled: bool = False) -> None:
        self._sums = torch.compile(_tile_sums, dynamic=True) if compiled else _tile_sums

    def survey(self, tiles: Tiles, rows: int, low: float, high: float) -> SumsAboveThreshold:
        by_row: Tensor | None = None
        sums: list[Tensor] = []
        extremes: list[Tensor] = []
        kept = ThinnedValues()
        for place, tile in tiles:
            of_rows, more, ends = self._sums(tile, low, high)
            if by_row is None:
                by_row = torch.zeros(rows, dtype=torch.float64, device=tile.device)
            by_row[place] += of_rows
            sums.append(more)
            extremes.append(ends)
            kept.add(tile[(tile >= low) & (tile <= high)].cpu().numpy())
        if by_row is None:
            raise ValueError("tiles: expected at least one, but got none")
        weighted_sum, above, above_count, inside, inside_count = torch.stack(sums).sum(0).tolist()
        found = torch.stack(extremes)
        return SumsAboveThreshold(by_row.sum().item(), weighted_sum, by_row.cpu().numpy(),
                      found[:, 0].amin().item(), found[:, 1].amax().item(), above,
                      int(above_count), inside, int(inside_count), found[:, 2].amin().item(),
                      found[:, 3].amax().item(), kept.values())

    def spread(
        self, tiles: Tiles, bins: int, top: float, low: float
    ) -> tuple[np.ndarray, int]:
        scale = bins / top if top > 0 else 0.0
        counts: Tensor | int = 0
        below: Tensor | int = 0
        for _, tile in tiles:
            below = below + (tile < low).sum()
            numbers = (tile.flatten() * scale).long().clamp(max=bins - 1)
            counts = counts + torch.bincount(numbers, minlength=bins)
        return torch.as_tensor(counts).cpu().numpy(), int(below)


def _tile_sums(tile: Tensor, low: float, high: float) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of the rows; Σ i ln i, sum and number above and within; least and largest, both."""
    zero = torch.zeros((), dtype=tile.dtype, device=tile.device)
    within_it, above = (tile >= low) & (tile <= high), tile > high
    sums = torch.stack([
        torch.special.xlogy(tile, tile).sum(dtype=torch.float64),
        torch.where(above, tile, zero).sum(dtype=torch.float64),
        above.sum().double(),
        torch.where(within_it, tile, zero).sum(dtype=torch.float64),
        within_it.sum().double()])
    extremes = torch.stack([
        tile.amin(), tile.amax(), torch.where(within_it, tile, math.inf).amin(),
        torch.where(within_it, tile, -math.inf).amax()]).double()
    return tile.sum(1, dtype=torch.float64), sums, extremes


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

    def survey(self, tiles: Tiles, rows: int, low: float, high: float) -> SumsAboveThreshold:
        by_row = np.zeros(rows)
        total_weighted = above = inside_sum = 0.0
        least, largest, inside_least, inside_most = math.inf, -math.inf, math.inf, -math.inf
        above_count = inside_count = 0
        kept, window = ThinnedValues(), _Window()
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
        return SumsAboveThreshold(total_of(by_row), total_weighted, by_row, least, largest, above,
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


PIECE = 4096
"""So many numbers at a time go through all of a pass's steps."""
_FUSED_BLOCK = 2**17
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
def _weighted_product(values, bits, mantissas, size):  # type: ignore[no-untyped-def]
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
            weighted += _weighted_product(values, bits, mantissas, size)
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

    def __init__(self, product: WeightedImportance) -> None:
        weight, factor = product.weight.detach().numpy(), np.ones((1, 1), np.float32)
        if product.factor is not None:
            factor = product.factor.detach().numpy()
        self._product = weight, factor, _kind(factor)
        rows, columns = weight.shape
        each = max(1, _FUSED_BLOCK // columns)
        self._blocks = [(top, min(top + each, rows)) for top in range(0, rows, each)]

    def survey(self, tiles: Tiles, rows: int, low: float, high: float) -> SumsAboveThreshold:
        by_row = np.zeros(rows)

        def of(block: tuple[int, int]) -> tuple[Any, ...]:
            size = (block[1] - block[0]) * self._product[0].shape[1]
            found = np.empty(size + 1, np.float32)
            *sums, inside, least, largest = _survey(
                self._product, block, (np.float32(low), np.float32(high)), by_row, found)
            return *sums, least, largest, found[:inside].copy()

        kept, sums = (
            ThinnedValues(),
            np.zeros(5),
        )  # weighted, above and their number, inside and theirs
        ends = np.array([math.inf, -math.inf] * 2)  # least and largest, of all and inside
        for weighted, above, others, least, largest, held in self._shared(of):
            sums += weighted, above, others, total_of(held), len(held)
            ends[:2] = min(ends[0], least), max(ends[1], largest)
            if len(held):
                ends[2:] = min(ends[2], held.min()), max(ends[3], held.max())
                kept.add(held)
        weights, over, over_count, within, within_count = sums.tolist()
        least, largest, inside_least, inside_most = ends.tolist()
        return SumsAboveThreshold(
            total_of(by_row),
            weights,
            by_row,
            least,
            largest,
            over,
            int(over_count),
            within,
            int(within_count),
            inside_least,
            inside_most,
            kept.values(),
        )

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


COVERAGE = 0.9
LOW_OF_MEAN = 0.01
ROUNDING = 1e-12
"""Relative slack of a float64 cumulative sum, so that nine of ten equal weights reach 90%."""
_TILE, _TILE_ON_GPU = 2**16, 2**24
_SIMPLY_SORTED = 2**20
"""Up to so many importances are sorted whole."""
_SAMPLE_CALLS, _SAMPLE_LINES = 64, 128
"""A sample is so many times so many runs of a few numbers that lie side by side."""
_LARGE = 2**23
_FEW, _MANY = (2, 0.02), (8, 0.01)
"""The numbers of a run, and how far from its place in the sample the border of the top 90% is
looked for, a share of it: up to ``_LARGE`` importances, and above, where a pass costs more."""
_SORTED_AT_ONCE, _BINS = 2**14, 4096
_MOST_PASSES = 64
_CANCELS = 0.2
"""An entropy of less than so many times the mean logarithm would have lost digits to it."""
_FAINT = 1e-30
"""Products below it are computed in float64: in float32 they lose digits, or vanish."""

Part = Callable[[slice, slice], Tensor]


@dataclass(frozen=True)
class Summary:
    """What is reported of one layer under one criterion.

    ``usage`` is of its weights; ``unit_importance`` has shape (units,), each the sum over a unit's
    weights, float64; ``dead`` says that every importance is zero.
    """

    count: int
    total: float
    usage: Concentration
    histogram: Histogram
    unit_importance: np.ndarray
    dead: bool


def summarize(
    part: Part,
    shape: tuple[int, int],
    *,
    low: float | None = None,
    by_column: bool = False,
    bins: int = 50,
    compiled: bool | None = None,
) -> Summary:
    """Entropy, effective count, top-90 share, low share, histogram and row sums of an importance.

    Sums are float64 over tiles of 65,536 numbers; the count of the top 90% is that of sorting
    everything and adding it up in float64. Extra memory: at most 64 MiB on a CPU, whatever the
    size, apart from the row sums.

    Args:
        part: the importance of rows and columns (slices, also with steps): float32 or float64,
            finite, at least 0. Asked for each tile a few times. A ``Product`` that is plain goes
            through kernels of its own, if compiled, on as many threads as torch has.
        shape: (units, weights of a unit).
        low: an importance below this is low; 1% of the mean, if None.
        by_column: whether a column lies together in memory, rather than a row.
        bins: of the histogram.
        compiled: whether to use the kernels that numba compiles; where numba is installed and the
            layer is large, if None.

    Raises:
        ValueError: no weights; an importance is negative, NaN or infinite, or their sum is; or
            numba is asked for and not installed.

    >>> importance = torch.tensor([[5.0, 4.0], [1.0, 0.0]])
    >>> found = summarize(lambda rows, columns: importance[rows, columns], (2, 2))
    >>> found.usage.top90_share, found.unit_importance.tolist(), round(found.usage.effective, 4)
    (0.5, [9.0, 1.0], 2.5686)
    """
    if bins < 1:
        raise ValueError(f"bins: expected a whole number of at least 1, but got {bins}")
    count = shape[0] * shape[1]
    if count == 0:
        raise ValueError("importance: expected at least one weight, but got none")
    first = part(slice(0, 1), slice(0, 1))
    product = part if isinstance(part, WeightedImportance) and part.is_plain else None
    kernels = kernels_for(first.device, count, compiled, product)
    tiles = _Tiles(part, shape, first, by_column=by_column)
    survey, border = _surveyed(tiles, kernels, count)
    if (
        isinstance(part, WeightedImportance)
        and first.dtype == torch.float32
        and survey.largest < _FAINT
    ):
        return summarize(part.exact, shape, low=low, by_column=by_column, bins=bins,
                         compiled=compiled)
    top = survey.largest
    cut = LOW_OF_MEAN * survey.total / count if low is None else low
    counts, below = kernels.spread(tiles, bins, top, cut)
    dead = survey.total == 0
    entropy = 0.0 if dead else _entropy(tiles, survey)
    edges = np.linspace(0.0, top / survey.total if not dead else 1.0, bins + 1)
    return Summary(
        count=count,
        total=survey.total,
        usage=Concentration(count, entropy, 0.0 if dead else math.exp(entropy), border / count,
                            below / count),
        histogram=Histogram(edges, counts, entropy),
        unit_importance=survey.by_row,
        dead=dead,
    )


def _entropy(tiles: _Tiles, survey: SumsAboveThreshold) -> float:
    """ln T − Σ i ln i / T; where these nearly cancel, −Σ p ln p in float64, by one more pass."""
    mean_log = survey.weighted / survey.total
    entropy = math.log(survey.total) - mean_log
    if entropy < _CANCELS * abs(mean_log):
        shares = (_exact(tile) / survey.total for _, tile in tiles)
        entropy = -math.fsum(float(torch.special.xlogy(p, p).sum()) for p in shares)
    return max(0.0, entropy)


class _Tiles:
    """The tiles of an importance, each small enough to stay in a processor's cache."""

    def __init__(
        self, part: Part, shape: tuple[int, int], first: Tensor, *, by_column: bool
    ) -> None:
        self.part, self.shape, self.by_column = part, shape, by_column
        self.kind: Any = np.float32 if _wide(first).dtype == torch.float32 else np.float64
        most = _TILE_ON_GPU if first.is_cuda else _TILE
        rows, columns = shape
        if by_column:
            self.rows = min(rows, most)
            self.columns = min(columns, max(1, most // self.rows))
        else:
            self.columns = min(columns, most)
            self.rows = min(rows, max(1, most // self.columns))

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Each tile with the rows that it is of; floating-point, at least float32."""
        for top in range(0, self.shape[0], self.rows):
            rows = slice(top, min(top + self.rows, self.shape[0]))
            for left in range(0, self.shape[1], self.columns):
                yield rows, _wide(self.part(rows, slice(left, left + self.columns)))

    def beside(self, value: float, towards: float) -> float:
        """The next number of the importances' own type: kernels compare in it."""
        return float(np.nextafter(self.kind(value), self.kind(towards)))

    def middle(self, low: float, high: float) -> float:
        """The number that has as many others of its type above it, up to ``high``, as below."""
        whole = np.int32 if self.kind is np.float32 else np.int64
        ends = [int(self.kind(end).view(whole)) for end in (low, high)]
        return float(whole(sum(ends) // 2 + 1).view(self.kind))

    def sample(self, each: int) -> np.ndarray:
        """Runs of ``each`` importances from all over, sorted from the largest down, float64."""
        lines, run = reversed(self.shape) if self.by_column else self.shape
        each, found = each * max(1, _SAMPLE_LINES // lines), []
        for call in range(_SAMPLE_CALLS):
            place = (call * 0.6180339887498949) % 1.0  # spread, in no period of the matrix's own
            step = max(1, lines // _SAMPLE_LINES)
            left = int((call * 0.7548776662466927) % 1.0 * max(1, run - each + 1))
            chosen = slice(int(place * step), None, step), slice(left, left + each)
            found.append(_wide(self.part(*(chosen[::-1] if self.by_column else chosen)))
                         .double().flatten())
        return np.sort(torch.cat(found).cpu().numpy())[::-1]


def _exact(tile: Tensor) -> Tensor:
    """In float64, which a Mac's GPU does not have."""
    return (tile.cpu() if tile.device.type == "mps" else tile).double()


def _wide(tile: Tensor) -> Tensor:
    return tile.to(torch.promote_types(tile.dtype, torch.float32))


def _surveyed(tiles: _Tiles, kernels: Kernels, count: int) -> tuple[SumsAboveThreshold, int]:
    """What one pass finds, and how many of the largest importances hold 90% of their sum."""
    each, slack = _FEW if count <= _LARGE else _MANY
    window = (0.0, math.inf) if count <= _SIMPLY_SORTED else \
        _window(tiles.sample(each), None, slack)
    survey = _checked_tiles(kernels.survey(tiles, tiles.shape[0], *window))
    wanted = COVERAGE * survey.total * (1 - ROUNDING)
    if survey.total == 0:
        return survey, 0
    looked, bracket = survey, (0.0, survey.largest)  # between which the border surely lies
    for _ in range(_MOST_PASSES):
        if looked.above >= wanted:
            bracket = (tiles.beside(window[1], math.inf), bracket[1])
            guess = bracket
        elif looked.above + looked.inside < wanted:
            if window[0] <= 0:
                return survey, count  # by rounding: everything is needed
            bracket = (bracket[0], tiles.beside(window[0], 0.0))
            guess = bracket
        else:
            found = _place(looked, wanted)
            if found is not None:
                return survey, min(found, count)
            bracket = (max(bracket[0], window[0]), min(bracket[1], window[1]))
            guess = _window(np.sort(looked.kept)[::-1], (wanted - looked.above) / looked.inside,
                            slack / 4)
        narrower = (max(bracket[0], guess[0]), min(bracket[1], guess[1]))
        if narrower[0] > narrower[1] or narrower == window:
            narrower = (tiles.middle(*bracket), bracket[1])
        window = narrower
        looked = kernels.survey(tiles, tiles.shape[0], *window)
    raise RuntimeError("the border of the top 90% was not found")


def _window(descending: np.ndarray, share: float | None, slack: float) -> tuple[float, float]:
    """Between which importances the border lies, as a sample says; ``share`` of its sum is above.

    Raises:
        ValueError: the sample is not finite.
    """
    held = descending.astype(np.float64).cumsum()
    place = int(np.searchsorted(held, held[-1] * (COVERAGE if share is None else share)))
    about = max(16, int(slack * len(descending)))
    high = float(descending[max(0, place - about)])
    low = float(descending[min(len(descending) - 1, place + about)])
    return low, high


def _place(looked: SumsAboveThreshold, wanted: float) -> int | None:
    """The number of the largest importances that hold ``wanted``; None if too few were kept."""
    if looked.inside_least == looked.inside_most:  # equal ones, however many
        more = math.ceil((wanted - looked.above) / looked.inside_most)
        return looked.above_count + max(1, min(more, looked.inside_count))
    if len(looked.kept) < looked.inside_count:
        return None
    more = _enough(looked.kept, wanted - looked.above)
    return looked.above_count + more


def _enough(values: np.ndarray, wanted: float) -> int:
    """How many of the largest values have a sum of at least ``wanted``.

    Sorting is spared: counts and sums of equal bins say in which of them the border lies.
    """
    count, held = 0, 0.0
    while len(values) > _SORTED_AT_ONCE and values.min() < values.max():
        least, most = float(values.min()), float(values.max())
        exact = values.astype(np.float64)
        exact -= least
        exact *= _BINS / (most - least)
        places = exact.astype(np.int32)
        np.minimum(places, _BINS - 1, out=places)
        sums = np.bincount(places, weights=values, minlength=_BINS)[::-1].cumsum()
        bin_ = min(_BINS - 1, int(np.searchsorted(sums, wanted - held)))
        above = places > _BINS - 1 - bin_
        count, held = count + int(np.count_nonzero(above)), held + (sums[bin_ - 1] if bin_ else 0.0)
        inside = values[places == _BINS - 1 - bin_]
        if len(inside) == len(values):
            break
        values = inside
    running = np.sort(values)[::-1].cumsum(dtype=np.float64)
    return count + min(int(np.searchsorted(running, wanted - held)), len(values) - 1) + 1


def _checked_tiles(survey: SumsAboveThreshold) -> SumsAboveThreshold:
    if not math.isfinite(survey.total):
        raise ValueError("importance: expected finite numbers with a finite sum, but got NaN or "
                         "infinity")
    if survey.least < 0:
        raise ValueError("importance: expected numbers of at least 0, but got a negative one")
    return survey
