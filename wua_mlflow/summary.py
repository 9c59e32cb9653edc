"""``summarize``: how concentrated a layer's importance is, exact at any size, in bounded memory.

The importance is asked for tile by tile and never held whole; two passes over it, seldom more.
May import: torch, numpy, importance, survey, usage. Tests: ``tests/test_summary.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wua_mlflow.importance import Product
from wua_mlflow.survey import Kernels, Survey, kernels_for
from wua_mlflow.usage import Concentration, Histogram

__all__ = ["Summary", "summarize"]

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
    product = part if isinstance(part, Product) and part.is_plain else None
    kernels = kernels_for(first.device, count, compiled, product)
    tiles = _Tiles(part, shape, first, by_column=by_column)
    survey, border = _surveyed(tiles, kernels, count)
    if isinstance(part, Product) and first.dtype == torch.float32 and survey.largest < _FAINT:
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


def _entropy(tiles: _Tiles, survey: Survey) -> float:
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


def _surveyed(tiles: _Tiles, kernels: Kernels, count: int) -> tuple[Survey, int]:
    """What one pass finds, and how many of the largest importances hold 90% of their sum."""
    each, slack = _FEW if count <= _LARGE else _MANY
    window = (0.0, math.inf) if count <= _SIMPLY_SORTED else \
        _window(tiles.sample(each), None, slack)
    survey = _checked(kernels.survey(tiles, tiles.shape[0], *window))
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


def _place(looked: Survey, wanted: float) -> int | None:
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


def _checked(survey: Survey) -> Survey:
    if not math.isfinite(survey.total):
        raise ValueError("importance: expected finite numbers with a finite sum, but got NaN or "
                         "infinity")
    if survey.least < 0:
        raise ValueError("importance: expected numbers of at least 0, but got a negative one")
    return survey
