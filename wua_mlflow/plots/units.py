"""Heat map: in each layer, how the importance is spread over its units, the most important first.

May import: numpy, ``wua_mlflow.usage`` for types, ``rows``; matplotlib inside ``plot_units``.
Test: ``tests/plots/test_units.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wua_mlflow.plots import canvas, rows
from wua_mlflow.plots.palette import INK, MUTED, NO_IMPORTANCE, UNIT_COLOURS

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

    from wua_mlflow.usage import LayerUsage, ModelUsage

__all__ = ["UnitsData", "plot_units", "units_data"]

MOST_CELLS = 200
"""A layer of more units is drawn as so many cells, each the mean over neighbours in the order."""
MOST_TIMES = 10
"""Colours span 1/10 to 10 times the mean; what lies beyond has the colour of the end."""

_ROUNDING = 1e-12
_PIXELS = 1200
"""Steps of a row's picture: finer than it is drawn."""
_MAP_IN, _MAP_BESIDE_IN = 5.2, 3.8
_SCALE_IN = 2.6
_GAPS_FROM_IN = 0.09
_SEPARATE_UNITS = 32
"""A layer of at most so many units shows each as a cell of its own."""
_SCALE_WORDS = "importance of a unit, as a multiple of its layer's mean"
_HALF_WORDS = "left of the line: half of the layer's importance"
_CAPTION = (
    "A row is a layer; its units (neurons, channels) are sorted, so a place in it is a rank, not a "
    "unit. Colours compare the units of one layer (criterion: {}), not layers with each other. "
    "Effective units = exp(entropy): so many equally important ones have this entropy. All of it "
    "depends on how the network is parametrised; on its account alone no unit is superfluous."
)


@dataclass(frozen=True)
class UnitsData:
    """One row a layer, in the order of the forward; arrays have shape (layers,).

    ``cells[i]`` has shape (min(units, 200),): the layer's units from the most important down,
    importance ÷ the layer's mean, neighbours averaged where there are more units than cells; all 0
    where the layer has no importance. ``half`` is the fewest units that hold half of the layer's
    importance (0 where there is none), ``zero`` how many have none, ``effective_share`` effective
    units ÷ units, NaN where not known.
    """

    names: tuple[str, ...]
    units: np.ndarray
    cells: tuple[np.ndarray, ...]
    half: np.ndarray
    zero: np.ndarray
    effective_share: np.ndarray
    criterion: str

    @property
    def half_share(self) -> float:
        """The fewest units that hold half of each layer's importance ÷ units, of all layers.

        Layers without importance are left out; NaN where there are no others.
        """
        alive = self.half > 0
        return float(self.half.sum() / self.units[alive].sum()) if alive.any() else math.nan


def units_data(usage: ModelUsage) -> UnitsData:
    """Rows of the picture.

    Raises:
        ValueError: no layer was analysed.
    """
    layers = list(usage.layers.values())
    if not layers:
        raise ValueError("usage: expected at least one analysed layer, but got none")
    importance = [_descending(layer) for layer in layers]
    known = [layer.unit_usage for layer in layers]
    return UnitsData(
        names=tuple(layer.name for layer in layers),
        units=np.array([values.size for values in importance]),
        cells=tuple(_cells(values) for values in importance),
        half=np.array([_half(values) for values in importance]),
        zero=np.array([int((values == 0).sum()) for values in importance]),
        effective_share=np.array([unit.effective_share if unit else math.nan for unit in known]),
        criterion=usage.criterion,
    )


def plot_units(data: UnitsData, ax: Axes | None = None) -> Figure:
    """Draw a row a layer on a new figure, or in the place of ``ax``.

    Text keeps its size in points, so ``ax`` should be about 9 inches wide, and as high as its rows.
    """
    words = rows.Words(
        title=_title(data),
        subtitle=_subtitle(data),
        heading="units of the layer, the most important first",
        caption=_caption(data),
        legend_in=0.8,
    )
    beside = len(data.names) > rows.MOST_ROWS
    map_in = _MAP_BESIDE_IN if beside else _MAP_IN
    table = rows.table(data.names, _columns(data), words, map_in, ax)
    for panel in table.panels:
        _draw_cells(panel.axes, data, panel.rows, table.row_in)
    _legend(table, data)
    return table.page.figure


def _descending(layer: LayerUsage) -> np.ndarray:
    return np.sort(np.asarray(layer.unit_importance, dtype=np.float64).ravel())[::-1]


def _cells(importance: np.ndarray) -> np.ndarray:
    count = min(importance.size, MOST_CELLS)
    starts = np.arange(count) * importance.size // count
    sizes = np.diff([*starts, importance.size])
    means: np.ndarray = np.add.reduceat(importance, starts) / sizes
    return means / (importance.mean() or 1.0)


def _half(importance: np.ndarray) -> int:
    held = np.cumsum(importance)
    if held[-1] == 0:
        return 0
    return int(np.searchsorted(held, held[-1] / 2 * (1 - _ROUNDING))) + 1


def _title(data: UnitsData) -> str:
    if math.isnan(data.half_share):
        return "No unit has any importance"
    return f"Half of the importance is held by {data.half_share:.0%} of the units"


