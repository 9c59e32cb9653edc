"""How the weights and the units of each layer are used: a row a layer.

``plot_layers`` shows the effective share of each layer's weights beside the range of networks that
learned nothing, with dead units and FLOPs where known; ``plot_units`` is a heat map of the units'
importance. Tests: ``tests/plots/test_usage.py``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wua_mlflow.plots import layer_rows, style
from wua_mlflow.verdict.text import FLOPS_ONE_SAMPLE

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

    from wua_mlflow.usage.results import LayerUsage, ModelUsage, NullUsage

__all__ = ["LayersData", "UnitsData", "layers_data", "plot_layers", "plot_units", "units_data"]


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
    """``usage`` by row, a layer each, in the order of the forward; arrays have shape (layers,).

    ``share`` is the effective share, 0..1; ``null_low`` and ``null_high`` the range of the null,
    NaN where none was drawn; ``dead`` where every importance of the layer is zero; ``dead_units``
    is NaN where outputs were not seen; ``forward_flops`` are of one sample, NaN where they were not
    counted. ``null_words`` says which null, ``by_chance`` which share of
    the layers of a network that learned nothing lies outside its range, NaN without a null.
    """

    usage: ModelUsage
    names: tuple[str, ...]
    share: np.ndarray
    null_low: np.ndarray
    null_high: np.ndarray
    dead: np.ndarray
    units: np.ndarray
    dead_units: np.ndarray
    forward_flops: np.ndarray
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
    layers = _layers(usage)
    nulls = [layer.null for layer in layers if layer.null]
    return LayersData(
        usage,
        names=tuple(layer.name for layer in layers),
        share=np.array([layer.effective_share for layer in layers]),
        null_low=np.array([layer.null and layer.null.low for layer in layers], float),
        null_high=np.array([layer.null and layer.null.high for layer in layers], float),
        dead=np.array([layer.dead for layer in layers]),
        units=np.array([layer.units for layer in layers]),
        dead_units=np.array([layer.dead_units for layer in layers], float),
        forward_flops=np.array([layer.forward_flops for layer in layers], float),
        null_words=_null_words(nulls),
        by_chance=_by_chance(np.array([null.draws for null in nulls])),
    )


def plot_layers(data: LayersData) -> Figure:
    """Draw a row a layer."""
    rows = layer_rows.RowFigure(
        layers=data.names,
        columns=_columns(data),
        title=_title(data),
        subtitle=_subtitle(data),
        heading="effective weights ÷ weights of the layer",
        caption=_caption(data),
    )
    return rows.draw(lambda axes: _draw_shares(axes, data)).figure


def _layers(usage: ModelUsage) -> list[LayerUsage]:
    layers = list(usage.layers.values())
    if not layers:
        raise ValueError("usage: expected at least one analysed layer, but got none")
    return layers


def _by_chance(draws: np.ndarray) -> float:
    """How often one more draw lies outside the interpolated quantiles of ``draws`` others.

    The k-th smallest of n draws has one more draw below it with probability k ÷ (n + 1); the 2.5%
    quantile lies at k = 1 + 0.025 (n − 1).
    """
    return float(np.mean(2 * (1 + 0.025 * (draws - 1)) / (draws + 1))) if draws.size else math.nan


def _title(data: LayersData) -> str:
    effective, count = data.usage.effective_weights, len(data.names)
    return (f"Effective weights {effective:,.{1 if effective < 1000 else 0}f} of "
            f"{data.usage.weights:,}, in {count:,} layer{'s' if count > 1 else ''}")


def _subtitle(data: LayersData) -> str:
    dead = int(data.dead.sum())
    if not dead:
        return _against_null(data)
    which = "the layer has" if len(data.names) == 1 else \
        "1 layer has" if dead == 1 else f"{dead:,} layers have"
    return f"{_against_null(data)}; {which} no importance at all"


def _null_words(nulls: Sequence[NullUsage]) -> str:
    kinds = Counter(f"{null.kind}, {null.draws} draws" for null in nulls)
    if len(kinds) < 2:
        return "".join(kinds)
    return "; ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))


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
    without, skipped = int(np.isnan(data.null_low).sum()), len(data.usage.skipped)
    dead = [style.elide(data.names[i]) for i in np.flatnonzero(data.dead)]
    more = f" and {len(dead) - MOST_NAMES:,} more" if len(dead) > MOST_NAMES else ""
    sentences = [
        (_CAPTION.format(data.usage.criterion), True),
        (f"Range: 2.5–97.5% of networks that learned nothing ({data.null_words}); by chance alone, "
         f"about {data.by_chance:.0%} of layers lie outside.", data.null_words),
        ("Dead units: zero for all data, or never above zero before a ReLU.",
         np.isfinite(data.dead_units).any()),
        (f"Layers without a range: {without}.", data.null_words and without),
        (f"No importance at all: {', '.join(dead[:MOST_NAMES])}{more}.",
         dead and layer_rows.are_crowded(len(data.names))),
        (f"Modules not analysed: {skipped}.", skipped),
    ]
    return " ".join(words for words, shown in sentences if shown)


def _columns(data: LayersData) -> list[layer_rows.Column]:
    columns = [layer_rows.Column("share", [f"{share:.1%}" for share in data.share])]
    if np.isfinite(data.dead_units).any():
        texts = ["" if math.isnan(dead) else f"{dead:,.0f} of {units:,}" if dead else "0"
                 for dead, units in zip(data.dead_units, data.units, strict=True)]
        columns.append(layer_rows.Column("dead units", texts, (data.dead_units > 0).tolist(),
                                         data.dead_units / data.units, alarm=True))
    known = np.isfinite(data.forward_flops)
    if known.any():
        flops = data.forward_flops
        texts = [style.number(count) if math.isfinite(count) else "–" for count in flops]
        heading = FLOPS_ONE_SAMPLE.replace(" one", "\none")
        columns.append(layer_rows.Column(heading, texts, known.tolist(),
                                         flops / float(np.nanmax(flops, initial=1.0))))
    return columns


def _draw_shares(ax: Axes, data: LayersData) -> None:
    for colour, shown, words in ((style.INSIDE, ~data.outside, "measured"),
                                 (style.OUTSIDE, data.outside, "measured, outside the range")):
        style.bars(ax, np.flatnonzero(shown), 0, data.share[shown], 0.66, color=colour, label=words)
    known = np.isfinite(data.null_low)
    style.bars(ax, np.flatnonzero(known), data.null_low[known], data.null_high[known], 0.26,
               color=style.NULL_RANGE, label="range of networks that learned nothing")
    style.strip_axes(ax, keep=(), grid="x")
    _percent_axis(ax)
    _write_dead(ax, data.dead, style.ALARM)


def _percent_axis(ax: Axes) -> None:
    ax.set_xlim(0, 1)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])


def _write_dead(ax: Axes, dead: np.ndarray, colour: str) -> None:
    """Words in the rows without importance, where the rows are high enough for words."""
    for row in np.flatnonzero(dead & (not layer_rows.are_crowded(len(dead)))):
        ax.annotate("no importance at all", (0.012, row), fontsize=style.SMALL * 0.9, color=colour,
                    weight="bold", va="center_baseline")


MOST_CELLS = 200
"""A layer of more units is drawn as so many cells, each the mean over neighbours in the order."""
MOST_TIMES = 10
"""Colours span 1/10 to 10 times the mean; what lies beyond has the colour of the end."""

_ROUNDING = 1e-12
_PIXELS = 1200
"""Steps of a row's picture: finer than it is drawn."""
_SCALE_IN = 2.6
_MOST_SEPARATED_ROWS = 576
"""More rows have no gaps between them."""
_SEPARATE_UNITS = 32
"""A layer of at most so many units shows each as a cell of its own."""
_SCALE_WORDS = "importance of a unit, as a multiple of its layer's mean"
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
    layers = _layers(usage)
    importance = [np.sort(np.asarray(layer.unit_importance, np.float64).ravel())[::-1]
                  for layer in layers]
    return UnitsData(
        names=tuple(layer.name for layer in layers),
        units=np.array([values.size for values in importance]),
        cells=tuple(_cells(values) for values in importance),
        half=np.array([_half(values) for values in importance]),
        zero=np.array([int((values == 0).sum()) for values in importance]),
        effective_share=np.array([layer.unit_usage and layer.unit_usage.effective_share
                                  for layer in layers], float),
        criterion=usage.criterion,
    )


