"""What all figures share: colours, font sizes, a page measured in inches, short numbers.

The colours are safe for colour-blind readers. Tests: ``tests/plots/test_style.py``.
"""

from __future__ import annotations

import heapq
import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from wua_mlflow.verdict import text
from wua_mlflow.verdict.text import points

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

__all__ = [
    "Sheet", "VARIANT_COLOURS", "bars", "difference_axis", "elide", "legend_mark", "log_axis",
    "note", "number", "score_text", "sheet", "strip_axes", "text_width",
    "variant_colour",
]


VARIANT_COLOURS = {
    "oversized": "#5b7c99",
    "oversized-same-budget": "#a9bccd",
    "slim": "#d95f02",
    "from-scratch": "#4d3b6b",
}
"""Colour of each ``wua.variant``; the original and its control of equal budget share a hue."""
_LATER_ROUNDS = ("#a6430a", "#f0a35e", "#7a3b12")

INK, MUTED, RULE = "#23282d", "#68717a", "#c9ced3"
"""Text and axes; secondary text; grid lines."""
MEASURED = "#5b7c99"
INSIDE, OUTSIDE = "#b4c6d6", "#4a6f92"
"""Bars of a measure that lies inside, or outside, the range of its null."""
NULL_RANGE = "#e0a020"
BAND = "#f3f5f7"
"""Behind every second block of rows."""
UNIT_COLOURS, NO_IMPORTANCE = "viridis", "#d62728"
"""Matplotlib's perceptually uniform map of unit importance, and a colour that is far from all of it
for colour-blind readers too."""
ALARM = "#c0271d"
"""What has no importance at all, or is dead."""
STRONG_WEIGHT, WEAK_WEIGHT, NODE = "#d62728", "#b9bfc5", "#ffffff"
WITHIN_MARGIN = "#e6f0e4"

DPI = 110
TITLE, SUBTITLE, LABEL, SMALL = 12.0, 9.5, 9.0, 8.0
"""Font sizes in points."""
DASHED = (0, (4, 3))
EDGE_IN, _LINE_IN = 0.3, 0.155
"""Margin of a page; height of a line of its caption."""
_CHARACTERS_PER_IN, _LONGEST_LINE = 18, 145
_MEASURED_TEXTS = 24
_MOST_TICKS = 8


def variant_colour(variant: str) -> str:
    """Colour of a variant; ``slim-2``, ``slim-3`` … are shades of the slim one's.

    Args:
        variant: a value of the tag ``wua.variant``.

    Returns:
        A colour as ``#rrggbb``; grey for a variant that the palette does not know.

    >>> variant_colour("slim")
    '#d95f02'
    """
    base, _, number = variant.rpartition("-")
    if base == "slim" and number.isdigit():
        return _LATER_ROUNDS[int(number) % len(_LATER_ROUNDS)]
    return VARIANT_COLOURS.get(variant, MUTED)


@dataclass(frozen=True)
class Sheet:
    """A figure on which axes and text are placed in inches, from the upper left."""

    figure: Figure
    width_in: float
    height_in: float

    def point(self, left: float, top: float) -> tuple[float, float]:
        """A place in inches as fractions of the figure."""
        return left / self.width_in, 1 - top / self.height_in

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """New axes whose upper left corner is (``left``, ``top``), in inches."""
        size = width / self.width_in, height / self.height_in
        return self.figure.add_axes((*self.point(left, top + height), *size))

    def write(self, left: float, top: float, text: str, size: float = SMALL, **look: Any) -> None:
        """Text whose upper left corner is (``left``, ``top``), smaller where it would not fit."""
        widest = text_width([text], size, look.get("weight", "normal"))
        shrink = min(1.0, 0.96 * (self.width_in - 2 * left) / widest)
        look = {"color": MUTED, "va": "top", "linespacing": 1.35, "parse_math": False, **look}
        self.figure.text(*self.point(left, top), text, fontsize=size * shrink, **look)

    def legend(
        self, left: float, top: float, handles: Sequence[Artist] = (), *, columns: int | None = None
    ) -> None:
        """Legend entries, in one row unless ``columns`` are given; by default all that is labelled.
        """
        labelled = (axes.get_legend_handles_labels() for axes in self.figure.axes)
        entries = {label: artist for artists, labels in labelled
                   for artist, label in zip(artists, labels, strict=True)}
        handles = handles or list(entries.values())
        self.figure.legend(
            handles=handles, loc="upper left", bbox_to_anchor=self.point(left, top),
            ncols=columns or max(1, len(handles)), frameon=False, fontsize=SMALL,
            labelcolor=MUTED, borderpad=0, borderaxespad=0, columnspacing=1.4, handlelength=1.6)


