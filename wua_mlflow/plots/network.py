"""The network diagram: circles for units, lines for weights; wide layers drawn in groups.

Tests: ``tests/plots/test_network.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wua_mlflow.plots import style
from wua_mlflow.plots.layer_rows import row_names
from wua_mlflow.plots.style import EDGE_IN, INK, NODE, STRONG_WEIGHT, WEAK_WEIGHT

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["NetworkColumn", "NetworkData", "network_data", "plot_network"]


STRONG_ABOVE = 0.1
"""A line whose |w| is larger than this is red."""
WIDTH_PER_WEIGHT, NARROWEST, WIDEST = 3.0, 0.2, 3.0
"""Width of a line in points: min(max(3·|w|, 0.2), 3), as in the tutorial."""

MOST_UNITS, MOST_GROUPS = 60, 24
"""A layer of more units is drawn in groups, at most so many: then its lines can be told apart."""
STRONG_TIMES = 1.5
"""To or from a group, a line is red where it is above so many times the layer's mean |w|, and as
wide as a third of that multiple's square, so that 3 times the mean has the full width."""

_WIDEST_FIGURE_IN = 16.0
_MOST_LABELS = 12
_OPAQUE_LINES = 400
"""More lines than this between two columns are translucent, so that dense ones stay readable."""


@dataclass(frozen=True)
class NetworkColumn:
    """One column of circles: ``units`` units, drawn as ``circles`` groups of ``group_size``.

    The last group is smaller where ``group_size`` does not divide ``units``.
    """

    name: str
    units: int
    circles: int
    group_size: int


@dataclass(frozen=True)
class NetworkData:
    """Places of circles and lines. Circles are numbered column by column, from the top down.

    ``positions`` has shape (circles, 2): x is the column's number, y lies in −0.5..0.5.
    ``edges`` has shape (lines, 2): the circles that a line joins, from left to right.
    ``weights`` (lines,) holds |w|, or the mean |w| of a block where a side is grouped: there
    ``grouped`` (lines,) is true. ``widths_points`` (lines,) is the line's width, 3·|w| within
    bounds, or (|w| ÷ the layer's mean)²/3 where grouped; ``strong`` (lines,) where |w| > 0.1, or
    above 1.5 times the layer's mean where grouped. ``inputs`` and ``outputs`` are the names of the
    first and of the last column's circles; empty where they are not known.
    """

    columns: tuple[NetworkColumn, ...]
    positions: np.ndarray
    edges: np.ndarray
    weights: np.ndarray
    grouped: np.ndarray
    widths_points: np.ndarray
    strong: np.ndarray
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    @property
    def aggregated(self) -> bool:
        """Whether some circle stands for more than one unit."""
        return any(column.group_size > 1 for column in self.columns)


def network_data(
    weights: Mapping[str, np.ndarray], *, inputs: Sequence[str] = (), outputs: Sequence[str] = ()
) -> NetworkData:
    """Lay out a chain of fully connected layers.

    A layer of more than 60 units is drawn as at most 24 groups of consecutive units, all of one
    size; a line then shows the mean |w| of the block of weights between two groups, against the
    mean |w| of the layer, since means of many weights hardly ever differ much from that.

    Args:
        weights: by layer's name, shape (out, in) as in ``nn.Linear``, in the forward's order.
        inputs: names of the inputs, as of a table's columns; shown where there is one a circle.
        outputs: names of the last layer's units, as of classes.

    Raises:
        ValueError: there is no layer, an array is not a finite matrix, or its inputs are not the
            outputs of the one before.

    >>> data = network_data({"fc1": np.ones((3, 2)), "fc2": np.zeros((1, 3))})
    >>> [column.units for column in data.columns], data.edges.shape
    ([2, 3, 1], (9, 2))
    """
    matrices = list(weights.values())
    _check(matrices)
    columns = (_column("input", matrices[0].shape[1]), *(
        _column(name, matrix.shape[0]) for name, matrix in zip(weights, matrices, strict=True)))
    edges, strengths, times = _edges(matrices, columns)
    grouped = np.isfinite(times)
    widths = np.where(grouped, times**2 / 3, WIDTH_PER_WEIGHT * strengths)
    return NetworkData(
        columns, np.concatenate([_places(i, column.circles) for i, column in enumerate(columns)]),
        edges, strengths, grouped, np.clip(widths, NARROWEST, WIDEST),
        strong=np.where(grouped, times > STRONG_TIMES, strengths > STRONG_ABOVE),
        inputs=_names_of(columns[0], inputs), outputs=_names_of(columns[-1], outputs))