def plot_units(data: UnitsData) -> Figure:
    """Draw a row a layer."""
    rows = layer_rows.RowFigure(
        layers=data.names,
        columns=_units_columns(data),
        title="No unit has any importance" if math.isnan(data.half_share) else
              f"Half of the importance is held by {data.half_share:.0%} of the units",
        subtitle=_units_subtitle(data),
        heading="units of the layer, the most important first",
        caption=_units_caption(data),
        legend_in=0.65,
        drawing_in=(5.2, 3.8),
    )
    page = rows.draw(lambda axes: _draw_units(axes, data))
    left, top = rows.legend_at
    page.write(left, top, _SCALE_WORDS)
    _draw_scale(page.figure, page.axes(left, top + 0.2, _SCALE_IN, 0.13))
    legend_left = left + style.text_width([_SCALE_WORDS], style.SMALL) + 0.4
    page.legend(legend_left, top, _units_legend(data), columns=1)
    return page.figure


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


def _units_subtitle(data: UnitsData) -> str:
    alive = data.half > 0
    if not alive.any():
        return "every importance is zero"
    half, units = int(data.half.sum()), int(data.units[alive].sum())
    shares = (data.half / data.units)[alive & (data.units > 1)]
    by_layer = f", by layer {shares.min():.0%} to {shares.max():.0%}" if len(shares) > 1 else ""
    whose = "the layer's" if len(data.names) == 1 else "each layer's"
    return (f"the fewest that hold half of {whose} importance: {half:,} of {units:,}{by_layer}; "
            "if all were equal, about 50%")