def sheet(
    width_in: float, foot_in: float, *, title: str, subtitle: str = "", caption: str = ""
) -> Sheet:
    """A new figure: a bold first line, a plain one under it, the caption from ``foot_in`` down."""
    from matplotlib.figure import Figure

    fitting = int(_CHARACTERS_PER_IN * (width_in - 2 * EDGE_IN))
    lines = textwrap.wrap(caption, min(_LONGEST_LINE, fitting))
    height_in = foot_in + _LINE_IN * len(lines) + 0.15
    figure = Figure(figsize=(width_in, height_in), dpi=DPI, facecolor="white")
    page = Sheet(figure, width_in, height_in)
    page.write(EDGE_IN, 0.2, title, TITLE, color=INK, weight="bold")
    page.write(EDGE_IN, 0.48, subtitle, SUBTITLE, color=INK)
    page.write(EDGE_IN, foot_in, "\n".join(lines))
    return page


def strip_axes(
    ax: Axes, *, keep: Sequence[str] = ("left", "bottom"), grid: Literal["", "x", "y"] = ""
) -> None:
    """Quiet axes: only the spines named in ``keep``, small grey tick labels, no tick marks.

    Args:
        ax: the axes.
        keep: sides whose spine stays.
        grid: ``x`` or ``y``: with thin lines behind the data, at that axis's ticks.
    """
    for side, spine in ax.spines.items():
        spine.set(visible=side in keep, color=RULE)
    ax.tick_params(which="both", labelsize=SMALL, labelcolor=MUTED, color=RULE, length=0, pad=4)
    if grid:
        ax.grid(axis=grid, color=RULE, linewidth=0.5)
        ax.set_axisbelow(True)


def note(
    ax: Axes, text: str, xy: tuple[float, float], offset: tuple[float, float] = (0, 0),
    coords: str | tuple[str, str] = "axes fraction", **look: Any,
) -> None:
    """Small words at ``xy`` of ``coords``, moved by ``offset`` points; they may leave the axes."""
    ax.annotate(text, xy, xycoords=coords, xytext=offset, textcoords="offset points",
                annotation_clip=False, **{"fontsize": SMALL, "color": MUTED, "parse_math": False,
                                          **look})


def bars(
    ax: Axes, centres: ArrayLike, low: ArrayLike, high: ArrayLike, thickness: float, **look: Any
) -> None:
    """Horizontal bars from ``low`` to ``high``, as one collection: hundreds cost no more than one.
    """
    from matplotlib.collections import PolyCollection

    left, right, middle = np.broadcast_arrays(low, high, centres)
    down, up = middle - thickness / 2, middle + thickness / 2
    corners = np.stack([left, down, right, down, right, up, left, up], axis=-1)
    if left.size:
        ax.add_collection(PolyCollection(list(corners.reshape(-1, 4, 2)), linewidths=0, **look))


def difference_axis(ax: Axes, limits: Iterable[float], margin: float, score: str) -> None:
    """Make the horizontal axis one of score differences; shaded: better, or within the margin.

    Args:
        ax: the axes.
        limits: what has to be within the axis, besides the margin.
        margin: the loss that is accepted, as a fraction.
        score: its name; an accuracy is labelled in points.
    """
    limits = (-margin, margin, *limits)
    pad = 0.1 * (max(limits) - min(limits)) or 0.01
    right = max(limits) + pad
    ax.set_xlim(min(limits) - pad, right)
    ax.axvspan(-margin, right, color=WITHIN_MARGIN, linewidth=0, zorder=0)
    ax.axvline(-margin, color=INK, linewidth=1.4, zorder=1, label="minus the margin")
    ax.axvline(0, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
    ax.locator_params(axis="x", nbins=6)
    ax.xaxis.set_major_formatter(lambda value, _: (
        f"{'+' if value > 1e-12 else ''}{points(round(value, 12), score)}"))


def log_axis(ax: Axes, low: float, high: float) -> None:
    """Make the horizontal axis logarithmic, with three or more round ticks where they fit."""
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    ax.minorticks_off()
    decades = 10.0 ** np.arange(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
        ticks = np.outer(decades, factors).ravel()
        ticks = ticks[(low <= ticks) & (ticks <= high)]
        if len(ticks) >= 3:
            break
    ticks = ticks[:: -(-len(ticks) // _MOST_TICKS)]
    ax.set_xticks(ticks, [number(tick) for tick in ticks])


def legend_mark(colour: str, label: str, **look: Any) -> Artist:
    """A line, a marker, or both, as an entry of a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, label=label, **look)


def text_width(texts: Iterable[str], size: float, weight: str = "normal") -> float:
    """Width in inches of the widest line of texts at ``size`` points, in the font drawn with.

    Of many lines, those with the most characters are measured.
    """
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties

    renderer: Any = RendererAgg
    measure = renderer(1, 1, DPI).get_text_width_height_descent
    font = FontProperties(size=size, weight=weight)
    longest = heapq.nlargest(_MEASURED_TEXTS, set("\n".join(texts).split("\n")), key=len)
    return max(1.0, *(float(measure(line, font, False)[0]) for line in longest)) / DPI


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


def score_text(value: float, score: str) -> str:
    """A test or validation score; an accuracy in percent.

    >>> score_text(0.873, "accuracy"), score_text(-0.5, "R²")
    ('87.3%', '−0.500')
    """
    return text.score_text(value, score)
