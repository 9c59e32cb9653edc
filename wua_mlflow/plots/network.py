"""The network diagram: circles for units, lines for weights; wide layers drawn in groups.

The types and the data; ``diagram.py`` draws. May import: numpy.
Test: ``tests/plots/test_network.py``.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wua_mlflow.plots import style
from wua_mlflow.plots.layer_rows import row_names
from wua_mlflow.plots.style import INK, NODE, STRONG_WEIGHT, WEAK_WEIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["NetworkColumn", "NetworkData", "draw_network", "network_data", "plot_network"]


STRONG_ABOVE = 0.1
"""A line whose |w| is larger than this is red."""
WIDTH_PER_WEIGHT, NARROWEST, WIDEST = 3.0, 0.2, 3.0
"""Width of a line in points: min(max(3·|w|, 0.2), 3), as in the tutorial."""

MOST_GROUPS = 24
"""A layer that is grouped has at most so many circles: then its lines can be told apart."""
STRONG_TIMES = 1.5
"""To or from a group, a line is red where it is above so many times the layer's mean |w|, and as
wide as a third of that multiple's square, so that 3 times the mean has the full width."""

_BLOCK_ROWS = 512


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
    above 1.5 times the layer's mean where grouped.
    """

    columns: tuple[NetworkColumn, ...]
    positions: np.ndarray
    edges: np.ndarray
    weights: np.ndarray
    grouped: np.ndarray
    widths_points: np.ndarray
    strong: np.ndarray

    @property
    def aggregated(self) -> bool:
        """Whether some circle stands for more than one unit."""
        return any(column.group_size > 1 for column in self.columns)


def network_data(
    weights: Sequence[np.ndarray], names: Sequence[str] | None = None, max_units: int = 60
) -> NetworkData:
    """Lay out a chain of fully connected layers.

    A layer of more than ``max_units`` units is drawn as at most 24 groups of consecutive units, all
    of one size; a line then shows the mean |w| of the block of weights between two groups, against
    the mean |w| of the layer, since means of many weights hardly ever differ much from that.

    Args:
        weights: one array a layer, shape (out, in) as in ``nn.Linear``, in the forward's order.
        names: one a layer; ``layer 1``, ``layer 2``, … where not given.
        max_units: at most this many circles in a column; a grouped one has at most 24.

    Raises:
        ValueError: there is no layer, an array is not a finite matrix, its inputs are not the
            outputs of the one before, or the number of names differs.

    >>> data = network_data([np.ones((3, 2)), np.zeros((1, 3))])
    >>> [column.units for column in data.columns], data.edges.shape
    ([2, 3, 1], (9, 2))
    """
    matrices = _checked(weights)
    if max_units < 1:
        raise ValueError(f"max_units: expected an integer of at least 1, but got {max_units}")
    labels = [f"layer {i + 1}" for i in range(len(matrices))] if names is None else list(names)
    if len(labels) != len(matrices):
        raise ValueError(f"names: expected {len(matrices)}, one a layer, but got {len(labels)}")
    units = [matrices[0].shape[1], *(matrix.shape[0] for matrix in matrices)]
    pairs = zip(["input", *labels], units, strict=True)
    columns = tuple(_column(name, count, max_units) for name, count in pairs)
    edges, strengths, times = _edges(matrices, columns)
    grouped = np.isfinite(times)
    return NetworkData(
        columns=columns,
        positions=np.concatenate([_places(i, c.circles) for i, c in enumerate(columns)]),
        edges=edges,
        weights=strengths,
        grouped=grouped,
        widths_points=np.clip(
            np.where(grouped, times**2 / 3, WIDTH_PER_WEIGHT * strengths), NARROWEST, WIDEST
        ),
        strong=np.where(grouped, times > STRONG_TIMES, strengths > STRONG_ABOVE),
    )


def plot_network(data: NetworkData, ax: Axes | None = None) -> Figure:
    """Draw the diagram on ``ax``, or on a new figure that grows with the number of layers."""

    return draw_network(data, ax)


def _checked(weights: Sequence[np.ndarray]) -> list[np.ndarray]:
    matrices = [np.asarray(matrix) for matrix in weights]
    if not matrices:
        raise ValueError("weights: expected at least one layer, but got none")
    for i, matrix in enumerate(matrices):
        if matrix.ndim != 2 or 0 in matrix.shape:
            raise ValueError(f"weights[{i}]: expected shape (out, in), but got {matrix.shape}")
        if not np.isfinite(matrix).all():
            raise ValueError(f"weights[{i}]: expected finite numbers, but got NaN or infinity")
        if i and matrix.shape[1] != matrices[i - 1].shape[0]:
            raise ValueError(
                f"weights[{i}]: expected {matrices[i - 1].shape[0]} inputs, the outputs of the "
                f"layer before, but got {matrix.shape[1]}"
            )
    return matrices


def _column(name: str, units: int, max_units: int) -> NetworkColumn:
    size = 1 if units <= max_units else _group_size(units, min(MOST_GROUPS, max_units))
    return NetworkColumn(name=name, units=units, circles=-(-units // size), group_size=size)


def _group_size(units: int, most: int) -> int:
    """For at most ``most`` groups, and half of that at least where groups can then be equal."""
    even = (units // groups for groups in range(most, most // 2, -1) if units % groups == 0)
    return next(even, -(-units // most))


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
        mean = _block_means(matrix, *matrix.shape).item() or 1.0 if grouped else math.nan
        times.append(means.ravel() / mean)
    return np.concatenate(ends), np.concatenate(strengths), np.concatenate(times)


def _block_means(matrix: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Mean |w| over blocks of ``rows`` × ``columns``; few rows at a time, so no whole copy."""
    starts = np.arange(0, matrix.shape[1], columns)
    means = []
    for top in range(0, matrix.shape[0], rows):
        band = matrix[top : top + rows]
        total = sum(
            np.abs(band[k : k + _BLOCK_ROWS]).sum(axis=0, dtype=np.float64)
            for k in range(0, len(band), _BLOCK_ROWS)
        )
        sizes = np.diff([*starts, matrix.shape[1]]) * len(band)
        means.append(np.add.reduceat(total, starts) / sizes)
    return np.stack(means)