def _units_caption(data: UnitsData) -> str:
    caption = _UNITS_CAPTION.format(data.criterion)
    if (data.units > MOST_CELLS).any():
        caption += f" Layers of more than {MOST_CELLS} units: a cell is the mean of neighbours."
    return caption


def _units_columns(data: UnitsData) -> list[layer_rows.Column]:
    columns = [layer_rows.Column("units", [f"{units:,}" for units in data.units])]
    if np.isfinite(data.effective_share).any():
        texts = ["" if math.isnan(share) else f"{share:.0%}" for share in data.effective_share]
        columns.append(layer_rows.Column("effective\nunits", texts))
    return columns


def _colours() -> tuple[Colormap, Normalize]:
    """From a multiple of the layer's mean to its colour; 0, masked, has one of its own."""
    import matplotlib
    from matplotlib.colors import LogNorm

    colours = matplotlib.colormaps[style.UNIT_COLOURS].with_extremes(bad=style.NO_IMPORTANCE)
    return colours, LogNorm(1 / MOST_TIMES, MOST_TIMES)


def _draw_units(ax: Axes, data: UnitsData) -> None:
    """The cells; a line where half of the importance is reached."""
    at = (np.arange(_PIXELS) + 0.5) / _PIXELS
    image = np.stack([cells[(at * cells.size).astype(int)] for cells in data.cells])
    ax.imshow(np.ma.masked_equal(image, 0), *_colours(), aspect="auto", interpolation="nearest",
              extent=(0, 1, len(image) - 0.5, -0.5))
    _percent_axis(ax)
    if len(image) <= _MOST_SEPARATED_ROWS:
        _draw_gaps(ax, data.units)
    half = data.half / data.units
    rows = np.flatnonzero(half)
    for colour, width in (("white", 3.4), (style.INK, 1.4)):
        ax.vlines(half[half > 0], rows - 0.5, rows + 0.5, color=colour, linewidth=width)
    _write_dead(ax, data.half == 0, "white")


def _draw_gaps(ax: Axes, units: np.ndarray) -> None:
    """White lines between the rows of a panel, and between the units of a layer that has few."""
    top, bottom = sorted(ax.get_ylim())
    style.bars(ax, np.arange(top + 1, bottom), 0, 1, 0.14, color="white")
    for row in np.flatnonzero(units <= _SEPARATE_UNITS):
        inner = np.arange(1, units[row]) / units[row]
        ax.vlines(inner, row - 0.5, row + 0.5, color="white", linewidth=0.7)


def _draw_scale(figure: Figure, ax: Axes) -> None:
    from matplotlib.cm import ScalarMappable

    colours, norm = _colours()
    ticks = {1 / MOST_TIMES: f"≤{1 / MOST_TIMES:g}", 0.3: "0.3", 1: "1", 3: "3",
             MOST_TIMES: f"≥{MOST_TIMES}"}
    scale = figure.colorbar(ScalarMappable(norm, colours), cax=ax, orientation="horizontal",
                            ticks=list(ticks), format=lambda tick, _: ticks[tick])
    scale.minorticks_off()
    scale.outline.set(visible=False)
    style.strip_axes(ax, keep=())


def _units_legend(data: UnitsData) -> list[Artist]:
    from matplotlib.patches import Patch

    zero = int(data.zero.sum())
    handles: list[Artist] = []
    if data.half.any():
        handles.append(style.legend_mark(
            style.INK, "left of the line: half of the layer's importance", linestyle="", marker="|",
            markersize=9, markeredgewidth=1.4))
    if zero:
        words = f"no importance: {zero:,} unit{'s' if zero > 1 else ''}"
        handles.append(Patch(color=style.NO_IMPORTANCE, label=words))
    return handles
