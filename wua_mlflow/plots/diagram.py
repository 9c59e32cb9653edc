"""Ink of the network's diagram: circles, lines, and what they mean.

May import: matplotlib, inside its functions. Test: ``tests/plots/test_network.py``.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from wua_mlflow.plots import canvas, network
from wua_mlflow.plots.naming import row_names
from wua_mlflow.plots.palette import INK, NODE, STRONG_WEIGHT, WEAK_WEIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wua_mlflow.plots.network import NetworkColumn, NetworkData

__all__ = ["draw_network"]

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
        page = canvas.sheet(width, height + top + _footer_in(data))
        ax = page.axes(0.25, top, width - 0.5, height)
    ax.set_axis_off()
    ax.set_xlim(-0.45, len(data.columns) - 0.55)
    ax.set_ylim(-0.54, 0.54)
    _draw_lines(ax, data)
    _draw_circles(ax, data)
    _label_columns(ax, data)
    _legend(ax, data)
    canvas.title(ax, _headline(data), left_points=0, above_points=above)
    canvas.caption(ax, _caption(data), below_points=30)
    return canvas.root_figure(ax)


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
        said += f"red above {network.STRONG_TIMES} times it, full width at 3 times."
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
    figure = canvas.root_figure(ax)
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
            _column_words(data.columns[i], canvas.elide(names[i], longest), value=i == 0),
            xy=(i, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 45 if data.aggregated else 32),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=canvas.LABEL,
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
    width_in = canvas.root_figure(ax).get_figwidth() * ax.get_position().width
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
            (STRONG_WEIGHT, network.STRONG_TIMES**2 / 3, f"{network.STRONG_TIMES} times"),
            (WEAK_WEIGHT, 1 / 3, "the mean"),
        ]
    handles = [Line2D([], [], color=c, linewidth=width, label=words) for c, width, words in samples]
    canvas.legend_below(ax, handles, points=12)
