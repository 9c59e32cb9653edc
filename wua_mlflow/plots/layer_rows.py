"""Names of layers as rows are labelled: the block apart, what all share left out, long ones cut.

Imports ``canvas`` for the cut. Test: ``tests/plots/test_naming.py``.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from wua_mlflow.plots import style
from wua_mlflow.plots.style import BAND, INK, MUTED, RULE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from wua_mlflow.plots.style import Sheet

__all__ = [
    "Column", "Panel", "RowNames", "Table", "Words", "are_crowded", "panels_of", "row_names",
    "shortened", "table",
]


_LONGEST_BLOCK, _LONGEST_NAME = 24, 30
_LONGEST_ALONE = 38
_CUTS = (0.5, 0.25, 0.75)
"""Where a long name is cut, as a share of what stays; the first that keeps names apart."""


@dataclass(frozen=True)
class RowNames:
    """One entry a row. A name in full is ``prefix``, its block, a dot, and its name, cuts aside.

    ``blocks`` is empty for a row that stands alone; rows of one block follow one another.
    """

    prefix: str
    blocks: tuple[str, ...]
    names: tuple[str, ...]

    def starts_block(self, row: int) -> bool:
        """Whether the row is the first of its block, or stands alone."""
        return not self.blocks[row] or row == 0 or self.blocks[row] != self.blocks[row - 1]


def row_names(names: Sequence[str], *, by_block: bool = True) -> RowNames:
    """Labels that stay apart: two rows look alike only if their names are the same.

    A block is what a name begins with up to its first number, as in ``encoder.layers.17``; a layer
    that is alone in its block keeps its name whole.

    >>> row_names(["net.0.k_proj", "net.0.fc", "net.head"])
    RowNames(prefix='net.', blocks=('0', '0', ''), names=('k_proj', 'fc', 'head'))
    """
    prefix = _shared(names)
    rest = [name[len(prefix) :] or "model" for name in names]
    blocks: list[str] = []
    for block, run in itertools.groupby(_block(name) if by_block else "" for name in rest):
        rows = len(list(run))
        blocks += [block if rows > 1 else ""] * rows
    own = [
        name[len(block) + 1 :] if block else name for name, block in zip(rest, blocks, strict=True)
    ]
    short = shortened(own, _LONGEST_NAME if any(blocks) else _LONGEST_ALONE)
    return RowNames(prefix, tuple(shortened(blocks, _LONGEST_BLOCK)), tuple(short))


def shortened(names: Sequence[str], longest: int) -> list[str]:
    """Names of at most ``longest`` characters, more where different ones would look the same.

    >>> shortened(["encoder.layers.0.out_proj", "encoder.layers.1.out_proj"], 12)
    ['enc…0.out_proj', 'enc…1.out_proj']
    """
    different = dict.fromkeys(names)
    for length in itertools.count(longest, 2):
        for cut in _CUTS:
            short = {name: style.elide(name, length, cut) for name in different}
            if len(set(short.values())) == len(short):
                return [short[name] for name in names]
    raise AssertionError("unreachable: at some length no name is cut")


def _shared(names: Sequence[str]) -> str:
    """The whole parts, dots included, with which every name begins."""
    if len(names) < 2:
        return ""
    parts = [name.split(".")[:-1] for name in names]
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False))
    return "".join(f"{column[0]}." for column in same)


def _block(name: str) -> str:
    parts = name.split(".")[:-1]
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return "" if number is None else ".".join(parts[: number + 1])


MOST_ROWS, MOST_PANELS = 110, 4
"""Rows of a panel that names each (a few more where that keeps a block whole), and panels."""

_TALLEST_ROW_IN, _NAMED_ROW_IN, _TALLEST_IN, _ROOMY_IN = 0.32, 0.118, 13.0, 10.0
_EDGE_IN, _PANEL_GAP_IN, _COLUMN_GAP_IN, _NAME_GAP_IN = 0.25, 0.5, 0.22, 0.08
_TITLE_IN, _SUBTITLE_IN, _HEAD_IN, _TICKS_IN = 0.22, 0.5, 1.2, 0.32
_CAPTION_LINE_IN, _CHARACTERS_PER_IN, _LONGEST_LINE = 0.155, 18, 145
_BAR_IN, _BAR_GAP_IN, _NARROWEST_IN = 0.5, 0.08, 7.2
_THICKNESS = 0.62
"""Of a bar, in rows."""


@dataclass(frozen=True)
class Column:
    """Figures beside the rows: a text each and, where ``lengths`` are given, a bar in 0..1.

    A text whose entry of ``strong`` is true is drawn in ``colour``, any other in grey.
    """

    heading: str
    texts: Sequence[str]
    strong: Sequence[bool] | None = None
    lengths: np.ndarray | None = None
    colour: str = INK
    bar_colour: str = RULE


@dataclass(frozen=True)
class Words:
    """What stands around the rows; ``legend_in`` inches are left free above the caption."""

    title: str
    subtitle: str
    heading: str
    caption: str
    legend_in: float


@dataclass(frozen=True)
class Panel:
    """Some of the rows: ``rows`` says which, ``axes`` is where they are drawn, row i at y = i."""

    rows: slice
    axes: Axes


@dataclass(frozen=True)
class Table:
    """A drawn table; the legend may be put at (``legend_left``, ``legend_top``) of ``page``."""

    page: Sheet
    panels: tuple[Panel, ...]
    row_in: float
    legend_left: float
    legend_top: float


@dataclass(frozen=True)
class _Plan:
    """The names, and all sizes in inches; ``every``: one row in so many is named."""

    names: RowNames
    parts: list[slice]
    row_in: float
    every: int
    size: float
    block_in: float
    name_in: float
    drawing_in: float
    columns_in: tuple[float, ...]

    @property
    def left_in(self) -> float:
        """From a panel's left edge to its drawing."""
        return self.block_in + self.name_in + _NAME_GAP_IN

    @property
    def panel_in(self) -> float:
        columns = sum(self.columns_in) + _COLUMN_GAP_IN * len(self.columns_in)
        return self.left_in + self.drawing_in + columns

    @property
    def width_in(self) -> float:
        panels = len(self.parts) * (self.panel_in + _PANEL_GAP_IN) - _PANEL_GAP_IN
        return panels + 2 * _EDGE_IN

    def rows_in(self, part: slice) -> float:
        """Height of a panel."""
        return (part.stop - part.start) * self.row_in

    @property
    def tallest_in(self) -> float:
        return max(map(self.rows_in, self.parts))


