"""One pass over the tiles of an importance: sums, extremes, what lies above and within a window.

Three ways with the same results: NumPy on a CPU, kernels that numba compiles, torch on a GPU.
May import: torch, numpy, importance; compiled and fused (lazily). Tests: ``tests/test_summary.py``.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from wua_mlflow.importance import Product

__all__ = ["Kept", "Kernels", "Survey", "kernels_for"]

WORTHWHILE = 2**20
"""From so many weights on the compiled kernels are worth their start."""
_WIDEST = 2**20
"""Products with rows of more weights go tile by tile: the fused kernels do not divide a row."""
_MOST_KEPT = 2**20
Tiles = Iterable[tuple[slice, Tensor]]


@dataclass(frozen=True)
class Survey:
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

    def survey(self, tiles: Tiles, rows: int, low: float, high: float) -> Survey:
        """One pass; the window is low ≤ importance ≤ high."""
        ...

    def spread(
        self, tiles: Tiles, bins: int, top: float, low: float
    ) -> tuple[np.ndarray, int]:
        """Counts over equal bins from 0 to ``top``, and how many lie below ``low``."""
        ...


def kernels_for(
    device: torch.device, count: int, compiled: bool | None, product: Product | None = None
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
            from wua_mlflow.fused import FusedKernels

            return FusedKernels(product)
        from wua_mlflow.compiled import CompiledKernels

        return CompiledKernels()
    return NumpyKernels()


class Kept:
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

    def survey(self, tiles: Tiles, rows: int, low: float, high: float) -> Survey:
        by_row = np.zeros(rows)
        found = np.zeros(3)  # weighted, above, inside
        least, largest, inside_least, inside_most = math.inf, -math.inf, math.inf, -math.inf
        above_count = inside_count = 0
        kept = Kept()
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
        return Survey(total_of(by_row), weights, by_row, least, largest, above, above_count,
                      inside_sum, inside_count, inside_least, inside_most, kept.values())

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

    def survey(self, tiles: Tiles, rows: int, low: float, high: float) -> Survey:
        by_row: Tensor | None = None
        sums: list[Tensor] = []
        extremes: list[Tensor] = []
        kept = Kept()
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
        return Survey(by_row.sum().item(), weighted_sum, by_row.cpu().numpy(),
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
