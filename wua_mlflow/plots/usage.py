"""Effective share of each layer's weights beside what a network that learned nothing shows.

With the units that are dead and the FLOPs, where known.
May import: numpy, result types, ``rows``; matplotlib inside ``plot_layers``.
Test: ``tests/plots/test_layers.py``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wua_mlflow.plots import layer_rows, style
from wua_mlflow.plots.style import (
    ALARM,
    INK,
    INSIDE,
    MUTED,
    NO_IMPORTANCE,
    NULL_RANGE,
    OUTSIDE,
    RULE,
    UNIT_COLOURS,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

    from wua_mlflow.usage.results import LayerUsage, ModelUsage, NullUsage

__all__ = ["LayersData", "UnitsData", "layers_data", "plot_layers", "plot_units", "units_data"]


_SHARES_IN, _SHARES_BESIDE_IN = 4.4, 3.1
"""Width of the shares' drawing, and where panels stand beside each other."""
_LEGEND_IN = 0.4
MOST_NAMES = 5
"""Layers without importance that the caption names, where the rows are too many for words."""
_RANGE = "the range of networks that learned nothing"
_CAPTION = (
    "Effective weights describe how concentrated the importance (criterion: {}) is within a layer, "
    "and depend on how the network is parametrised; on their account alone no weight is "
    "superfluous."
)


@dataclass(frozen=True)
class LayersData:
    """One row a layer, in the order of the forward; arrays have shape (layers,).

    ``share`` is the effective share, 0..1; ``null_low`` and ``null_high`` the range of the null,
    NaN where none was drawn; ``dead`` where every importance of the layer is zero; ``dead_units``
    is NaN where outputs were not seen; ``forward_flops`` are of one sample, NaN where they were not
    counted. ``null_words`` says which null, ``by_chance`` which share of
    the layers of a network that learned nothing lies outside its range, NaN without a null.
    """

    names: tuple[str, ...]
    share: np.ndarray
    null_low: np.ndarray
    null_high: np.ndarray
    dead: np.ndarray
    units: np.ndarray
    dead_units: np.ndarray
    forward_flops: np.ndarray
    effective_weights: float
    weights: int
    skipped: int
    criterion: str
    null_words: str
    by_chance: float

    @property
    def below(self) -> np.ndarray:
        """Where the share lies below the null's range; False where there is no null."""
        return self.share < self.null_low

    @property
    def outside(self) -> np.ndarray:
        """Where the share lies outside the null's range; False where there is no null."""
        return self.below | (self.share > self.null_high)


def layers_data(usage: ModelUsage) -> LayersData:
    """Rows of the picture.

    Args:
        usage: what ``analyze`` measured.

    Raises:
        ValueError: no layer was analysed.
    """
    layers = list(usage.layers.values())
    if not layers:
        raise ValueError("usage: expected at least one analysed layer, but got none")
    nulls = [layer.null for layer in layers]
    dead_units = [layer.dead_units for layer in layers]
    flops = [layer.forward_flops for layer in layers]
    return LayersData(
        names=tuple(layer.name for layer in layers),
        share=np.array([layer.effective_share for layer in layers]),
        null_low=np.array([null.low if null else math.nan for null in nulls]),
        null_high=np.array([null.high if null else math.nan for null in nulls]),
        dead=np.array([layer.dead for layer in layers]),
        units=np.array([layer.units for layer in layers]),
        dead_units=np.array([math.nan if n is None else n for n in dead_units], float),
        forward_flops=np.array([math.nan if n is None else n for n in flops], float),
        effective_weights=usage.effective_weights,
        weights=usage.weights,
        skipped=len(usage.skipped),
        criterion=usage.criterion,
        null_words=_null_words([null for null in nulls if null]),
        by_chance=_by_chance([n.draws for n in nulls if n]),
    )


def plot_layers(data: LayersData, ax: Axes | None = None) -> Figure:
    """Draw a row a layer on a new figure, or in the place of ``ax``.

    Text keeps its size in points, so ``ax`` should be about 9 inches wide, and as high as its rows.
    """
    words = layer_rows.Words(
        title=_title(data),
        subtitle=_subtitle(data),
        heading="effective weights ÷ weights of the layer",
        caption=_caption(data),
        legend_in=_LEGEND_IN,
    )
    beside = len(data.names) > layer_rows.MOST_ROWS
    drawing_in = _SHARES_BESIDE_IN if beside else _SHARES_IN
    table = layer_rows.table(data.names, _columns(data), words, drawing_in, ax)
    for panel in table.panels:
        _draw_shares(panel.axes, data, panel.rows)
    _legend(table, data)
    return table.page.figure