def are_crowded(rows: int) -> bool:
    """Whether so many rows are too many for each to be named."""
    return rows > MOST_ROWS * MOST_PANELS


def panels_of(names: RowNames) -> list[slice]:
    """Which rows stand in which panel; a panel begins with a block where one begins near by.

    >>> panels_of(row_names([f"fc{i}" for i in range(150)]))
    [slice(0, 75, None), slice(75, 150, None)]
    """
    rows = len(names.names)
    count = min(MOST_PANELS, math.ceil(rows / MOST_ROWS))
    near = rows // count // 20
    cuts = [0]
    for i in range(1, count):
        ideal = round(i * rows / count)
        around = range(ideal - near, ideal + near + 1)
        starts = [row for row in around if names.starts_block(row)]
        cuts.append(min(starts, key=lambda row: abs(row - ideal), default=ideal))
    return [slice(a, b) for a, b in zip(cuts, [*cuts[1:], rows], strict=True)]


def table(
    layers: Sequence[str],
    columns: Sequence[Column],
    words: Words,
    drawing_in: float,
    ax: Axes | None = None,
) -> Table:
    """Lay out the rows, and draw all but what belongs into ``Panel.axes`` and the legend.

    Args:
        layers: names of the layers, in the forward's order.
        columns: figures to the right of the drawing; each has an entry a layer.
        words: what stands around.
        drawing_in: width of each panel's drawing, or more where the titles need it.
        ax: on a new figure where None, else in the place of these axes.
    """
    plan = _planned(layers, columns, drawing_in)
    wanted = max(_NARROWEST_IN, 2 * _EDGE_IN + _widest(words))
    lacking = max(0.0, wanted - plan.width_in)
    plan = replace(plan, drawing_in=drawing_in + lacking / len(plan.parts))
    width = plan.width_in
    caption = words.caption
    if plan.every > 1:
        caption = f"{caption} One layer in {plan.every} is named."
    fitting = int(_CHARACTERS_PER_IN * (width - 2 * _EDGE_IN))
    caption = textwrap.fill(caption, min(_LONGEST_LINE, fitting))
    legend_top = _HEAD_IN + plan.tallest_in + _TICKS_IN
    caption_top = legend_top + words.legend_in
    height = caption_top + _CAPTION_LINE_IN * (1 + caption.count("\n")) + 0.15
    page = style.sheet(width, height, ax)
    page.write(_EDGE_IN, _TITLE_IN, words.title, size=style.TITLE, bold=True)
    page.write(_EDGE_IN, _SUBTITLE_IN, words.subtitle, size=style.SUBTITLE)
    page.write(_EDGE_IN, caption_top, caption, size=style.SMALL, colour=MUTED)
    panels = []
    for i, part in enumerate(plan.parts):
        left = _EDGE_IN + i * (plan.panel_in + _PANEL_GAP_IN)
        _draw_frame(page.axes(left, _HEAD_IN, plan.panel_in, plan.rows_in(part)), plan, part,
                    columns, words.heading)
        drawing = page.axes(left + plan.left_in, _HEAD_IN, plan.drawing_in, plan.rows_in(part))
        drawing.patch.set_visible(False)
        style.strip_axes(drawing, keep=())
        _show_rows(drawing, part)
        drawing.set_yticks([])
        panels.append(Panel(part, drawing))
    return Table(page, tuple(panels), plan.row_in, _EDGE_IN + plan.left_in, legend_top)