def _names_of(column: NetworkColumn, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(map(str, names)) if len(names) == column.circles == column.units else ()


def plot_network(data: NetworkData) -> Figure:
    """Draw the diagram; the figure grows with the layers."""
    tallest = max(column.circles for column in data.columns)
    width = min(_WIDEST_FIGURE_IN, max(6.5, 2.0 * len(data.columns) + 0.5))
    height = min(6.0, max(2.2, 0.3 * tallest))
    top = 1.25 if data.aggregated else 1.0
    before, after = (_names_in(names) for names in (data.inputs, data.outputs))
    page = style.sheet(width + before + after, top + height + 0.42, title=_headline(data),
                       caption=_caption(data))
    page.legend(EDGE_IN, top + height + 0.15, _legend(data))
    axes = page.axes(0.25 + before, top, width - 0.5, height)
    axes.set_axis_off()
    axes.set_xlim(-0.45, len(data.columns) - 0.55)
    axes.set_ylim(-0.54, 0.54)
    _draw_lines(axes, data)
    diameter = min(17.0, 0.66 * 72 * height / (1.08 * max(tallest, 2)))
    x, y = data.positions.T
    axes.scatter(x, y, s=diameter**2, c=NODE, edgecolors=INK, linewidths=0.9,
                 zorder=2, clip_on=False)
    _name_circles(axes, data)
    _label_columns(axes, data, (width - 0.5) / (len(data.columns) - 0.1))
    return page.figure


def _check(weights: Sequence[np.ndarray]) -> None:
    if not weights:
        raise ValueError("weights: expected at least one layer, but got none")
    for i, matrix in enumerate(weights):
        if matrix.ndim != 2 or 0 in matrix.shape:
            raise ValueError(f"weights[{i}]: expected shape (out, in), but got {matrix.shape}")
        if not np.isfinite(matrix).all():
            raise ValueError(f"weights[{i}]: expected finite numbers, but got NaN or infinity")
        if i and matrix.shape[1] != weights[i - 1].shape[0]:
            raise ValueError(
                f"weights[{i}]: expected {weights[i - 1].shape[0]} inputs, the outputs of the "
                f"layer before, but got {matrix.shape[1]}"
            )


def _column(name: str, units: int) -> NetworkColumn:
    """A circle a unit, or at most 24 groups, and more than 12 where groups can then be equal."""
    even = (units // groups for groups in range(MOST_GROUPS, MOST_GROUPS // 2, -1)
            if units % groups == 0)
    size = 1 if units <= MOST_UNITS else next(even, -(-units // MOST_GROUPS))
    return NetworkColumn(name, units, -(-units // size), size)


def _places(column: int, circles: int) -> np.ndarray:
    spacing = min(0.25, 1 / max(circles - 1, 1))
    y = ((circles - 1) / 2 - np.arange(circles)) * spacing
    return np.stack([np.full(circles, float(column)), y], axis=1)


def _edges(
    matrices: Sequence[np.ndarray], columns: Sequence[NetworkColumn]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joined circles, shape (lines, 2); |w|; |w| ÷ the layer's mean, NaN where not grouped."""
    first = np.cumsum([0, *(column.circles for column in columns)])
    ends, strengths, times = [], [], []
    for i, matrix in enumerate(matrices):
        left, right = columns[i], columns[i + 1]
        means = _block_means(matrix, right.group_size, left.group_size)
        to, source = np.indices(means.shape).reshape(2, -1)
        ends.append(np.stack([first[i] + source, first[i + 1] + to], axis=1))
        strengths.append(means.ravel())
        grouped = left.group_size > 1 or right.group_size > 1
        mean = np.abs(matrix).mean(dtype=np.float64) or 1.0 if grouped else math.nan
        times.append(means.ravel() / mean)
    return np.concatenate(ends), np.concatenate(strengths), np.concatenate(times)


def _block_means(matrix: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Mean |w| over blocks of ``rows`` × ``columns``, fewer at the lower and right edges."""
    means: np.ndarray = np.abs(matrix, dtype=np.float64)
    for axis, size in enumerate((rows, columns)):
        starts = np.arange(0, means.shape[axis], size)
        counts = np.diff([*starts, means.shape[axis]])
        means = np.add.reduceat(means, starts, axis) / np.expand_dims(counts, 1 - axis)
    return means


def _headline(data: NetworkData) -> str:
    units = [f"{column.units:,}" for column in data.columns]
    return " → ".join(units if len(units) <= _MOST_LABELS else [*units[:5], "…", *units[-5:]])


def _caption(data: NetworkData) -> str:
    if not data.aggregated:
        return "One circle a unit, one line a weight."
    scale = "" if data.grouped.all() else (
        f": hairline at the mean, red above {STRONG_TIMES} times it, full width at 3 times")
    return ("Wide layers are drawn in groups of consecutive units. A line to or from a group is "
            "the mean |w| of all weights between the two, drawn relative to the layer's mean |w|"
            f"{scale}.")


def _draw_lines(ax: Axes, data: NetworkData) -> None:
    """The heaviest on top; where many lie between two columns, all there are translucent."""
    from matplotlib.collections import LineCollection

    order = np.argsort(data.weights, kind="stable")
    column = data.positions[data.edges[:, 0], 0].astype(int)
    opacity = np.clip(_OPAQUE_LINES / np.bincount(column), 0.3, 1.0)[column]
    ax.add_collection(LineCollection(
        list(data.positions[data.edges[order]]), linewidths=data.widths_points[order],
        alpha=opacity[order], zorder=1,
        colors=np.where(data.strong, STRONG_WEIGHT, WEAK_WEIGHT)[order].tolist()))


_LONGEST_CIRCLE_NAME = 22


def _names_in(names: Sequence[str]) -> float:
    """Inches beside the drawing that the names of circles take, beyond its own edge."""
    shown = [style.elide(name, _LONGEST_CIRCLE_NAME) for name in names]
    return max(0.0, style.text_width(shown, style.SMALL) - 0.15) if shown else 0.0


def _name_circles(ax: Axes, data: NetworkData) -> None:
    """Names left of the inputs and right of the outputs."""
    last = len(data.positions) - len(data.outputs)
    for first, names, side, ha in ((0, data.inputs, -13, "right"),
                                   (last, data.outputs, 13, "left")):
        for name, at in zip(names, data.positions[first:], strict=False):
            style.note(ax, style.elide(name, _LONGEST_CIRCLE_NAME), tuple(at), (side, 0), "data",
                       ha=ha, va="center", color=INK)


def _label_columns(ax: Axes, data: NetworkData, column_in: float) -> None:
    """Name and units over a column; of many columns, not over each."""
    every = -(-len(data.columns) // _MOST_LABELS)
    room_in = min(every * column_in, 0.9 * column_in + 0.4)
    longest = max(8, min(24, int(room_in / 0.09)))
    first, *layers = (column.name for column in data.columns)
    names = [first, *row_names(layers, by_block=False).names]
    for i in range(0, len(data.columns), every):
        units, size = data.columns[i].units, data.columns[i].group_size
        noun = ("unit" if i else "value") + ("" if units == 1 else "s")
        lines = [style.elide(names[i], longest), f"{units:,} {noun}"]
        lines += [f"groups of {size:,}"] if size > 1 else []
        style.note(ax, "\n".join(lines), (i, 1), (0, 45 if data.aggregated else 32),
                   ("data", "axes fraction"), ha="center", va="top", fontsize=style.LABEL,
                   color=INK)


def _legend(data: NetworkData) -> list[Artist]:
    samples = {"3 times the layer's mean |w| and above": 3.0,
               f"{STRONG_TIMES} times": STRONG_TIMES**2 / 3, "the mean": 1 / 3} \
        if data.grouped.all() else {"|w| of 1 and above": 3.0, "|w| = 0.3": 0.9,
                                    "grey: |w| ≤ 0.1 (drawn thinner)": 0.9}
    colours = (STRONG_WEIGHT, STRONG_WEIGHT, WEAK_WEIGHT)
    return [style.legend_mark(colour, words, linewidth=width)
            for colour, (words, width) in zip(colours, samples.items(), strict=True)]
