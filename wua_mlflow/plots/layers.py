"""Effective share of each layer's weights beside what a network that learned nothing shows.

May import: numpy, ``wua_mlflow.usage`` for types; matplotlib inside ``plot_layers``.
Test: ``tests/plots/test_layers.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wua_mlflow.plots import canvas
from wua_mlflow.plots.palette import INK, INSIDE, NULL_RANGE, OUTSIDE, RULE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wua_mlflow.usage import ModelUsage

__all__ = ["LayersData", "layers_data", "plot_layers"]

_ROW_IN, _TALLEST_IN, _LABEL_EVERY_IN = 0.34, 9.0, 0.155
_SHARES_IN, _VALUES_IN, _FLOPS_IN = 4.8, 0.75, 1.5
_HEADER_IN, _LEGEND_POINTS, _CAPTION_POINTS, _CAPTION_LINE_IN = 0.85, 36, 58, 0.155
_THIN_ROWS_FROM = 60


@dataclass(frozen=True)
class LayersData:
    """One row a layer, in the order of the forward; arrays have shape (layers,).

    ``share`` is the effective share, 0..1; ``null_low`` and ``null_high`` the range of the null,
    NaN where none was drawn; ``forward_flops`` is None where no counts were given, NaN for a
    layer that they do not name. ``null_words`` says which null.
    """

    names: tuple[str, ...]
    share: np.ndarray
    null_low: np.ndarray
    null_high: np.ndarray
    forward_flops: np.ndarray | None
    effective_weights: float
    weights: int
    skipped: int
    criterion: str
    null_words: str

    @property
    def outside(self) -> np.ndarray:
        """Where the share lies outside the null's range; False where there is no null."""
        return (self.share < self.null_low) | (self.share > self.null_high)


def layers_data(usage: ModelUsage, flops_by_layer: Mapping[str, int] | None = None) -> LayersData:
    """Rows of the picture.

    Args:
        usage: what ``analyze`` measured.
        flops_by_layer: forward FLOPs of one sample, by the layer's name; other names are ignored.

    Raises:
        ValueError: no layer was analysed.
    """
    layers = list(usage.layers.values())
    if not layers:
        raise ValueError("usage: expected at least one analysed layer, but got none")
    nulls = [layer.null for layer in layers]
    flops = None
    if flops_by_layer is not None:
        flops = np.array([flops_by_layer.get(layer.name, math.nan) for layer in layers], float)
    return LayersData(
        names=tuple(layer.name for layer in layers),
        share=np.array([layer.effective_share for layer in layers]),
        null_low=np.array([null.low if null else math.nan for null in nulls]),
        null_high=np.array([null.high if null else math.nan for null in nulls]),
        forward_flops=flops,
        effective_weights=usage.effective_weights,
        weights=usage.weights,
        skipped=len(usage.skipped),
        criterion=usage.criterion,
        null_words=", ".join(sorted({f"{n.kind}, {n.draws} draws" for n in nulls if n})),
    )


def plot_layers(data: LayersData, ax: Axes | None = None) -> Figure:
    """Draw the shares on ``ax`` (shares only), or on a new figure, FLOPs beside them if known.

    The figure's height grows with the layers up to about 11 inches; then rows get thinner and
    only every k-th layer is named.
    """
    names = [canvas.elide(name) for name in data.names]
    height = _height_in(data, ax)
    every = math.ceil(_LABEL_EVERY_IN * len(names) / height)
    text = _caption(data, every)
    left_points, flops_ax = 0.0, None
    if ax is None:
        left = canvas.text_width(names[::every], canvas.LABEL) + 0.3
        ax, flops_ax = _new_axes(data, left, height, 1 + text.count("\n"))
        left_points = -72 * (left - 0.2)
    _draw_shares(ax, data, names, every)
    _legend(ax, data)
    canvas.title(ax, *_titles(data), left_points=left_points)
    canvas.caption(ax, text, below_points=_CAPTION_POINTS, left_points=left_points)
    if flops_ax is not None and data.forward_flops is not None:
        _draw_flops(flops_ax, data.forward_flops, every)
    return canvas.root_figure(ax)


def _height_in(data: LayersData, ax: Axes | None) -> float:
    if ax is None:
        return min(_TALLEST_IN, max(0.6, _ROW_IN * len(data.names)))
    return canvas.root_figure(ax).get_figheight() * ax.get_position().height


