"""Figures with a row a layer: short names, panels beside each other, columns of figures.

Tests: ``tests/plots/test_layer_rows.py``.
"""

from __future__ import annotations

import itertools
import math
import os.path
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from wua_mlflow.plots import style
from wua_mlflow.plots.style import ALARM, BAND, EDGE_IN, INK, MUTED, RULE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from wua_mlflow.plots.style import Sheet

__all__ = ["Column", "RowFigure", "RowNames", "are_crowded", "panels_of", "row_names", "shortened"]


_LONGEST_BLOCK, _LONGEST_NAME, _LONGEST_ALONE = 24, 30, 38
_CUTS = (0.5, 0.25, 0.75)
"""Where a long name is cut, as a share of what stays; the first that keeps names apart."""


@dataclass(frozen=True)
class RowNames:
    """Labels of the rows. A full name is ``prefix``, its block, a dot, and its name, cuts aside.

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
    shared = os.path.commonprefix([name.split(".")[:-1] for name in names]) \
        if len(names) > 1 else []
    prefix = "".join(f"{part}." for part in shared)
    rest = [name[len(prefix) :] or "model" for name in names]
    blocks: list[str] = []
    for block, rows in itertools.groupby(_block(name) if by_block else "" for name in rest):
        count = len(list(rows))
        blocks += [block if count > 1 else ""] * count
    within = [name[len(block) + 1 :] if block else name
              for name, block in zip(rest, blocks, strict=True)]
    short = shortened(within, _LONGEST_NAME if any(blocks) else _LONGEST_ALONE)
    return RowNames(prefix, tuple(shortened(blocks, _LONGEST_BLOCK)), tuple(short))


def shortened(names: Sequence[str], longest: int) -> list[str]:
    """Names of at most ``longest`` characters, more where different ones would look the same.

    >>> shortened(["encoder.layers.0.out_proj", "encoder.layers.1.out_proj"], 12)
    ['enc…0.out_proj', 'enc…1.out_proj']
    """
    different = set(names)
    candidates = ({name: style.elide(name, length, cut) for name in different}
                  for length in itertools.count(longest, 2) for cut in _CUTS)
    short = next(short for short in candidates if len(set(short.values())) == len(short))
    return [short[name] for name in names]


def _block(name: str) -> str:
    match = re.match(r"([^.]*\.)*?\d+(?=\.)", name)
    return match[0] if match else ""


MOST_ROWS, MOST_PANELS = 110, 4
"""Rows of a panel that names each (a few more where that keeps a block whole), and panels."""

_TALLEST_ROW_IN, _NAMED_ROW_IN, _TALLEST_IN, _ROOMY_IN = 0.32, 0.118, 13.0, 10.0
_PANEL_GAP_IN, _COLUMN_GAP_IN, _NAME_GAP_IN = 0.5, 0.22, 0.08
_HEAD_IN, _TICKS_IN = 1.2, 0.32
_BAR_IN, _BAR_GAP_IN, _NARROWEST_IN = 0.5, 0.08, 7.2


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
    starts = [0]
    for i in range(1, count):
        ideal = round(i * rows / count)
        blocks = filter(names.starts_block, range(ideal - near, ideal + near + 1))
        starts.append(min(blocks, key=lambda row: abs(row - ideal), default=ideal))
    return [slice(*ends) for ends in itertools.pairwise([*starts, rows])]


@dataclass(frozen=True)
class Column:
    """Figures beside the rows: a text each and, where ``lengths`` are given, a bar in 0..1.

    A text whose entry of ``strong`` is true is dark, any other grey; those of an ``alarm`` are red,
    as are its bars.
    """

    heading: str
    texts: Sequence[str]
    strong: Sequence[bool] | None = None
    lengths: np.ndarray | None = None
    alarm: bool = False

    def width_in(self, size: float) -> float:
        """Width with the heading."""
        bar = 0.0 if self.lengths is None else _BAR_IN + _BAR_GAP_IN
        return max(style.text_width(self.texts, size) + bar,
                   style.text_width([self.heading], style.SMALL))


@dataclass(frozen=True)
class RowFigure:
    """A figure with a row a layer, before it is drawn.

    Attributes:
        layers: names of the layers, in the forward's order.
        columns: figures to the right of the drawing, with an entry a layer.
        title: the first line.
        subtitle: the second.
        heading: over the drawing.
        caption: under all.
        legend_in: height that is left for it.
        drawing_in: width of the drawing, and where panels stand beside each other; more where the
            title needs it.
    """

    layers: Sequence[str]
    columns: Sequence[Column]
    title: str
    subtitle: str
    heading: str
    caption: str
    legend_in: float = 0.32
    drawing_in: tuple[float, float] = (4.4, 3.1)

    def draw(self, draw_rows: Callable[[Axes], None]) -> Sheet:
        """Draw it on a new figure; the legend has what is labelled.

        Args:
            draw_rows: draws all rows into axes in which row i lies at y = i; those of other panels
                lie outside the axes.
        """
        drawing_in = self._drawing_in
        panel_in = self._panel_in + drawing_in
        width = len(self.panels) * (panel_in + _PANEL_GAP_IN) - _PANEL_GAP_IN + 2 * EDGE_IN
        named = f" One layer in {self.every} is named." if self.every > 1 else ""
        page = style.sheet(width, self.legend_at[1] + self.legend_in, title=self.title,
                           subtitle=self.subtitle, caption=self.caption + named)
        for i, panel in enumerate(self.panels):
            left = EDGE_IN + i * (panel_in + _PANEL_GAP_IN)
            high = self.row_in * (panel.stop - panel.start)
            frame = page.axes(left, _HEAD_IN, panel_in, high)
            frame.set_axis_off()
            frame.set_xlim(0, panel_in)
            drawing = page.axes(left + self._left_in, _HEAD_IN, drawing_in, high)
            drawing.patch.set_visible(False)
            style.strip_axes(drawing, keep=())
            for axes in (frame, drawing):
                axes.set_ylim(panel.stop - 0.5, panel.start - 0.5)
            drawing.set_yticks([])
            self._draw_names(frame, panel)
            self._draw_columns(frame, panel, self._left_in + drawing_in)
            draw_rows(drawing)
        page.legend(*self.legend_at)
        return page

    @property
    def legend_at(self) -> tuple[float, float]:
        """The left upper corner of the legend, in inches."""
        return EDGE_IN + self._left_in, _HEAD_IN + self._most_rows * self.row_in + _TICKS_IN

    @property
    def crowded(self) -> bool:
        """Whether not every row has a name."""
        return are_crowded(len(self.layers))

    @cached_property
    def names(self) -> RowNames:
        """The labels."""
        return row_names(self.layers, by_block=not self.crowded)

    @cached_property
    def panels(self) -> list[slice]:
        """The rows of each panel."""
        return panels_of(row_names(self.layers))

    @property
    def _most_rows(self) -> int:
        """Of a panel."""
        return max(int(panel.stop - panel.start) for panel in self.panels)

    @cached_property
    def row_in(self) -> float:
        """Height of a row."""
        most = self._most_rows
        return min(_TALLEST_ROW_IN, max(_NAMED_ROW_IN, _ROOMY_IN / most), _TALLEST_IN / most)

    @property
    def every(self) -> int:
        """One row in so many is named."""
        return math.ceil(_NAMED_ROW_IN / self.row_in) if self.crowded else 1

    @cached_property
    def _size(self) -> float:
        return min(style.LABEL, 72 * self.row_in * self.every * 0.83)

    @property
    def _prefix(self) -> str:
        prefix = self.names.prefix[:-1]
        return f"all in {style.elide(prefix, 34)}" if prefix else ""

    @cached_property
    def _left_in(self) -> float:
        """Width of the names, from a panel's left edge to its drawing."""
        names_in = style.text_width(self.names.names, self._size)
        if any(self.names.blocks):
            names_in += style.text_width(self.names.blocks, self._size) + 0.2
        return max(names_in, style.text_width([self._prefix], style.SMALL)) + _NAME_GAP_IN

    @cached_property
    def _columns_in(self) -> list[float]:
        return [column.width_in(min(self._size, style.SMALL)) for column in self.columns]

    @property
    def _panel_in(self) -> float:
        """Width of a panel without its drawing."""
        return self._left_in + sum(self._columns_in) + _COLUMN_GAP_IN * len(self.columns)

    @property
    def _drawing_in(self) -> float:
        panels = len(self.panels)
        title_in = style.text_width([self.title], style.TITLE, "bold")
        widest = 1.05 * max(title_in, style.text_width([self.subtitle], style.SUBTITLE))
        inner = max(_NARROWEST_IN - 2 * EDGE_IN, widest) - (panels - 1) * _PANEL_GAP_IN
        return max(self.drawing_in[panels > 1], inner / panels - self._panel_in)

    def _draw_names(self, ax: Axes, panel: slice) -> None:
        """Bands behind blocks, the names and the headings; the horizontal unit is the inch."""
        names, band = self.names, False
        style.note(ax, self._prefix, (0, 1), (0, 5), ("data", "axes fraction"))
        style.note(ax, self.heading, (self._left_in, 1), (0, 5), ("data", "axes fraction"))
        for row in range(panel.start, panel.stop):
            starts, block = names.starts_block(row), names.blocks[row]
            band ^= starts and bool(block)
            if band and block:
                ax.axhspan(row - 0.5, row + 0.5, color=BAND, linewidth=0, zorder=0)
            if block and (starts or row == panel.start):
                self._text(ax, (0.06, row), block, ha="left")
            if (row - panel.start) % self.every == 0:
                self._text(ax, (self._left_in - _NAME_GAP_IN, row), names.names[row])

    def _draw_columns(self, ax: Axes, panel: slice, right: float) -> None:
        for column, width in zip(self.columns, self._columns_in, strict=True):
            right += _COLUMN_GAP_IN + width
            texts_right, bar = right, column.lengths is not None
            style.note(ax, column.heading, (right - width if bar else right, 1), (0, 5),
                       ("data", "axes fraction"), ha="left" if bar else "right")
            if column.lengths is not None:
                ends = right - _BAR_IN * (1 - np.nan_to_num(column.lengths[panel]))
                style.bars(ax, range(panel.start, panel.stop), right - _BAR_IN, ends, 0.62,
                           color=ALARM if column.alarm else RULE)
                texts_right -= _BAR_IN + _BAR_GAP_IN
            for row in range(panel.start, panel.stop, self.every):
                strong = column.strong is None or column.strong[row]
                self._text(ax, (texts_right, row), column.texts[row], most=style.SMALL,
                           color=MUTED if not strong else ALARM if column.alarm else INK)

    def _text(
        self, ax: Axes, at: tuple[float, float], text: str, *, ha: str = "right",
        most: float = style.LABEL, color: str = INK,
    ) -> None:
        if text:
            ax.text(*at, text, fontsize=min(self._size, most), ha=ha, va="center_baseline",
                    color=color, parse_math=False)
