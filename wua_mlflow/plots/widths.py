"""The widths that were chosen: units before and after, the curves read, the networks tried.

Tests: ``tests/plots/test_widths.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wua_mlflow.plots import layer_rows, style
from wua_mlflow.plots.layer_rows import row_names
from wua_mlflow.plots.style import DASHED, EDGE_IN, INK, MEASURED, MUTED, RULE, VARIANT_COLOURS
from wua_mlflow.verdict.text import in_points, margin_text
from wua_mlflow.widths.results import widths_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wua_mlflow.widths.results import LayerChange, LayerWidth, Trial

__all__ = [
    "ChangesData", "CurvesData", "MOST_PANELS", "TrialsData", "changes_data", "curves_data",
    "plot_changes", "plot_curves", "plot_trials", "trials_data",
]


_ORIGINAL, _SLIM = VARIANT_COLOURS["oversized"], VARIANT_COLOURS["slim"]
_FAR_MARGINS = 8
"""A trial that is worse by so many margins is not drawn where it lies."""
_NARROWEST = 8.0
"""The axis of units spans at least this ratio."""


@dataclass(frozen=True)
class ChangesData:
    """A row a layer, in the order of the forward; arrays have shape (layers,)."""

    names: tuple[str, ...]
    before: np.ndarray
    after: np.ndarray

    @property
    def changed(self) -> np.ndarray:
        """Where the number of units differs."""
        return np.asarray(self.before != self.after)


def changes_data(changes: Sequence[LayerChange]) -> ChangesData:
    """Rows of the figure.

    Raises:
        ValueError: no layers, or one without units.

    >>> from wua_mlflow.widths.results import LayerChange
    >>> changes_data([LayerChange("fc1", 64, 40), LayerChange("fc2", 32, 32)]).changed
    array([ True, False])
    """
    if not changes:
        raise ValueError("changes: expected at least one layer, but got none")
    empty = [change.layer for change in changes if min(change.before, change.after) < 1]
    if empty:
        raise ValueError(f"changes: expected at least one unit a layer, but {empty[0]} has none")
    return ChangesData(tuple(change.layer for change in changes),
                       np.array([change.before for change in changes]),
                       np.array([change.after for change in changes]))


def plot_changes(data: ChangesData) -> Figure:
    """Draw a row a layer."""
    columns = {"original": [f"{units:,}" for units in data.before],
               "slim": [f"{units:,}" for units in data.after],
               "kept": [_percent(share) for share in data.after / data.before]}
    rows = layer_rows.RowFigure(
        layers=data.names,
        columns=[layer_rows.Column(heading, texts, data.changed.tolist())
                 for heading, texts in columns.items()],
        title=_changes_title(data),
        subtitle="units of each layer, the original and the slim network",
        heading="units (logarithmic)",
        caption="Layers whose outputs are added to each other have the same units, so they change "
                "together.",
    )
    return rows.draw(lambda axes: _draw_changes(axes, data)).figure


def _changes_title(data: ChangesData) -> str:
    changed, layers = int(data.changed.sum()), len(data.names)
    units = f"{int(data.before.sum()):,} → {int(data.after.sum()):,} units"
    if layers == 1:
        return f"{units} in 1 layer"
    return f"{units} in {layers:,} layers, of which {changed:,} changed"


def _percent(share: float) -> str:
    """A share that is not whole is not called 100%."""
    return ">99%" if 0.995 <= share < 1 else f"{share:.0%}"


def _draw_changes(ax: Axes, data: ChangesData) -> None:
    every = np.concatenate([data.before, data.after])
    low, high = float(every.min()), float(every.max())
    room = math.sqrt(max(1.0, _NARROWEST / (high / low)))
    style.strip_axes(ax, keep=(), grid="x")
    style.log_axis(ax, max(low / room, 0.8) / 1.25, high * room * 1.25)
    rows, before, after, changed = np.arange(len(data.names)), data.before, data.after, data.changed
    size = 46 if len(rows) <= layer_rows.MOST_ROWS // 3 else 16
    ax.hlines(rows[changed], after[changed], before[changed], color=RULE, linewidth=size / 16,
              zorder=2)
    for units, shown, colour, marker, label in (
            (before, changed, _ORIGINAL, "o", "original"), (after, changed, _SLIM, "s", "slim"),
            (before, ~changed, MUTED, "D", "as many in both")):
        ax.scatter(units[shown], rows[shown], s=size, color=colour, marker=marker, linewidths=0,
                   zorder=3, label=label if shown.any() else "")


MOST_PANELS = 60
"""Layers beyond have no panel; the caption says how many."""

_COLUMNS, _PANEL_IN, _WIDE_IN, _HIGH_IN, _GAP_IN, _SCALE_IN = 4, 2.1, 2.9, 1.15, 0.3, 0.55
_HEAD_IN, _NAME_IN, _FOOT_IN, _LEGEND_IN = 0.95, 0.42, 0.42, 0.32
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
        return any(layer.width != layer.alone for layer in self.curves)


def curves_data(curves: Sequence[LayerWidth], *, method: str) -> CurvesData:
    """The panels of the figure.

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


