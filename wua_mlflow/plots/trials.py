"""What a search over widths tried: a row a network, its difference from the original.

May import: numpy, ``comparison``, ``rows``, ``canvas``; matplotlib inside functions.
Test: ``tests/plots/test_trials.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wua_mlflow.plots import canvas, rows
from wua_mlflow.plots.comparison import points
from wua_mlflow.plots.palette import INK, MUTED, RULE, VARIANT_COLOURS, WITHIN_MARGIN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["SearchTrial", "TrialsData", "plot_trials", "trials_data"]

_DRAWING_IN, _LEGEND_IN = 4.0, 0.45
_CHOSEN = VARIANT_COLOURS["slim"]
_WORDS = {"non_inferior": "as good", "inferior": "worse", "inconclusive": "open"}


@dataclass(frozen=True)
class SearchTrial:
    """Widths that were trained: what they cost, and the difference from the original.

    ``cost`` is in FLOPs of a sample's forward; ``delta``, ``low`` and ``high`` are of the mean
    score on validation data, as fractions; ``score`` is that mean.
    """

    widths: tuple[int, ...]
    cost: float
    score: float
    delta: float
    low: float
    high: float
    outcome: str


@dataclass(frozen=True)
class TrialsData:
    """The rows, dearest first; ``chosen`` says which one the search ended with."""

    trials: tuple[SearchTrial, ...]
    chosen: int | None
    margin: float
    score_name: str


def trials_data(
    trials: Sequence[SearchTrial],
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

    >>> tried = [SearchTrial((64,), 8e3, .97, 0, 0, 0, "original"),
    ...          SearchTrial((8,), 1e3, .95, -.02, -.03, -.01, "inconclusive"),
    ...          SearchTrial((20,), 2.5e3, .97, 0, -.01, .01, "non_inferior")]
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
    words = rows.Words(
        title=_title(data),
        subtitle="dearest first; each network against the original, on validation data",
        heading=f"difference of {data.score_name}{unit}",
        caption=f"Shaded: better, or within the margin of {_margin(data)}. The search takes the "
                "cheapest network that is as good on validation data, above which none that was "
                "tried is worse; whether it really is as good is for the verdict, on test data.",
        legend_in=_LEGEND_IN,
    )
    names = ["-".join(map(str, one.widths)) for one in data.trials]
    table = rows.table(names, _columns(data), words, _DRAWING_IN, ax)
    low, high = _ends(data)
    for panel in table.panels:
        _draw_rows(panel.axes, data, panel.rows, (low, high))
    _legend(table, data)
    return table.page.figure


def _margin(data: TrialsData) -> str:
    said = points(data.margin, data.score_name)
    if data.score_name != "accuracy":
        return said
    return f"{said} point" if said == "1" else f"{said} points"


def _title(data: TrialsData) -> str:
    tried = f"{len(data.trials)} widths tried" if len(data.trials) > 1 else "1 width tried"
    if data.chosen is None:
        return f"{tried}, none of them chosen"
    return f"{tried}, {'-'.join(map(str, data.trials[data.chosen].widths))} chosen"


def _columns(data: TrialsData) -> list[rows.Column]:
    chosen = [i == data.chosen for i in range(len(data.trials))]
    accuracy = data.score_name == "accuracy"
    scores = [f"{100 * one.score:.1f}%" if accuracy else f"{one.score:.3f}".replace("-", "−")
              for one in data.trials]
    return [
        rows.Column("FLOPs", [canvas.number(one.cost) for one in data.trials], chosen),
        rows.Column(data.score_name, scores, chosen),
        rows.Column("found", [_WORDS[one.outcome] for one in data.trials], chosen),
    ]


def _ends(data: TrialsData) -> tuple[float, float]:
    low = min(-data.margin, *(one.low for one in data.trials))
    high = max(data.margin, *(one.high for one in data.trials))
    pad = 0.08 * (high - low) or 0.01
    return low - pad, high + pad


def _draw_rows(ax: Axes, data: TrialsData, part: slice, ends: tuple[float, float]) -> None:
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
    colours = [_CHOSEN if i == data.chosen else MUTED for i in at]
    ax.hlines(at, [one.low for one in shown], [one.high for one in shown], colors=colours,
              linewidth=2.2, zorder=2)
    ax.scatter([one.delta for one in shown], at, s=34, c=colours, edgecolors="white",
               linewidths=0.8, zorder=3)


def _tick(value: float, score: str) -> str:
    words = points(value, score) if abs(value) > 1e-12 else "0"
    return f"+{words}" if value > 1e-12 else words


def _legend(table: rows.Table, data: TrialsData) -> None:
    from matplotlib.lines import Line2D

    entries = [(_CHOSEN, "chosen", data.chosen is not None),
               (MUTED, "tried", data.chosen is None or len(data.trials) > 1),
               (INK, "minus the margin", True)]
    handles = [Line2D([], [], color=colour, marker="" if colour == INK else "o", markersize=5,
                      linewidth=2 if colour != INK else 1.4, label=words)
               for colour, words, there in entries if there]
    box = table.page.axes(table.legend_left, table.legend_top, 1.0, 0.1)
    box.set_axis_off()
    canvas.legend_below(box, handles, points=4)