def _new_axes(
    data: LayersData, left: float, height: float, caption_lines: int
) -> tuple[Axes, Axes | None]:
    """Axes for the shares, ``left`` inches from the edge, and for the FLOPs where known."""
    flops = data.forward_flops is not None
    width = left + _SHARES_IN + _VALUES_IN + (_FLOPS_IN + 0.3 if flops else 0.0)
    below = _CAPTION_POINTS / 72 + _CAPTION_LINE_IN * caption_lines + 0.2
    page = canvas.sheet(width, _HEADER_IN + height + below)
    shares = page.axes(left, _HEADER_IN, _SHARES_IN, height)
    if not flops:
        return shares, None
    return shares, page.axes(left + _SHARES_IN + _VALUES_IN, _HEADER_IN, _FLOPS_IN, height)


def _titles(data: LayersData) -> tuple[str, str]:
    effective = f"{data.effective_weights:,.{1 if data.effective_weights < 1000 else 0}f}"
    rows = len(data.names)
    layers = "1 layer" if rows == 1 else f"{rows:,} layers"
    headline = f"Effective weights {effective} of {data.weights:,}, in {layers}"
    known = int(np.isfinite(data.null_low).sum())
    if not known:
        return headline, "not compared with networks that learned nothing"
    where = f"{int(data.outside.sum()):,} of {known:,} layers lie outside"
    if rows == 1:
        where = "outside" if data.outside[0] else "within"
    return headline, f"{where} the range of networks that learned nothing"


def _caption(data: LayersData, every: int) -> str:
    lines = [
        f"Effective weights describe how concentrated the importance (criterion: {data.criterion})",
        "is within a layer, and depend on how the network is parametrised; on their account",
        "alone no weight is superfluous.",
    ]
    if data.null_words:
        lines.append(f"Range: 2.5–97.5% of networks that learned nothing ({data.null_words}).")
    remarks = [f"One layer in {every} is named."] if every > 1 else []
    without = int(np.isnan(data.null_low).sum())
    if data.null_words and without:
        remarks.append(f"Layers without a range: {without}.")
    if data.skipped:
        remarks.append(f"Modules not analysed: {data.skipped}.")
    return "\n".join([*lines, " ".join(remarks)] if remarks else lines)


def _draw_shares(ax: Axes, data: LayersData, names: list[str], every: int) -> None:
    rows = np.arange(len(names), dtype=float)
    known = np.isfinite(data.null_low)
    canvas.strip_axes(ax, keep=("left",))
    thickness, range_thickness = (0.62, 0.24) if len(names) < _THIN_ROWS_FROM else (0.86, 0.42)
    colours = np.where(data.outside, OUTSIDE, INSIDE).tolist()
    canvas.bars(ax, rows, (np.zeros_like(rows), data.share), thickness, colours)
    spans = (data.null_low[known], data.null_high[known])
    canvas.bars(ax, rows[known], spans, range_thickness, NULL_RANGE)
    ax.set_xlim(0, 1)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    ax.grid(axis="x", color=RULE, linewidth=0.5)
    ax.set_axisbelow(True)
    ax.set_yticks(rows[::every], names[::every], fontsize=canvas.LABEL, parse_math=False)
    ax.tick_params(axis="y", labelcolor=INK)
    ax.set_xlabel("effective weights ÷ weights of the layer", fontsize=canvas.LABEL, color=INK)
    if every == 1:
        for row, share in enumerate(data.share):
            ax.text(1.025, row, f"{share:.1%}", va="center", fontsize=canvas.SMALL, color=INK)


def _legend(ax: Axes, data: LayersData) -> None:
    from matplotlib.patches import Patch

    outside, known = data.outside, np.isfinite(data.null_low)
    entries = [
        (INSIDE, "measured", bool((~outside).any())),
        (OUTSIDE, "measured, outside the range", bool(outside.any())),
        (NULL_RANGE, "range of networks that learned nothing", bool(known.any())),
    ]
    handles = [Patch(color=colour, label=words) for colour, words, there in entries if there]
    canvas.legend_below(ax, handles, points=_LEGEND_POINTS)


def _draw_flops(ax: Axes, flops: np.ndarray, every: int) -> None:
    rows = np.arange(len(flops), dtype=float)
    known = np.isfinite(flops)
    canvas.strip_axes(ax, keep=("left",))
    largest = float(np.max(flops[known], initial=1.0))
    canvas.bars(ax, rows[known], (np.zeros(known.sum()), flops[known]), 0.62, RULE)
    ax.set_xlim(0, largest)
    ax.set_ylim(len(flops) - 0.4, -0.6)
    ax.set_yticks([])
    ax.set_xticks([])
    pad = 4 if every > 1 else 17
    ax.set_xlabel("forward FLOPs", fontsize=canvas.LABEL, color=INK, labelpad=pad)
    if every > 1:
        ax.set_xticks([0, largest], ["0", canvas.number(largest)])
        return
    for row, value in enumerate(flops):
        ax.text(
            largest * 0.03,
            row,
            canvas.number(value) if math.isfinite(value) else "not counted",
            va="center",
            fontsize=canvas.SMALL,
            color=INK,
        )