def plot_curves(data: CurvesData) -> Figure:
    """Draw a panel a layer."""
    count = len(data.curves)
    columns = min(_COLUMNS, count)
    panel_in = _WIDE_IN if count <= 2 else _PANEL_IN
    step, tall = _SCALE_IN + panel_in + _GAP_IN, _NAME_IN + _HIGH_IN + _FOOT_IN
    width = max(2 * EDGE_IN + columns * step - _GAP_IN, 7.2)
    legend_top = _HEAD_IN + -(-count // columns) * tall
    axis = ", ".join(dict.fromkeys(layer.curve.axis.partition(" (")[0] for layer in data.curves))
    page = style.sheet(width, legend_top + _LEGEND_IN, caption=_curves_caption(data),
                       title=f"The curve that each width was read from: {data.method}",
                       subtitle=f"up: {axis}; across: units kept of the layer")
    names = row_names([layer.layer for layer in data.curves], by_block=False).names
    for i, (layer, name) in enumerate(zip(data.curves, names, strict=True)):
        line, column = divmod(i, columns)
        axes = page.axes(EDGE_IN + column * step + _SCALE_IN, _HEAD_IN + line * tall + _NAME_IN,
                         panel_in, _HIGH_IN)
        _draw_curve(axes, layer, name)
    page.legend(EDGE_IN, legend_top)
    return page.figure


def _curves_caption(data: CurvesData) -> str:
    sentences = ["A width is the smallest number of units from which on every larger one that was "
                 "tried reaches the dashed line."]
    if data.higher:
        sentences.append("Where a layer keeps more than its own curve asks for, the layers' losses "
                         "together were larger than one alone may lose.")
    if data.left_out:
        sentences.append(f"{data.left_out:,} further layers are in widths.json.")
    return " ".join(sentences)


def _draw_curve(ax: Axes, layer: LayerWidth, name: str) -> None:
    curve = layer.curve
    style.strip_axes(ax)
    low = min(*curve.widths, layer.width, layer.alone)
    high = max(*curve.widths, layer.units)
    if high / low >= _LOGARITHMIC:
        ax.set_xscale("log")
        ax.minorticks_off()
    ax.plot(curve.widths, curve.scores, color=MEASURED, linewidth=1.4, marker="o", markersize=3.2,
            zorder=3, label="measured")
    ax.axhline(curve.threshold, color=INK, linewidth=0.9, linestyle=DASHED, zorder=1,
               label="to be reached")
    ax.axvline(layer.width, color=_SLIM, linewidth=1.8, zorder=2, label="the width")
    scores = dict(zip(curve.widths, curve.scores, strict=True))
    if layer.alone in scores:
        ax.scatter([layer.alone], [scores[layer.alone]], s=44, facecolors="white",
                   edgecolors=_SLIM, linewidths=1.8, zorder=4,
                   label="read from this curve alone" if layer.alone != layer.width else "")
    ax.update_datalim([(low, curve.threshold), (high, curve.threshold)])
    ax.margins(0.06, 0.14)
    ax.autoscale_view()
    ax.locator_params(axis="y", nbins=4)
    ax.ticklabel_format(axis="y", useOffset=False)
    ends = sorted({low, high})
    ax.set_xticks(ends, [f"{units:,}" for units in ends])
    alone = f" (alone {layer.alone:,})" if layer.alone != layer.width else ""
    style.note(ax, name, (0, 1), (0, 16), color=INK, weight="bold")
    style.note(ax, f"{layer.width:,} of {layer.units:,} units{alone}", (0, 1), (0, 4))


@dataclass(frozen=True)
class TrialsData:
    """The rows, the most FLOPs first; ``chosen`` says which one the search ended with."""

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
    """Rows of the figure, without the original, which is compared with itself.

    Args:
        trials: in any order.
        chosen: the widths that the search ended with.
        margin: the loss that is accepted, as a fraction.
        score: what the score is called.

    Raises:
        ValueError: nothing but the original was tried, or a figure is not finite.

    >>> from wua_mlflow.widths.results import Trial
    >>> tried = [Trial((64,), 8e3, "original", 0, 0, 0, .97),
    ...          Trial((8,), 1e3, "fails", -.02, -.03, -.01, .95),
    ...          Trial((20,), 2.5e3, "holds", 0, -.01, .01, .97)]
    >>> data = trials_data(tried, chosen=(20,), margin=0.02)
    >>> [trial.widths for trial in data.trials], data.chosen
    ([(20,), (8,)], 0)
    """
    tried = sorted((trial for trial in trials if trial.outcome != "original"),
                   key=lambda trial: -trial.cost)
    if not tried:
        raise ValueError("trials: expected at least one besides the original, but got none")
    if not all(map(math.isfinite, (figure for trial in tried for figure in (
            trial.cost, trial.score, trial.delta, trial.low, trial.high)))):
        raise ValueError("trials: expected finite figures")
    rows = [row for row, trial in enumerate(tried) if trial.widths == tuple(chosen)]
    return TrialsData(tuple(tried), rows[0] if rows else None, margin, score)


def plot_trials(data: TrialsData) -> Figure:
    """Draw a row a trial."""
    unit = " in points" if in_points(data.score_name) else ""
    margin = margin_text(data.margin, data.score_name, of=False)
    names = [widths_name(trial.widths) for trial in data.trials]
    tried = f"{len(names)} widths tried" if len(names) > 1 else "1 width tried"
    rows = layer_rows.RowFigure(
        layers=names,
        columns=_trials_columns(data),
        title=f"{tried}, none of them chosen" if data.chosen is None else
              f"{tried}, {names[data.chosen]} chosen",
        subtitle="dearest first; means of networks against the original's, on validation data",
        heading=f"difference of {data.score_name}{unit}",
        caption=f"Shaded: better, or within the margin of {margin}. A width holds where the mean "
                "of its networks lies high enough for the final verdict to be as good; the "
                "cheapest that holds is taken. Whether it really is as good is for the verdict: "
                "new seeds, test data.",
    )
    return rows.draw(lambda axes: _draw_trials(axes, data)).figure


def _trials_columns(data: TrialsData) -> list[layer_rows.Column]:
    chosen = [row == data.chosen for row in range(len(data.trials))]
    columns = {"FLOPs": [style.number(trial.cost) for trial in data.trials],
               data.score_name: [style.score_text(trial.score, data.score_name)
                                 for trial in data.trials],
               "seeds": [f"{trial.seeds:,}" for trial in data.trials],
               "found": [trial.outcome for trial in data.trials]}
    return [layer_rows.Column(heading, texts, chosen) for heading, texts in columns.items()]


def _draw_trials(ax: Axes, data: TrialsData) -> None:
    """Intervals; of what lies far off only that it does, since the others would be too small."""
    far = -_FAR_MARGINS * data.margin if data.margin else -math.inf
    near = [trial for trial in data.trials if trial.delta >= far]
    limits = [limit for trial in near for limit in (trial.low, trial.high)]
    edge = min([*limits, -data.margin])
    for row, trial in enumerate(data.trials):
        colour, marker, label = (_SLIM, "D", "chosen") if row == data.chosen else (
            MUTED, "o", "tried")
        if trial not in near:
            ax.plot(edge, row, color=colour, marker="<", markersize=6.5, linestyle="",
                    label="farther off")
            continue
        ax.plot([trial.low, trial.delta, trial.high], [row] * 3, color=colour, linewidth=2.2,
                solid_capstyle="butt", marker=marker, markevery=[1], markersize=6.5,
                markeredgecolor="white", markeredgewidth=0.8, label=label)
    style.difference_axis(ax, limits, data.margin, data.score_name)
    style.strip_axes(ax, keep=(), grid="x")
