"""Effective share of each layer's weights beside what a network that learned nothing shows.

With the units that are dead and the FLOPs, where known.
May import: numpy, ``wua_mlflow.usage`` for types, ``rows``; matplotlib inside ``plot_layers``.
Test: ``tests/plots/test_layers.py``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wua_mlflow.plots import canvas, rows
from wua_mlflow.plots.palette import ALARM, INSIDE, NULL_RANGE, OUTSIDE, RULE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wua_mlflow.usage import ModelUsage, NullUsage

__all__ = ["LayersData", "layers_data", "plot_layers"]

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
    words = rows.Words(
        title=_title(data),
        subtitle=_subtitle(data),
        heading="effective weights ÷ weights of the layer",
        caption=_caption(data),
        legend_in=_LEGEND_IN,
    )
    beside = len(data.names) > rows.MOST_ROWS
    drawing_in = _SHARES_BESIDE_IN if beside else _SHARES_IN
    table = rows.table(data.names, _columns(data), words, drawing_in, ax)
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
    if rows.are_crowded(len(data.names)) and data.dead.any():
        said.append(f"No importance at all: {_some_names(data)}.")
    if data.skipped:
        said.append(f"Modules not analysed: {data.skipped}.")
    return " ".join(said)


def _some_names(data: LayersData) -> str:
    dead = [canvas.elide(data.names[i]) for i in np.flatnonzero(data.dead)]
    more = f" and {len(dead) - MOST_NAMES:,} more" if len(dead) > MOST_NAMES else ""
    return ", ".join(dead[:MOST_NAMES]) + more


def _columns(data: LayersData) -> list[rows.Column]:
    shares = [f"{share:.1%}" for share in data.share]
    columns = [rows.Column("share", shares)]
    if np.isfinite(data.dead_units).any():
        columns.append(_dead_units(data))
    if np.isfinite(data.forward_flops).any():
        columns.append(_flops(data.forward_flops))
    return columns


def _dead_units(data: LayersData) -> rows.Column:
    texts = [
        "" if math.isnan(dead) else f"{dead:,.0f} of {units:,}" if dead else "0"
        for dead, units in zip(data.dead_units, data.units, strict=True)
    ]
    some = (data.dead_units > 0).tolist()
    lengths = data.dead_units / data.units
    return rows.Column("dead units", texts, some, lengths, ALARM, ALARM)


def _flops(flops: np.ndarray) -> rows.Column:
    largest = float(np.nanmax(flops, initial=1.0))
    known = np.isfinite(flops)
    texts = [canvas.number(n) if math.isfinite(n) else "–" for n in flops]
    return rows.Column("forward FLOPs\nof one sample", texts, known.tolist(), flops / largest)


def _draw_shares(ax: Axes, data: LayersData, part: slice) -> None:
    at = np.arange(part.start, part.stop, dtype=float)
    share, low, high = data.share[part], data.null_low[part], data.null_high[part]
    known = np.isfinite(low)
    colours = np.where(data.outside[part], OUTSIDE, INSIDE).tolist()
    canvas.bars(ax, at, (np.zeros_like(at), share), 0.66, colours)
    canvas.bars(ax, at[known], (low[known], high[known]), 0.26, NULL_RANGE)
    ax.set_xlim(0, 1)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    ax.grid(axis="x", color=RULE, linewidth=0.5)
    ax.set_axisbelow(True)
    if rows.are_crowded(len(data.names)):
        return
    for row in np.flatnonzero(data.dead[part]) + part.start:
        ax.text(0.012, row, "no importance at all", fontsize=canvas.SMALL * 0.9, color=ALARM,
                weight="bold", va="center_baseline")


def _legend(table: rows.Table, data: LayersData) -> None:
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
    canvas.legend_below(box, handles, points=0)
