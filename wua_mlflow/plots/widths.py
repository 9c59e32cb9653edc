"""Units of each layer, in the original and in the slim network.

May import: numpy, ``rows``, ``canvas``; matplotlib inside ``plot_changes``.
Test: ``tests/plots/test_changes.py``.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wua_mlflow.plots import layer_rows, style
from wua_mlflow.plots.layer_rows import row_names
from wua_mlflow.plots.style import INK, MEASURED, MUTED, RULE, VARIANT_COLOURS, WITHIN_MARGIN
from wua_mlflow.verdict.text import points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wua_mlflow.widths.results import LayerWidth, Trial

__all__ = [
    "ChangesData", "CurvesData", "LayerChange", "MOST_PANELS", "TrialsData",
    "changes_data", "curves_data", "plot_changes", "plot_curves", "plot_trials",
    "trials_data",
]


_CHANGES_DRAWING_IN, _BESIDE_IN, _CHANGES_LEGEND_IN = 4.4, 3.1, 0.4
_ORIGINAL, _SLIM = VARIANT_COLOURS["oversized"], VARIANT_COLOURS["slim"]
_NARROWEST = 8.0
"""The axis spans at least this ratio of units."""
_TICKS = tuple(factor * 10.0**power for power in range(8) for factor in (1, 3))
_MOST_TICKS = 5


@dataclass(frozen=True)
class LayerChange:
    """How many units a layer had and has."""

    layer: str
    before: int
    after: int

    @property
    def share(self) -> float:
        """Of the units that are left."""
        return self.after / self.before


@dataclass(frozen=True)
class ChangesData:
    """A row a layer, in the order of the forward; arrays have shape (layers,)."""

    names: tuple[str, ...]
    before: np.ndarray
    after: np.ndarray

    @property
    def changed(self) -> np.ndarray:
        """Where the number of units differs."""
        return self.before != self.after


def changes_data(changes: Sequence[LayerChange]) -> ChangesData:
    """Rows of the picture.

    Raises:
        ValueError: no layers, or one without units.

    >>> changes_data([LayerChange("fc1", 64, 40), LayerChange("fc2", 32, 32)]).changed
    array([ True, False])
    """
    if not changes:
        raise ValueError("changes: expected at least one layer, but got none")
    empty = [one.layer for one in changes if min(one.before, one.after) < 1]
    if empty:
        raise ValueError(f"changes: expected at least one unit a layer, but {empty[0]} has none")
    return ChangesData(tuple(one.layer for one in changes),
                       np.array([one.before for one in changes]),
                       np.array([one.after for one in changes]))


def plot_changes(data: ChangesData, ax: Axes | None = None) -> Figure:
    """Draw a row a layer on a new figure, or in the place of ``ax``."""
    words = layer_rows.Words(
        title=_changes_title(data),
        subtitle="units of each layer, the original and the slim network",
        heading="units (logarithmic)",
        caption="Layers whose outputs are added to each other have the same units, so they change "
                "together.",
        legend_in=_CHANGES_LEGEND_IN,
    )
    beside = len(data.names) > layer_rows.MOST_ROWS
    table = layer_rows.table(
        data.names, _changes_columns(data), words, _BESIDE_IN if beside else _CHANGES_DRAWING_IN, ax
    )
    ends = _changes_ends(data)
    for panel in table.panels:
        _draw_changes(panel.axes, data, panel.rows, ends)
    _changes_legend(table, data)
    return table.page.figure


def _changes_title(data: ChangesData) -> str:
    changed, layers = int(data.changed.sum()), len(data.names)
    before, after = int(data.before.sum()), int(data.after.sum())
    units = f"{before:,} → {after:,} units"
    if layers == 1:
        return f"{units} in 1 layer"
    return f"{units} in {layers:,} layers, of which {changed:,} changed"


def _changes_columns(data: ChangesData) -> list[layer_rows.Column]:
    changed = data.changed.tolist()
    before = [f"{units:,}" for units in data.before]
    after = [f"{units:,}" for units in data.after]
    kept = [_percent(new / old) for old, new in zip(data.before, data.after, strict=True)]
    return [
        layer_rows.Column("original", before, changed),
        layer_rows.Column("slim", after, changed),
        layer_rows.Column("kept", kept, changed),
    ]


def _percent(share: float) -> str:
    """A share that is not whole is not called 100%."""
    return ">99%" if 0.995 <= share < 1 else f"{share:.0%}"


def _changes_ends(data: ChangesData) -> tuple[float, float]:
    low = float(min(data.before.min(), data.after.min()))
    high = float(max(data.before.max(), data.after.max()))
    missing = max(1.0, _NARROWEST / (high / low)) ** 0.5
    low, high = max(low / missing, 0.8), high * missing
    return low / 1.25, high * 1.25


def _draw_changes(
    ax: Axes, data: ChangesData, part: slice, ends: tuple[float, float]
) -> None:
    at = np.arange(part.start, part.stop, dtype=float)
    before, after, changed = data.before[part], data.after[part], data.changed[part]
    ax.set_xscale("log")
    ax.set_xlim(*ends)
    ax.minorticks_off()
    ticks = [tick for tick in _TICKS if ends[0] <= tick <= ends[1]]
    ticks = ticks[:: -(-len(ticks) // _MOST_TICKS)]
    ax.set_xticks(ticks, [style.number(tick) for tick in ticks])
    ax.grid(axis="x", color=RULE, linewidth=0.5)
    ax.set_axisbelow(True)
    size = 46 if len(at) <= layer_rows.MOST_ROWS // 3 else 16
    ax.hlines(at[changed], after[changed], before[changed], color=RULE, linewidth=size / 16,
              zorder=2)
    ax.scatter(before[changed], at[changed], s=size, color=_ORIGINAL, zorder=3, linewidths=0)
    ax.scatter(after[changed], at[changed], s=size, color=_SLIM, zorder=4, linewidths=0)
    ax.scatter(before[~changed], at[~changed], s=size, color=MUTED, zorder=3, marker="D",
               linewidths=0)


def _changes_legend(table: layer_rows.Table, data: ChangesData) -> None:
    from matplotlib.lines import Line2D

    entries = [(_ORIGINAL, "o", "original", data.changed.any()),
               (_SLIM, "o", "slim", data.changed.any()),
               (MUTED, "D", "as many in both", (~data.changed).any())]
    handles = [Line2D([], [], linestyle="none", marker=marker, color=colour, label=words,
                      markersize=6) for colour, marker, words, there in entries if there]
    box = table.page.axes(table.legend_left, table.legend_top, 1.0, 0.1)
    box.set_axis_off()
    style.legend_below(box, handles, points=0)


MOST_PANELS = 60
"""Layers beyond have no panel; the caption says how many."""

_COLUMNS, _PANEL_IN, _WIDE_IN, _HIGH_IN, _GAP_IN, _SCALE_IN = 4, 2.1, 2.9, 1.15, 0.3, 0.55
_EDGE_IN, _HEAD_IN, _NAME_IN, _FOOT_IN, _LINE_IN = 0.3, 0.95, 0.42, 0.42, 0.155
_CURVES_LEGEND_IN = 0.32
_CHARACTERS_PER_IN = 17
_CHOSEN_WIDTH = VARIANT_COLOURS["slim"]
_LOGARITHMIC = 12
"""An axis of widths that spans this ratio is logarithmic."""


@dataclass(frozen=True)
class CurvesData:
    """The panels that are drawn, how many more layers there are, and how the widths were found."""

    curves: tuple[LayerWidth, ...]
    left_out: int
    method: str

    @property
    def higher(self) -> bool:
        """Whether a layer keeps more than its own curve asks for."""
        return any(curve.width != curve.alone for curve in self.curves)


def curves_data(curves: Sequence[LayerWidth], *, method: str) -> CurvesData:
    """The panels of the picture.

    Args:
        curves: one a layer; one without a point is left out.
        method: what the title calls the way the widths were found.

    Raises:
        ValueError: no curve has a point, or a number in one is not finite.

    >>> from wua_mlflow.widths.results import Curve, LayerWidth
    >>> curve = Curve((2, 3, 8), (.5, .9, .9), .9, .88, "accuracy")
    >>> curves_data([LayerWidth("fc1", 8, 3, curve, 3)], method="ablation").left_out
    0
    """
    known = [layer for layer in curves if layer.curve.widths]
    if not known:
        raise ValueError("curves: expected at least one with a point, but got none")
    for layer in known:
        if not all(map(math.isfinite, (*layer.curve.scores, layer.curve.threshold))):
            raise ValueError(f"curves: expected finite scores, but those of {layer.layer} are not")
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
    caption_top = _HEAD_IN + lines * tall + _CURVES_LEGEND_IN
    height = caption_top + _LINE_IN * (1 + words.count("\n")) + 0.2
    page = style.sheet(width, height, ax)
    page.write(_EDGE_IN, 0.2, f"The curve that each width was read from: {data.method}",
               size=style.TITLE, bold=True)
    axis = ", ".join(dict.fromkeys(layer.curve.axis.partition(" (")[0] for layer in data.curves))
    page.write(_EDGE_IN, 0.48, f"up: {axis}; across: units kept of the layer",
               size=style.SUBTITLE)
    page.write(_EDGE_IN, caption_top, words, size=style.SMALL, colour=MUTED)
    names = row_names([curve.layer for curve in data.curves], by_block=False).names
    panels = []
    for i, (curve, name) in enumerate(zip(data.curves, names, strict=True)):
        line, column = divmod(i, columns)
        left = _EDGE_IN + column * step + _SCALE_IN
        panels.append(page.axes(left, _HEAD_IN + line * tall + _NAME_IN, panel_in, _HIGH_IN))
        _draw_curve(panels[-1], curve, name)
    box = page.axes(_EDGE_IN, _HEAD_IN + lines * tall, 1.0, 0.05)
    box.set_axis_off()
    _curves_legend(box, data)
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


def _draw_curve(ax: Axes, layer: LayerWidth, name: str) -> None:
    curve = layer.curve
    style.strip_axes(ax)
    low, high = min(*curve.widths, layer.width, layer.alone), max(*curve.widths, layer.units)
    if high / low >= _LOGARITHMIC:
        ax.set_xscale("log")
        pad = (high / low) ** 0.06
        ax.set_xlim(low / pad, high * pad)
    else:
        pad = 0.06 * (high - low) or 0.5
        ax.set_xlim(low - pad, high + pad)
    ax.minorticks_off()
    ax.axhline(curve.threshold, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    ax.axvline(layer.width, color=_CHOSEN_WIDTH, linewidth=1.8, zorder=2)
    ax.plot(curve.widths, curve.scores, color=MEASURED, linewidth=1.4, marker="o", markersize=3.2,
            zorder=3)
    at = dict(zip(curve.widths, curve.scores, strict=True)).get(layer.alone)
    if at is not None:
        ax.scatter([layer.alone], [at], s=44, facecolors="white", edgecolors=_CHOSEN_WIDTH,
                   linewidths=1.8, zorder=4)
    drawn = (*curve.scores, curve.threshold)
    pad = 0.12 * (max(drawn) - min(drawn)) or 0.01
    ax.set_ylim(min(drawn) - pad, max(drawn) + pad)
    ax.locator_params(axis="y", nbins=4)
    ax.set_xticks([low, high] if high > low else [low],
                  [f"{low:,}", f"{high:,}"] if high > low else [f"{low:,}"])
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}".replace("-", "−"))
    _note(ax, name, 16, INK, "bold")
    _note(ax, f"{layer.width:,} of {layer.units:,} units"
          + (f" (alone {layer.alone:,})" if layer.alone != layer.width else ""), 4, MUTED, "normal")


def _note(ax: Axes, words: str, above: float, colour: str, weight: str) -> None:
    note = ax.annotate(words, xy=(0, 1), xycoords="axes fraction", xytext=(0, above),
                       textcoords="offset points", fontsize=style.SMALL, color=colour,
                       weight=weight, annotation_clip=False)
    note.set_parse_math(False)


def _curves_legend(box: Axes, data: CurvesData) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=MEASURED, marker="o", markersize=4, label="measured"),
        Line2D([], [], color=INK, linewidth=0.9, linestyle=(0, (4, 3)), label="to be reached"),
        Line2D([], [], color=_CHOSEN_WIDTH, linewidth=1.8, label="the width"),
    ]
    if data.higher:
        handles.append(
            Line2D(
                [],
                [],
                linestyle="none",
                marker="o",
                markersize=6,
                color=_CHOSEN_WIDTH,
                markerfacecolor="white",
                label="read from this curve alone",
            )
        )
    for handle in handles:
        handle.set_markeredgewidth(1.4)
    style.legend_below(box, handles, points=2)


_TRIALS_DRAWING_IN, _TRIALS_LEGEND_IN = 4.0, 0.45
_CHOSEN_TRIAL = VARIANT_COLOURS["slim"]
_WORDS = {"non_inferior": "as good", "inferior": "worse", "inconclusive": "open"}


@dataclass(frozen=True)
class TrialsData:
    """The rows, dearest first; ``chosen`` says which one the search ended with."""

    trials: tuple[Trial, ...]
    chosen: int | None
    margin: float
    score_name: str


def trials_data(
    trials: Sequence[Trial],
    *,
    chosen: Sequence[int],
    margin: float,
    score: str = "accuracy",
) -> TrialsData:
    """Rows of the picture, without the original, which is compared with itself.

    Args:
        trials: in any order.
        chosen: the widths that the search ended with.
        margin: the loss that is accepted, as a fraction.
        score: what the score is called.

    Raises:
        ValueError: nothing but the original was tried, or a figure is not finite.

    >>> from wua_mlflow.widths.results import Trial
    >>> tried = [Trial((64,), 8e3, "original", 0, 0, 0, .97),
    ...          Trial((8,), 1e3, "inconclusive", -.02, -.03, -.01, .95),
    ...          Trial((20,), 2.5e3, "non_inferior", 0, -.01, .01, .97)]
    >>> data = trials_data(tried, chosen=(20,), margin=0.02)
    >>> [trial.widths for trial in data.trials], data.chosen
    ([(20,), (8,)], 0)
    """
    tried = sorted((one for one in trials if one.outcome in _WORDS), key=lambda one: -one.cost)
    if not tried:
        raise ValueError("trials: expected at least one besides the original, but got none")
    numbers = [n for one in tried for n in (one.cost, one.score, one.delta, one.low, one.high)]
    if not all(map(math.isfinite, numbers)):
        raise ValueError("trials: expected finite figures")
    found = [i for i, one in enumerate(tried) if one.widths == tuple(chosen)]
    return TrialsData(tuple(tried), found[0] if found else None, margin, score)


def plot_trials(data: TrialsData, ax: Axes | None = None) -> Figure:
    """Draw a row a trial on a new figure, or in the place of ``ax``."""
    unit = " in points" if data.score_name == "accuracy" else ""
    words = layer_rows.Words(
        title=_trials_title(data),
        subtitle="dearest first; each network against the original, on validation data",
        heading=f"difference of {data.score_name}{unit}",
        caption=f"Shaded: better, or within the margin of {_margin(data)}. The search takes the "
                "cheapest network that is as good on validation data, above which none that was "
                "tried is worse; whether it really is as good is for the verdict, on test data.",
        legend_in=_TRIALS_LEGEND_IN,
    )
    names = ["-".join(map(str, one.widths)) for one in data.trials]
    table = layer_rows.table(names, _trials_columns(data), words, _TRIALS_DRAWING_IN, ax)
    low, high = _trials_ends(data)
    for panel in table.panels:
        _draw_trials(panel.axes, data, panel.rows, (low, high))
    _trials_legend(table, data)
    return table.page.figure


def _margin(data: TrialsData) -> str:
    said = points(data.margin, data.score_name)
    if data.score_name != "accuracy":
        return said
    return f"{said} point" if said == "1" else f"{said} points"


def _trials_title(data: TrialsData) -> str:
    tried = f"{len(data.trials)} widths tried" if len(data.trials) > 1 else "1 width tried"
    if data.chosen is None:
        return f"{tried}, none of them chosen"
    return f"{tried}, {'-'.join(map(str, data.trials[data.chosen].widths))} chosen"


def _trials_columns(data: TrialsData) -> list[layer_rows.Column]:
    chosen = [i == data.chosen for i in range(len(data.trials))]
    accuracy = data.score_name == "accuracy"
    scores = [f"{100 * one.score:.1f}%" if accuracy else f"{one.score:.3f}".replace("-", "−")
              for one in data.trials]
    return [
        layer_rows.Column("FLOPs", [style.number(one.cost) for one in data.trials], chosen),
        layer_rows.Column(data.score_name, scores, chosen),
        layer_rows.Column("found", [_WORDS[one.outcome] for one in data.trials], chosen),
    ]


def _trials_ends(data: TrialsData) -> tuple[float, float]:
    low = min(-data.margin, *(one.low for one in data.trials))
    high = max(data.margin, *(one.high for one in data.trials))
    pad = 0.08 * (high - low) or 0.01
    return low - pad, high + pad


def _draw_trials(ax: Axes, data: TrialsData, part: slice, ends: tuple[float, float]) -> None:
    ax.set_xlim(*ends)
    ax.axvspan(-data.margin, ends[1], color=WITHIN_MARGIN, linewidth=0, zorder=0)
    ax.axvline(-data.margin, color=INK, linewidth=1.4, zorder=1)
    ax.axvline(0, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
    ax.grid(axis="x", color=RULE, linewidth=0.5)
    ax.set_axisbelow(True)
    ax.locator_params(axis="x", nbins=7)
    ax.xaxis.set_major_formatter(lambda value, _: _tick(value, data.score_name))
    at = np.arange(part.start, part.stop)
    shown = data.trials[part]
    colours = [_CHOSEN_TRIAL if i == data.chosen else MUTED for i in at]
    ax.hlines(at, [one.low for one in shown], [one.high for one in shown], colors=colours,
              linewidth=2.2, zorder=2)
    ax.scatter([one.delta for one in shown], at, s=34, c=colours, edgecolors="white",
               linewidths=0.8, zorder=3)


def _tick(value: float, score: str) -> str:
    words = points(value, score) if abs(value) > 1e-12 else "0"
    return f"+{words}" if value > 1e-12 else words


def _trials_legend(table: layer_rows.Table, data: TrialsData) -> None:
    from matplotlib.lines import Line2D

    entries = [(_CHOSEN_TRIAL, "chosen", data.chosen is not None),
               (MUTED, "tried", data.chosen is None or len(data.trials) > 1),
               (INK, "minus the margin", True)]
    handles = [Line2D([], [], color=colour, marker="" if colour == INK else "o", markersize=5,
                      linewidth=2 if colour != INK else 1.4, label=words)
               for colour, words, there in entries if there]
    box = table.page.axes(table.legend_left, table.legend_top, 1.0, 0.1)
    box.set_axis_off()
    style.legend_below(box, handles, points=4)