_WIDEST_FIGURE_IN = 16.0
_CHARACTERS_PER_IN = 15
_OPAQUE_LINES = 400
"""More lines than this between two columns are translucent, so that dense ones stay readable."""


def draw_network(data: NetworkData, ax: Axes | None = None) -> Figure:
    """Draw the diagram on ``ax``, or on a new figure that grows with the number of layers."""
    above = 62 if data.aggregated else 46
    if ax is None:
        width, height = _size_in(data)
        top = 0.36 + above / 72
        page = style.sheet(width, height + top + _footer_in(data))
        ax = page.axes(0.25, top, width - 0.5, height)
    ax.set_axis_off()
    ax.set_xlim(-0.45, len(data.columns) - 0.55)
    ax.set_ylim(-0.54, 0.54)
    _draw_lines(ax, data)
    _draw_circles(ax, data)
    _label_columns(ax, data)
    _legend(ax, data)
    style.title(ax, _headline(data), left_points=0, above_points=above)
    style.caption(ax, _caption(data), below_points=30)
    return style.root_figure(ax)


def _size_in(data: NetworkData) -> tuple[float, float]:
    tallest = max(column.circles for column in data.columns)
    width = min(_WIDEST_FIGURE_IN, max(6.5, 2.0 * len(data.columns) + 0.5))
    return width, min(6.0, max(2.2, 0.3 * tallest))


def _footer_in(data: NetworkData) -> float:
    return 30 / 72 + 0.16 * (1 + _caption(data).count("\n")) + 0.12


def _headline(data: NetworkData) -> str:
    units = [f"{column.units:,}" for column in data.columns]
    return " → ".join(units if len(units) <= 12 else [*units[:5], "…", *units[-5:]])