def _by_chance(draws: list[int]) -> float:
    """How often one more draw lies outside the interpolated quantiles of ``draws`` others.

    The k-th smallest of n draws has one more draw below it with probability k ÷ (n + 1); the 2.5%
    quantile lies at k = 1 + 0.025 (n − 1).
    """
    if not draws:
        return math.nan
    n = np.array(draws, float)
    return float(np.mean(2 * (1 + 0.025 * (n - 1)) / (n + 1)))


def _title(data: LayersData) -> str:
    effective = f"{data.effective_weights:,.{1 if data.effective_weights < 1000 else 0}f}"
    layers = "1 layer" if len(data.names) == 1 else f"{len(data.names):,} layers"
    return f"Effective weights {effective} of {data.weights:,}, in {layers}"


def _subtitle(data: LayersData) -> str:
    said = _against_null(data)
    dead = int(data.dead.sum())
    if not dead:
        return said
    layers = "the layer has" if len(data.names) == 1 else (
        "1 layer has" if dead == 1 else f"{dead:,} layers have")
    return f"{said}; {layers} no importance at all"


def _null_words(nulls: Sequence[NullUsage]) -> str:
    kinds = Counter((null.kind, f"{null.draws} draws") for null in nulls)
    if len(kinds) < 2:
        return "".join(", ".join(kind) for kind in kinds)
    return "; ".join(f"{count:,} {', '.join(kind)}"
                     for kind, count in sorted(kinds.items()))


def _against_null(data: LayersData) -> str:
    known, outside = int(np.isfinite(data.null_low).sum()), int(data.outside.sum())
    below = int(data.below.sum())
    if not known:
        return "not compared with networks that learned nothing"
    side = "outside" if 0 < below < outside else "below" if below else "above"
    if len(data.names) == 1:
        return f"{side if outside else 'within'} {_RANGE}"
    if not outside:
        return f"{known:,} of {known:,} layers lie within {_RANGE}"
    both = f" ({below:,} below, {outside - below:,} above)" if side == "outside" else ""
    return f"{outside:,} of {known:,} layers lie {side} {_RANGE}{both}"


def _caption(data: LayersData) -> str:
    said = [_CAPTION.format(data.criterion)]
    if data.null_words:
        said.append(f"Range: 2.5–97.5% of networks that learned nothing ({data.null_words}); by "
                    f"chance alone, about {data.by_chance:.0%} of layers lie outside.")
    if np.isfinite(data.dead_units).any():
        said.append("Dead units: zero for all data, or never above zero before a ReLU.")
    without = int(np.isnan(data.null_low).sum())
    if data.null_words and without:
        said.append(f"Layers without a range: {without}.")
    if layer_rows.are_crowded(len(data.names)) and data.dead.any():
        said.append(f"No importance at all: {_some_names(data)}.")
    if data.skipped:
        said.append(f"Modules not analysed: {data.skipped}.")
    return " ".join(said)


def _some_names(data: LayersData) -> str:
    dead = [style.elide(data.names[i]) for i in np.flatnonzero(data.dead)]
    more = f" and {len(dead) - MOST_NAMES:,} more" if len(dead) > MOST_NAMES else ""
    return ", ".join(dead[:MOST_NAMES]) + more


def _columns(data: LayersData) -> list[layer_rows.Column]:
    shares = [f"{share:.1%}" for share in data.share]
    columns = [layer_rows.Column("share", shares)]
    if np.isfinite(data.dead_units).any():
        columns.append(_dead_units(data))
    if np.isfinite(data.forward_flops).any():
        columns.append(_flops(data.forward_flops))
    return columns


def _dead_units(data: LayersData) -> layer_rows.Column:
    texts = [
        "" if math.isnan(dead) else f"{dead:,.0f} of {units:,}" if dead else "0"
        for dead, units in zip(data.dead_units, data.units, strict=True)
    ]
    some = (data.dead_units > 0).tolist()
    lengths = data.dead_units / data.units
    return layer_rows.Column("dead units", texts, some, lengths, ALARM, ALARM)


def _flops(flops: np.ndarray) -> layer_rows.Column:
    largest = float(np.nanmax(flops, initial=1.0))
    known = np.isfinite(flops)
    texts = [style.number(n) if math.isfinite(n) else "–" for n in flops]
    return layer_rows.Column("forward FLOPs\nof one sample", texts, known.tolist(), flops / largest)


