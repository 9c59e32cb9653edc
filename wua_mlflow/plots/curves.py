"""The curve that each width was read from: a small panel a layer.

May import: numpy, ``canvas``, ``naming``; matplotlib inside functions.
Test: ``tests/plots/test_curves.py``.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wua_mlflow.plots import canvas
from wua_mlflow.plots.naming import row_names
from wua_mlflow.plots.palette import INK, MEASURED, MUTED, VARIANT_COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["MOST_PANELS", "CurvesData", "WidthCurve", "curves_data", "plot_curves"]

MOST_PANELS = 60
"""Layers beyond have no panel; the caption says how many."""

_COLUMNS, _PANEL_IN, _WIDE_IN, _HIGH_IN, _GAP_IN, _SCALE_IN = 4, 2.1, 2.9, 1.15, 0.3, 0.55
_EDGE_IN, _HEAD_IN, _NAME_IN, _FOOT_IN, _LINE_IN = 0.3, 0.95, 0.42, 0.42, 0.155
_LEGEND_IN = 0.32
_CHARACTERS_PER_IN = 17
_CHOSEN = VARIANT_COLOURS["slim"]
_LOGARITHMIC = 12
"""An axis of widths that spans this ratio is logarithmic."""


@dataclass(frozen=True)
class WidthCurve:
    """A layer's curve and what was read from it.

    Attributes:
        layer: its name.
        units: how many it has.
        width: how many are to stay.
        alone: the width read from this curve; ``width`` may be larger, where losses add up.
        widths: the widths looked at, ascending.
        scores: the score of each.
        threshold: what the score has to reach.
        axis: what the scores are.
    """

    layer: str
    units: int
    width: int
    alone: int
    widths: tuple[int, ...]
    scores: tuple[float, ...]
    threshold: float
    axis: str


@dataclass(frozen=True)
class CurvesData:
    """The panels that are drawn, how many more layers there are, and how the widths were found."""

    curves: tuple[WidthCurve, ...]
    left_out: int
    method: str

    @property
    def higher(self) -> bool:
        """Whether a layer keeps more than its own curve asks for."""
        return any(curve.width != curve.alone for curve in self.curves)


def curves_data(curves: Sequence[WidthCurve], *, method: str) -> CurvesData:
    """The panels of the picture.

    Args:
        curves: one a layer; one without a point is left out.
        method: what the title calls the way the widths were found.

    Raises:
        ValueError: no curve has a point, or one has not as many scores as widths, or a number in
            it is not finite.

    >>> curves_data([WidthCurve("fc1", 8, 3, 3, (2, 3, 8), (.5, .9, .9), .88, "accuracy")],
    ...             method="ablation").left_out
    0
    """
    known = [curve for curve in curves if curve.widths]
    if not known:
        raise ValueError("curves: expected at least one with a point, but got none")
    for curve in known:
        if len(curve.widths) != len(curve.scores):
            raise ValueError(f"curves: expected as many scores as widths, but {curve.layer} has "
                             f"{len(curve.scores)} and {len(curve.widths)}")
        if not all(map(math.isfinite, (*curve.scores, curve.threshold))):
            raise ValueError(f"curves: expected finite scores, but those of {curve.layer} are not")
    return CurvesData(tuple(known[:MOST_PANELS]), max(0, len(known) - MOST_PANELS), method)


def plot_curves(data: CurvesData, ax: Axes | None = None) -> Figure:
    """Draw a panel a layer on a new figure, or in the place of ``ax``."""
    count = len(data.curves)
    columns = min(_COLUMNS, count)
    panel_in = _WIDE_IN if count <= 2 else _PANEL_IN
    step = _SCALE_IN + panel_in + _GAP_IN
    width = max(2 * _EDGE_IN + columns * step - _GAP_IN, 7.2)
    tall = _NAME_IN + _HIGH_IN + _FOOT_IN
    lines = -(-count // columns)
    words = textwrap.fill(_caption(data), int(_CHARACTERS_PER_IN * (width - 2 * _EDGE_IN)))
    caption_top = _HEAD_IN + lines * tall + _LEGEND_IN
    height = caption_top + _LINE_IN * (1 + words.count("\n")) + 0.2
    page = canvas.sheet(width, height, ax)
    page.write(_EDGE_IN, 0.2, f"The curve that each width was read from: {data.method}",
               size=canvas.TITLE, bold=True)
    axis = ", ".join(dict.fromkeys(curve.axis.partition(" (")[0] for curve in data.curves))
    page.write(_EDGE_IN, 0.48, f"up: {axis}; across: units kept of the layer",
               size=canvas.SUBTITLE)
    page.write(_EDGE_IN, caption_top, words, size=canvas.SMALL, colour=MUTED)
    names = row_names([curve.layer for curve in data.curves], by_block=False).names
    panels = []
    for i, (curve, name) in enumerate(zip(data.curves, names, strict=True)):
        line, column = divmod(i, columns)
        left = _EDGE_IN + column * step + _SCALE_IN
        panels.append(page.axes(left, _HEAD_IN + line * tall + _NAME_IN, panel_in, _HIGH_IN))
        _draw_curve(panels[-1], curve, name)
    box = page.axes(_EDGE_IN, _HEAD_IN + lines * tall, 1.0, 0.05)
    box.set_axis_off()
    _legend(box, data)
    return page.figure


def _caption(data: CurvesData) -> str:
    said = ["A width is the smallest number of units from which on every larger one that was "
            "tried reaches the dashed line."]
    if data.higher:
        said.append("Where a layer keeps more than its own curve asks for, the layers' losses "
                    "together were larger than one alone may lose.")
    if data.left_out:
        said.append(f"{data.left_out:,} further layers are in widths.json.")
    return " ".join(said)


def _draw_curve(ax: Axes, curve: WidthCurve, name: str) -> None:
    canvas.strip_axes(ax)
    low, high = min(*curve.widths, curve.width, curve.alone), max(*curve.widths, curve.units)
    if high / low >= _LOGARITHMIC:
        ax.set_xscale("log")
        pad = (high / low) ** 0.06
        ax.set_xlim(low / pad, high * pad)
    else:
        pad = 0.06 * (high - low) or 0.5
        ax.set_xlim(low - pad, high + pad)
    ax.minorticks_off()
    ax.axhline(curve.threshold, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    ax.axvline(curve.width, color=_CHOSEN, linewidth=1.8, zorder=2)
    ax.plot(curve.widths, curve.scores, color=MEASURED, linewidth=1.4, marker="o", markersize=3.2,
            zorder=3)
    at = dict(zip(curve.widths, curve.scores, strict=True)).get(curve.alone)
    if at is not None:
        ax.scatter([curve.alone], [at], s=44, facecolors="white", edgecolors=_CHOSEN,
                   linewidths=1.8, zorder=4)
    drawn = (*curve.scores, curve.threshold)
    pad = 0.12 * (max(drawn) - min(drawn)) or 0.01
    ax.set_ylim(min(drawn) - pad, max(drawn) + pad)
    ax.locator_params(axis="y", nbins=4)
    ax.set_xticks([low, high] if high > low else [low],
                  [f"{low:,}", f"{high:,}"] if high > low else [f"{low:,}"])
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}".replace("-", "−"))
    _note(ax, name, 16, INK, "bold")
    _note(ax, f"{curve.width:,} of {curve.units:,} units"
          + (f" (alone {curve.alone:,})" if curve.alone != curve.width else ""), 4, MUTED, "normal")


def _note(ax: Axes, words: str, above: float, colour: str, weight: str) -> None:
    note = ax.annotate(words, xy=(0, 1), xycoords="axes fraction", xytext=(0, above),
                       textcoords="offset points", fontsize=canvas.SMALL, color=colour,
                       weight=weight, annotation_clip=False)
    note.set_parse_math(False)


def _legend(box: Axes, data: CurvesData) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=MEASURED, marker="o", markersize=4, label="measured"),
        Line2D([], [], color=INK, linewidth=0.9, linestyle=(0, (4, 3)), label="to be reached"),
        Line2D([], [], color=_CHOSEN, linewidth=1.8, label="the width"),
    ]
    if data.higher:
        handles.append(Line2D([], [], linestyle="none", marker="o", markersize=6, color=_CHOSEN,
                              markerfacecolor="white", label="read from this curve alone"))
    for handle in handles:
        handle.set_markeredgewidth(1.4)
    canvas.legend_below(box, handles, points=2)