def _caption(data: NetworkData) -> str:
    if not data.aggregated:
        return "One circle a unit, one line a weight."
    said = (
        "Wide layers are drawn in groups of consecutive units. A line to or from a group is the "
        "mean |w| of all weights between the two, drawn relative to the layer's mean |w|"
    )
    if data.grouped.all():
        said += "."
    else:
        said += ": hairline at the mean, "
        said += f"red above {STRONG_TIMES} times it, full width at 3 times."
    return textwrap.fill(said, width=int(_CHARACTERS_PER_IN * _size_in(data)[0]))


def _draw_lines(ax: Axes, data: NetworkData) -> None:
    from matplotlib.collections import LineCollection

    order = np.argsort(data.weights, kind="stable")
    ax.add_collection(
        LineCollection(
            list(data.positions[data.edges[order]]),
            linewidths=data.widths_points[order],
            alpha=_opacity(data)[order],
            colors=np.where(data.strong, STRONG_WEIGHT, WEAK_WEIGHT)[order].tolist(),
            zorder=1,
        )
    )


def _opacity(data: NetworkData) -> np.ndarray:
    """Shape (lines,): lower where many lines lie between the same two columns."""
    gap = data.positions[data.edges[:, 0], 0].astype(int)
    opacity: np.ndarray = np.clip(_OPAQUE_LINES / np.bincount(gap), 0.3, 1.0)
    return opacity[gap]


def _draw_circles(ax: Axes, data: NetworkData) -> None:
    tallest = max(column.circles for column in data.columns)
    figure = style.root_figure(ax)
    height_points = 72 * figure.get_figheight() * ax.get_position().height
    diameter = min(17.0, 0.66 * height_points / (1.08 * max(tallest, 2)))
    x, y = data.positions.T
    ax.scatter(x, y, s=diameter**2, c=NODE, edgecolors=INK, linewidths=0.9, zorder=2, clip_on=False)


def _label_columns(ax: Axes, data: NetworkData) -> None:
    every = -(-len(data.columns) // 12)
    longest = _label_characters(ax, len(data.columns), every)
    first, *layers = (column.name for column in data.columns)
    names = [first, *row_names(layers, by_block=False).names]
    for i in range(0, len(data.columns), every):
        label = ax.annotate(
            _column_words(data.columns[i], style.elide(names[i], longest), value=i == 0),
            xy=(i, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 45 if data.aggregated else 32),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=style.LABEL,
            color=INK,
            annotation_clip=False,
        )
        label.set_parse_math(False)


def _column_words(column: NetworkColumn, name: str, *, value: bool) -> str:
    noun = ("value" if value else "unit") + ("" if column.units == 1 else "s")
    lines = [name, f"{column.units:,} {noun}"]
    if column.group_size > 1:
        lines.append(f"groups of {column.group_size:,}")
    return "\n".join(lines)


def _label_characters(ax: Axes, columns: int, every: int) -> int:
    """How many characters of a name fit over a column, those at the figure's edges too."""
    width_in = style.root_figure(ax).get_figwidth() * ax.get_position().width
    column_in = width_in / (columns - 0.1)
    return max(8, min(24, int(min(every * column_in, 0.9 * column_in + 0.4) / 0.09)))


def _legend(ax: Axes, data: NetworkData) -> None:
    from matplotlib.lines import Line2D

    samples = [
        (STRONG_WEIGHT, 3.0, "|w| of 1 and above"),
        (STRONG_WEIGHT, 0.9, "|w| = 0.3"),
        (WEAK_WEIGHT, 0.9, "grey: |w| ≤ 0.1 (drawn thinner)"),
    ]
    if data.grouped.all():
        samples = [
            (STRONG_WEIGHT, 3.0, "3 times the layer's mean |w| and above"),
            (STRONG_WEIGHT, STRONG_TIMES**2 / 3, f"{STRONG_TIMES} times"),
            (WEAK_WEIGHT, 1 / 3, "the mean"),
        ]
    handles = [Line2D([], [], color=c, linewidth=width, label=words) for c, width, words in samples]
    style.legend_below(ax, handles, points=12)
