"""Colours of the pictures, and of the runs in MLflow's charts; safe for colour-blind readers.

Imports nothing. Test: ``tests/plots/test_comparison.py``.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Sheet", "VARIANT_COLOURS", "bars", "caption", "elide", "heading", "legend_below", "log_ticks",
    "number", "power_of_ten", "root_figure", "sheet", "strip_axes", "text_width", "tick_words",
    "title", "variant_colour",
]


VARIANT_COLOURS = {
    "oversized": "#5b7c99",
    "oversized-same-budget": "#a9bccd",
    "slim": "#d95f02",
    "from-scratch": "#4d3b6b",
}
"""Colour of each ``wua.variant``; the original and its control of equal budget share a hue."""

_LATER_ROUNDS = ("#a6430a", "#f0a35e", "#7a3b12")

INK = "#23282d"
MUTED = "#68717a"
RULE = "#c9ced3"
MEASURED = "#5b7c99"
INSIDE, OUTSIDE = "#b4c6d6", "#4a6f92"
"""Bars of a measure that lies inside, or outside, the range of its null."""
NULL_RANGE = "#e0a020"
BAND = "#f3f5f7"
"""Behind every second block of rows."""
UNIT_COLOURS, NO_IMPORTANCE = "viridis", "#d62728"
"""Matplotlib's map of unit importance, uniform to the eye, and a colour that is far from all of it
for colour-blind readers too."""
ALARM = "#c0271d"
"""What has no importance at all, or is dead."""
STRONG_WEIGHT = "#d62728"
WEAK_WEIGHT = "#b9bfc5"
NODE = "#ffffff"
WITHIN_MARGIN = "#e6f0e4"


def variant_colour(variant: str) -> str:
    """Colour of a variant; ``slim-2``, ``slim-3`` … are shades of the slim one's.

    Args:
        variant: a value of the tag ``wua.variant``.

    Returns:
        A colour as ``#rrggbb``; grey for a variant that the palette does not know.

    >>> variant_colour("slim")
    '#d95f02'
    """
    if variant in VARIANT_COLOURS:
        return VARIANT_COLOURS[variant]
    base, _, number = variant.rpartition("-")
    if base == "slim" and number.isdigit():
        return _LATER_ROUNDS[int(number) % len(_LATER_ROUNDS)]
    return MUTED


DPI = 110
TITLE, SUBTITLE, LABEL, SMALL = 12.0, 9.5, 9.0, 8.0
"""Font sizes in points."""

_MEASURED = 24
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Sheet:
    """A rectangle of a figure on which panels and text are placed in inches, from the upper left.

    ``bounds`` are its left, bottom, width and height as fractions of the figure.
    """

    figure: Figure
    bounds: tuple[float, float, float, float]
    width_in: float
    height_in: float

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """New axes whose upper left corner is (``left``, ``top``), in inches."""
        x, y = self.point(left, top + height)
        across, up = self.bounds[2] / self.width_in, self.bounds[3] / self.height_in
        return self.figure.add_axes((x, y, width * across, height * up))

    def point(self, left: float, top: float) -> tuple[float, float]:
        """A place in inches as fractions of the figure."""
        x0, y0, width, height = self.bounds
        return x0 + width * left / self.width_in, y0 + height * (1 - top / self.height_in)

    def write(
        self,
        left: float,
        top: float,
        text: str,
        *,
        size: float,
        bold: bool = False,
        colour: str = INK,
    ) -> None:
        """Text whose upper left corner is (``left``, ``top``), smaller where it would not fit."""
        weight = "bold" if bold else "normal"
        room = 0.96 * (self.width_in - 2 * left) / text_width(text.split("\n"), size, weight)
        x, y = self.point(left, top)
        self.figure.text(
            x,
            y,
            text,
            fontsize=size * min(1.0, room),
            color=colour,
            weight=weight,
            va="top",
            linespacing=1.35,
            parse_math=False,
        )


def sheet(width_in: float, height_in: float, ax: Axes | None = None) -> Sheet:
    """A new figure of this size, or the place of ``ax``, whose own frame is then hidden."""
    from matplotlib.figure import Figure

    if ax is None:
        figure = Figure(figsize=(width_in, height_in), dpi=DPI, facecolor="white")
        return Sheet(figure, (0.0, 0.0, 1.0, 1.0), width_in, height_in)
    ax.set_axis_off()
    box = ax.get_position()
    bounds = (box.x0, box.y0, box.width, box.height)
    return Sheet(root_figure(ax), bounds, width_in, height_in)


def root_figure(ax: Axes) -> Figure:
    """The figure that holds ``ax``, subfigures passed over."""
    figure = ax.get_figure(root=True)
    if figure is None:
        raise ValueError(
            "ax: expected axes of a figure, but got axes that were removed from theirs"
        )
    return figure


def strip_axes(ax: Axes, *, keep: Sequence[str] = ("left", "bottom")) -> None:
    """Quiet axes: only the spines named in ``keep``, small grey tick labels, no tick marks."""
    for side, spine in ax.spines.items():
        spine.set_visible(side in keep)
        spine.set_color(RULE)
    ax.tick_params(which="both", labelsize=SMALL, labelcolor=MUTED, color=RULE, length=0, pad=4)


def title(
    ax: Axes,
    text: str,
    subtitle: str = "",
    *,
    left_points: float = 0.0,
    above_points: float = 8.0,
) -> None:
    """A bold line ``above_points`` over ``ax``, or over the plain line that is put between."""
    if subtitle:
        _note(ax, subtitle, (left_points, above_points + 2), (0, 1), "bottom", SUBTITLE)
        above_points += 19
    _note(ax, text, (left_points, above_points), (0, 1), "bottom", TITLE, bold=True)


def caption(ax: Axes, text: str, *, below_points: float, left_points: float = 0.0) -> None:
    """Grey small lines ``below_points`` under the lower edge of ``ax``."""
    _note(ax, text, (left_points, -below_points), (0, 0), "top", SMALL, colour=MUTED)


def heading(ax: Axes, x: float, text: str, *, ha: str = "left") -> None:
    """Small grey words over the upper edge of ``ax``, at ``x`` in its data."""
    note = ax.annotate(
        text,
        xy=(x, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 5),
        textcoords="offset points",
        ha=ha,
        va="bottom",
        fontsize=SMALL,
        color=MUTED,
        annotation_clip=False,
    )
    note.set_parse_math(False)


def _note(  # noqa: PLR0913 (title and caption are its short forms)
    ax: Axes,
    text: str,
    offset: tuple[float, float],
    corner: tuple[int, int],
    vertical: str,
    size: float,
    *,
    bold: bool = False,
    colour: str = INK,
) -> None:
    note = ax.annotate(
        text,
        xy=corner,
        xycoords="axes fraction",
        xytext=offset,
        textcoords="offset points",
        va=vertical,
        fontsize=size,
        color=colour,
        weight="bold" if bold else "normal",
        annotation_clip=False,
        linespacing=1.35,
    )
    note.set_parse_math(False)


def bars(
    ax: Axes,
    centres: np.ndarray,
    spans: tuple[np.ndarray, np.ndarray],
    thickness: float,
    colours: Sequence[str] | str,
) -> None:
    """Horizontal bars from ``spans[0]`` to ``spans[1]``, as one collection (200 cost as one)."""
    from matplotlib.collections import PolyCollection

    low, high = spans
    down, up = centres - thickness / 2, centres + thickness / 2
    corners = np.stack([low, down, high, down, high, up, low, up], axis=1).reshape(-1, 4, 2)
    ax.add_collection(PolyCollection(list(corners), facecolors=colours, linewidths=0))


def legend_below(ax: Axes, handles: Sequence[Artist], *, points: float) -> None:
    """One row of legend entries, ``points`` under the lower edge of ``ax``."""
    from matplotlib.transforms import ScaledTranslation

    inches = root_figure(ax).dpi_scale_trans
    legend = ax.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=ax.transAxes + ScaledTranslation(0, -points / 72, inches),
        ncols=len(handles),
        frameon=False,
        fontsize=SMALL,
        labelcolor=MUTED,
        borderpad=0,
        borderaxespad=0,
        columnspacing=1.4,
        handlelength=1.6,
    )
    legend.set_zorder(3)


def text_width(texts: Sequence[str], size: float, weight: str = "normal") -> float:
    """Width in inches of the widest text at ``size`` points, measured in the font drawn with.

    Of many texts, those with the most characters are measured.
    """
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties

    measure: Any = RendererAgg(1, 1, DPI)
    font = FontProperties(size=size, weight=weight)
    longest = heapq.nlargest(_MEASURED, set(texts), key=len)
    widths = [measure.get_text_width_height_descent(text, font, False)[0] for text in longest]
    return float(max(1.0, *widths)) / DPI


def elide(name: str, longest: int = 40, head: float = 0.5) -> str:
    """A long dotted name with something left out; ``head`` of what stays lies before the gap.

    >>> elide("encoder.layers.11.feed_forward.dense", 20)
    'encoder.la…ard.dense'
    """
    if len(name) <= longest:
        return name
    before = int(longest * head)
    start, tail = name[:before], name[before + 1 - longest :]
    return f"{start.rstrip('.')}…{tail.lstrip('.')}"


def number(value: float) -> str:
    """A count or a quantity in as few characters as three or four digits need.

    >>> number(60), number(15.7751), number(122000), number(1.8141e9), number(0.0431)
    ('60', '15.8', '122,000', '1.81 G', '0.0431')
    """
    size = abs(value)
    for power, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if size >= power:
            return f"{value / power:.3g} {letter}" if size < 1e18 else f"{value:.2e}"
    if size >= 1000 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.3g}"


def power_of_ten(exponent: int) -> str:
    """``×10⁻⁶`` for −6, in plain characters (matplotlib's formulas take 50 ms on first use)."""
    return "×10" + str(exponent).translate(_SUPERSCRIPT)


_TICKS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), tuple(np.arange(10, 100) / 10))
_MOST_TICKS = 7


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers within the range, three to seven of them where there are so many.

    >>> log_ticks(35, 75), log_ticks(1e3, 1e6)
    ([40.0, 50.0, 70.0], [1000.0, 10000.0, 100000.0, 1000000.0])
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for steps in _TICKS:
        finer = [float(f"{step * 10.0**decade:.12g}") for decade in decades for step in steps]
        finer = [tick for tick in finer if low <= tick <= high]
        if len(finer) > _MOST_TICKS:
            return found or finer[:: math.ceil(len(finer) / _MOST_TICKS)]
        found = finer
        if len(found) >= 3:
            break
    return found


def tick_words(ticks: Sequence[float], score: str) -> list[str]:
    """All with as many decimals as tell them apart."""
    scale, unit = (100, "%") if score == "accuracy" else (1, "")
    values = [round(scale * tick, 9) + 0.0 for tick in ticks]
    decimals = next(d for d in range(10) if all(round(v, d) == v for v in values))
    return [f"{value:.{decimals}f}{unit}".replace("-", "−") for value in values]
