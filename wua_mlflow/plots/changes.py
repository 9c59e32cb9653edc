"""Units of each layer, in the original and in the slim network.

May import: numpy, ``rows``, ``canvas``; matplotlib inside ``plot_changes``.
Test: ``tests/plots/test_changes.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wua_mlflow.plots import canvas, rows
from wua_mlflow.plots.palette import MUTED, RULE, VARIANT_COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ChangesData", "LayerChange", "changes_data", "plot_changes"]

_DRAWING_IN, _BESIDE_IN, _LEGEND_IN = 4.4, 3.1, 0.4
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
    words = rows.Words(
        title=_title(data),
        subtitle="units of each layer, the original and the slim network",
        heading="units (logarithmic)",
        caption="Layers whose outputs are added to each other have the same units, so they change "
                "together.",
        legend_in=_LEGEND_IN,
    )
    beside = len(data.names) > rows.MOST_ROWS
    table = rows.table(data.names, _columns(data), words, _BESIDE_IN if beside else _DRAWING_IN, ax)
    ends = _ends(data)
    for panel in table.panels:
        _draw_rows(panel.axes, data, panel.rows, ends)
    _legend(table, data)
    return table.page.figure


def _title(data: ChangesData) -> str:
    changed, layers = int(data.changed.sum()), len(data.names)
    before, after = int(data.before.sum()), int(data.after.sum())
    units = f"{before:,} → {after:,} units"
    if layers == 1:
        return f"{units} in 1 layer"
    return f"{units} in {layers:,} layers, of which {changed:,} changed"


def _columns(data: ChangesData) -> list[rows.Column]:
    changed = data.changed.tolist()
    before = [f"{units:,}" for units in data.before]
    after = [f"{units:,}" for units in data.after]
    kept = [_percent(new / old) for old, new in zip(data.before, data.after, strict=True)]
    return [rows.Column("original", before, changed), rows.Column("slim", after, changed),
            rows.Column("kept", kept, changed)]


def _percent(share: float) -> str:
    """A share that is not whole is not called 100%."""
    return ">99%" if 0.995 <= share < 1 else f"{share:.0%}"


def _ends(data: ChangesData) -> tuple[float, float]:
    low = float(min(data.before.min(), data.after.min()))
    high = float(max(data.before.max(), data.after.max()))
    missing = max(1.0, _NARROWEST / (high / low)) ** 0.5
    low, high = max(low / missing, 0.8), high * missing
    return low / 1.25, high * 1.25


def _draw_rows(
    ax: Axes, data: ChangesData, part: slice, ends: tuple[float, float]
) -> None:
    at = np.arange(part.start, part.stop, dtype=float)
    before, after, changed = data.before[part], data.after[part], data.changed[part]
    ax.set_xscale("log")
    ax.set_xlim(*ends)
    ax.minorticks_off()
    ticks = [tick for tick in _TICKS if ends[0] <= tick <= ends[1]]
    ticks = ticks[:: -(-len(ticks) // _MOST_TICKS)]
    ax.set_xticks(ticks, [canvas.number(tick) for tick in ticks])
    ax.grid(axis="x", color=RULE, linewidth=0.5)
    ax.set_axisbelow(True)
    size = 46 if len(at) <= rows.MOST_ROWS // 3 else 16
    ax.hlines(at[changed], after[changed], before[changed], color=RULE, linewidth=size / 16,
              zorder=2)
    ax.scatter(before[changed], at[changed], s=size, color=_ORIGINAL, zorder=3, linewidths=0)
    ax.scatter(after[changed], at[changed], s=size, color=_SLIM, zorder=4, linewidths=0)
    ax.scatter(before[~changed], at[~changed], s=size, color=MUTED, zorder=3, marker="D",
               linewidths=0)


def _legend(table: rows.Table, data: ChangesData) -> None:
    from matplotlib.lines import Line2D

    entries = [(_ORIGINAL, "o", "original", data.changed.any()),
               (_SLIM, "o", "slim", data.changed.any()),
               (MUTED, "D", "as many in both", (~data.changed).any())]
    handles = [Line2D([], [], linestyle="none", marker=marker, color=colour, label=words,
                      markersize=6) for colour, marker, words, there in entries if there]
    box = table.page.axes(table.legend_left, table.legend_top, 1.0, 0.1)
    box.set_axis_off()
    canvas.legend_below(box, handles, points=0)