def _draw_shares(ax: Axes, data: LayersData, part: slice) -> None:
    at = np.arange(part.start, part.stop, dtype=float)
    share, low, high = data.share[part], data.null_low[part], data.null_high[part]
    known = np.isfinite(low)
    colours = np.where(data.outside[part], OUTSIDE, INSIDE).tolist()
    style.bars(ax, at, (np.zeros_like(at), share), 0.66, colours)
    style.bars(ax, at[known], (low[known], high[known]), 0.26, NULL_RANGE)
    ax.set_xlim(0, 1)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    ax.grid(axis="x", color=RULE, linewidth=0.5)
    ax.set_axisbelow(True)
    if layer_rows.are_crowded(len(data.names)):
        return
    for row in np.flatnonzero(data.dead[part]) + part.start:
        ax.text(0.012, row, "no importance at all", fontsize=style.SMALL * 0.9, color=ALARM,
                weight="bold", va="center_baseline")


def _legend(table: layer_rows.Table, data: LayersData) -> None:
    from matplotlib.patches import Patch

    outside, known = data.outside, np.isfinite(data.null_low)
    entries = [
        (INSIDE, "measured", bool((~outside).any())),
        (OUTSIDE, "measured, outside the range", bool(outside.any())),
        (NULL_RANGE, "range of networks that learned nothing", bool(known.any())),
    ]
    handles = [Patch(color=colour, label=words) for colour, words, there in entries if there]
    box = table.page.axes(table.legend_left, table.legend_top, 1.0, 0.1)
    box.set_axis_off()
    style.legend_below(box, handles, points=0)


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
_UNITS_CAPTION = (
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
    words = layer_rows.Words(
        title=_units_title(data),
        subtitle=_units_subtitle(data),
        heading="units of the layer, the most important first",
        caption=_units_caption(data),
        legend_in=0.8,
    )
    beside = len(data.names) > layer_rows.MOST_ROWS
    map_in = _MAP_BESIDE_IN if beside else _MAP_IN
    table = layer_rows.table(data.names, _units_columns(data), words, map_in, ax)
    for panel in table.panels:
        _draw_cells(panel.axes, data, panel.rows, table.row_in)
    _units_legend(table, data)
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


def _units_title(data: UnitsData) -> str:
    if math.isnan(data.half_share):
        return "No unit has any importance"
    return f"Half of the importance is held by {data.half_share:.0%} of the units"


def _units_subtitle(data: UnitsData) -> str:
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


def _units_caption(data: UnitsData) -> str:
    said = _UNITS_CAPTION.format(data.criterion)
    if (data.units > MOST_CELLS).any():
        said += f" Layers of more than {MOST_CELLS} units: a cell is the mean of neighbours."
    return said


def _units_columns(data: UnitsData) -> list[layer_rows.Column]:
    columns = [layer_rows.Column("units", [f"{units:,}" for units in data.units])]
    if np.isfinite(data.effective_share).any():
        texts = ["" if math.isnan(share) else f"{share:.0%}" for share in data.effective_share]
        columns.append(layer_rows.Column("effective\nunits", texts))
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
    if layer_rows.are_crowded(len(data.names)):
        return
    for row in np.flatnonzero(data.half[part] == 0) + part.start:
        ax.text(0.012, row, "no importance at all", fontsize=style.SMALL * 0.9, color="white",
                weight="bold", va="center_baseline")


def _draw_gaps(ax: Axes, units: np.ndarray, part: slice, row_in: float) -> None:
    """White lines between rows, and between the units of a layer that has few."""
    ax.hlines(np.arange(part.start + 1, part.stop) - 0.5, 0, 1, color="white",
              linewidth=min(3.0, 72 * row_in * 0.14))
    for row in np.flatnonzero(units <= _SEPARATE_UNITS):
        inner = np.arange(1, units[row]) / units[row]
        at = row + part.start
        ax.vlines(inner, at - 0.5, at + 0.5, color="white", linewidth=0.7)


def _units_legend(table: layer_rows.Table, data: UnitsData) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    page, left, top = table.page, table.legend_left, table.legend_top
    page.write(left, top + 0.1, _SCALE_WORDS, size=style.SMALL, colour=MUTED)
    most = math.log10(MOST_TIMES)
    scale = page.axes(left, top + 0.3, _SCALE_IN, 0.13)
    scale.imshow(np.linspace(-most, most, 256)[None], _colours(), aspect="auto",
                 extent=(-most, most, 0, 1))
    style.strip_axes(scale, keep=())
    scale.set_yticks([])
    ticks = [1 / MOST_TIMES, 0.3, 1, 3, MOST_TIMES]
    texts = [f"≤{ticks[0]:g}", "0.3", "1", "3", f"≥{MOST_TIMES}"]
    scale.set_xticks(np.log10(ticks), texts)
    right = left + style.text_width([_SCALE_WORDS], style.SMALL) + 0.4
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
                fontsize=style.SMALL, labelcolor=MUTED, borderpad=0, borderaxespad=0,
                handlelength=1.2)


def _count(units: int) -> str:
    return f"{units:,} {'unit' if units == 1 else 'units'}"