def _planned(layers: Sequence[str], columns: Sequence[Column], drawing_in: float) -> _Plan:
    names = row_names(layers)
    parts = panels_of(names)
    most = max(part.stop - part.start for part in parts)
    row_in = min(_TALLEST_ROW_IN, max(_NAMED_ROW_IN, _ROOMY_IN / most), _TALLEST_IN / most)
    every = 1
    if are_crowded(len(layers)):
        every = math.ceil(_NAMED_ROW_IN / row_in)
        names = row_names(layers, by_block=False)
    size = min(style.LABEL, 72 * row_in * every * 0.83)
    blocks_in = style.text_width(names.blocks, size) + 0.2 if any(names.blocks) else 0.0
    prefix_in = style.text_width([_prefix(names)], style.SMALL) - blocks_in
    return _Plan(
        names=names,
        parts=parts,
        row_in=row_in,
        every=every,
        size=size,
        block_in=blocks_in,
        name_in=max(prefix_in, style.text_width(names.names, size)),
        drawing_in=drawing_in,
        columns_in=tuple(_column_in(column, size) for column in columns),
    )


def _prefix(names: RowNames) -> str:
    return f"all in {style.elide(names.prefix[:-1], 34)}" if names.prefix else ""


def _column_in(column: Column, size: float) -> float:
    bar = _BAR_IN + _BAR_GAP_IN if column.lengths is not None else 0.0
    texts = style.text_width(column.texts, min(size, style.SMALL))
    return max(texts + bar, style.text_width(column.heading.split("\n"), style.SMALL))


def _widest(words: Words) -> float:
    title_in = style.text_width([words.title], style.TITLE, "bold")
    return 1.05 * max(title_in, style.text_width([words.subtitle], style.SUBTITLE))


def _show_rows(ax: Axes, part: slice) -> None:
    ax.set_ylim(part.stop - 0.5, part.start - 0.5)


def _draw_frame(
    ax: Axes, plan: _Plan, part: slice, columns: Sequence[Column], heading: str
) -> None:
    """Bands, names, headings and figures; the horizontal unit is the inch."""
    ax.set_axis_off()
    ax.set_xlim(0, plan.panel_in)
    _show_rows(ax, part)
    _draw_names(ax, plan, part)
    style.heading(ax, 0.0, _prefix(plan.names))
    style.heading(ax, plan.left_in, heading)
    right = plan.left_in + plan.drawing_in
    for column, width in zip(columns, plan.columns_in, strict=True):
        right += _COLUMN_GAP_IN + width
        _draw_column(ax, plan, part, column, (right - width, right))


def _draw_names(ax: Axes, plan: _Plan, part: slice) -> None:
    names, band = plan.names, False
    for row in range(part.start, part.stop):
        starts = names.starts_block(row)
        band ^= starts and bool(names.blocks[row])
        if band and names.blocks[row]:
            ax.axhspan(row - 0.5, row + 0.5, color=BAND, linewidth=0, zorder=0)
        if (row - part.start) % plan.every:
            continue
        if names.blocks[row] and (starts or row == part.start):
            _text(ax, (0.06, row), names.blocks[row], plan.size, ha="left")
        edge = plan.left_in - _NAME_GAP_IN
        _text(ax, (edge, row), names.names[row], plan.size)


def _draw_column(
    ax: Axes, plan: _Plan, part: slice, column: Column, edges: tuple[float, float]
) -> None:
    left, right = edges
    if column.lengths is None:
        style.heading(ax, right, column.heading, ha="right")
    else:
        style.heading(ax, left, column.heading)
        rows = np.arange(part.start, part.stop, dtype=float)
        start = np.full(len(rows), right - _BAR_IN)
        spans = (start, start + _BAR_IN * np.nan_to_num(column.lengths[part]))
        style.bars(ax, rows, spans, _THICKNESS, column.bar_colour)
        right -= _BAR_IN + _BAR_GAP_IN
    for row in range(part.start, part.stop, plan.every):
        strong = column.strong is None or column.strong[row]
        colour = column.colour if strong else MUTED
        size = min(plan.size, style.SMALL)
        _text(ax, (right, row), column.texts[row], size, colour=colour)


def _text(
    ax: Axes, at: tuple[float, float], text: str, size: float, *, ha: str = "right",
    colour: str = INK,
) -> None:
    if text:
        ax.text(*at, text, fontsize=size, ha=ha, va="center_baseline", color=colour,
                parse_math=False)