def _subtitle(data: UnitsData) -> str:
    alive = data.half > 0
    if not alive.any():
        return "every importance is zero"
    half, units = int(data.half.sum()), int(data.units[alive].sum())
    shares = (data.half / data.units)[alive & (data.units > 1)]
    said = f"the fewest that hold half of {_layers(data)} importance: {half:,} of {units:,}"
    if len(shares) > 1:
        said += f", by layer {shares.min():.0%} to {shares.max():.0%}"
    return f"{said}; if all were equal, about 50%"


def _layers(data: UnitsData) -> str:
    return "the layer's" if len(data.names) == 1 else "each layer's"


def _caption(data: UnitsData) -> str:
    said = _CAPTION.format(data.criterion)
    if (data.units > MOST_CELLS).any():
        said += f" Layers of more than {MOST_CELLS} units: a cell is the mean of neighbours."
    return said


def _columns(data: UnitsData) -> list[rows.Column]:
    columns = [rows.Column("units", [f"{units:,}" for units in data.units])]
    if np.isfinite(data.effective_share).any():
        texts = ["" if math.isnan(share) else f"{share:.0%}" for share in data.effective_share]
        columns.append(rows.Column("effective\nunits", texts))
    return columns


def _colours() -> Colormap:
    import matplotlib

    return matplotlib.colormaps[UNIT_COLOURS].with_extremes(bad=NO_IMPORTANCE)


def _draw_cells(ax: Axes, data: UnitsData, part: slice, row_in: float) -> None:
    at = (np.arange(_PIXELS) + 0.5) / _PIXELS
    image = np.stack([cells[(at * cells.size).astype(int)] for cells in data.cells[part]])
    with np.errstate(divide="ignore"):
        powers = np.ma.masked_invalid(np.log10(image))
    most = math.log10(MOST_TIMES)
    bounds = (0, 1, part.stop - 0.5, part.start - 0.5)
    ax.imshow(powers, _colours(), aspect="auto", extent=bounds, vmin=-most, vmax=most,
              interpolation="nearest")
    ax.set_xlim(0, 1)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    if row_in > _GAPS_FROM_IN:
        _draw_gaps(ax, data.units[part], part, row_in)
    place = data.half[part] / data.units[part]
    here = np.arange(part.start, part.stop, dtype=float)[place > 0]
    for colour, width in (("white", 3.4), (INK, 1.4)):
        ax.vlines(place[place > 0], here - 0.5, here + 0.5, color=colour, linewidth=width)
    if rows.are_crowded(len(data.names)):
        return
    for row in np.flatnonzero(data.half[part] == 0) + part.start:
        ax.text(0.012, row, "no importance at all", fontsize=canvas.SMALL * 0.9, color="white",
                weight="bold", va="center_baseline")


def _draw_gaps(ax: Axes, units: np.ndarray, part: slice, row_in: float) -> None:
    """White lines between rows, and between the units of a layer that has few."""
    ax.hlines(np.arange(part.start + 1, part.stop) - 0.5, 0, 1, color="white",
              linewidth=min(3.0, 72 * row_in * 0.14))
    for row in np.flatnonzero(units <= _SEPARATE_UNITS):
        inner = np.arange(1, units[row]) / units[row]
        at = row + part.start
        ax.vlines(inner, at - 0.5, at + 0.5, color="white", linewidth=0.7)


def _legend(table: rows.Table, data: UnitsData) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    page, left, top = table.page, table.legend_left, table.legend_top
    page.write(left, top + 0.1, _SCALE_WORDS, size=canvas.SMALL, colour=MUTED)
    most = math.log10(MOST_TIMES)
    scale = page.axes(left, top + 0.3, _SCALE_IN, 0.13)
    scale.imshow(np.linspace(-most, most, 256)[None], _colours(), aspect="auto",
                 extent=(-most, most, 0, 1))
    canvas.strip_axes(scale, keep=())
    scale.set_yticks([])
    ticks = [1 / MOST_TIMES, 0.3, 1, 3, MOST_TIMES]
    texts = [f"≤{ticks[0]:g}", "0.3", "1", "3", f"≥{MOST_TIMES}"]
    scale.set_xticks(np.log10(ticks), texts)
    right = left + canvas.text_width([_SCALE_WORDS], canvas.SMALL) + 0.4
    note = page.axes(right, top + 0.1, 1.0, 0.35)
    note.set_axis_off()
    handles: list[Artist] = []
    words = []
    if data.half.any():
        handles.append(Line2D([], [], color=INK, marker="|", markersize=9, markeredgewidth=1.4,
                              linestyle=""))
        words.append(_HALF_WORDS)
    if data.zero.any():
        handles.append(Patch(color=NO_IMPORTANCE))
        words.append(f"no importance: {_count(int(data.zero.sum()))}")
    note.legend(handles, words, loc="upper left", bbox_to_anchor=(0, 1), frameon=False,
                fontsize=canvas.SMALL, labelcolor=MUTED, borderpad=0, borderaxespad=0,
                handlelength=1.2)


def _count(units: int) -> str:
    return f"{units:,} {'unit' if units == 1 else 'units'}"
