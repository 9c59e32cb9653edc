"""How a result shows itself: aligned text in a terminal, a table of HTML in a notebook.

No text is longer than a screen. Imports the standard library only.
Tests: ``tests/test_display.py``.
"""

from __future__ import annotations

import html
import importlib
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "LINE", "Displayed", "Summary", "short_name", "summary_html", "summary_text", "table_text",
]


SCREEN_LINES, LINE = 40, 100
"""The most lines of a result's text, and where its sentences are broken."""
_MOST_ROWS, _MOST_NOTE_LINES, _LONGEST_NAME = 26, 8, 44
_GAP = "⋮"
"""In place of the rows that are left out."""


@dataclass(frozen=True)
class Summary:
    """What a result shows: a first line, a table, and notes under it.

    Attributes:
        title: a sentence.
        head: names of the columns; no line of them, where all are "".
        rows: a text for each column; a column without any text is left out.
        totals: last rows, apart from the others.
        notes: a sentence each.
        names: how many columns, from the left, hold words; the others hold figures.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    totals: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()
    names: int = 1

    def fitted(self, *, whole: bool = False) -> Summary:
        """Only columns with a text; long names cut and rows left out, unless it is the whole."""
        used = [i for i, _ in enumerate(self.head)
                if i == 0 or any(row[i] for row in (*self.rows, *self.totals))]
        def name(words: str) -> str:
            return " ".join(words.split()) if whole else short_name(words)

        rows, totals = ([[name(row[0]), *(row[i] for i in used[1:])] for row in part]
                        for part in (self.rows, self.totals))
        if len(rows) > _MOST_ROWS and not whole:
            half = (_MOST_ROWS - 1) // 2
            left_out = f"{_GAP} {len(rows) - 2 * half:,} more"
            rows = [*rows[:half], [left_out, *([_GAP] * (len(used) - 1))], *rows[-half:]]
        return replace(self, head=[self.head[i] for i in used], rows=rows, totals=totals)


class Displayed:
    """A result that shows itself, by its ``summary``; its picture is ``plots/result.py``'s."""

    def summary(self) -> Summary:
        """What is shown of it."""
        raise NotImplementedError

    def __str__(self) -> str:
        """The figures as aligned text, no longer than a screen."""
        return summary_text(self.summary())

    def __repr__(self) -> str:
        """The same as ``str``: what the prompt shows is for reading."""
        return str(self)

    def _repr_html_(self) -> str:
        """For notebooks."""
        return summary_html(self.summary())

    def plot(self) -> Figure:
        """Its picture, a figure of matplotlib, which is imported only now."""
        plots = importlib.import_module("wua_mlflow.plots.result")  # pictures stand above results
        return plots.plot_result(self)  # type: ignore[no-any-return]


def summary_text(summary: Summary, *, whole: bool = False) -> str:
    """As aligned text, no longer than a screen unless it is to be the whole.

    >>> print(summary_text(Summary("Two layers.", ("layer", "units", "dead"), [
    ...     ("fc1", "1,000", ""), ("fc2", "10", "")], [("all", "1,010", "")], ["fc3: why"])))
    Two layers.
    layer  units
    fc1    1,000
    fc2       10
    ------------
    all    1,010
    fc3: why
    """
    fitted = summary.fitted(whole=whole)
    heads = [fitted.head] if any(fitted.head) else []
    right = [column >= fitted.names for column in range(len(fitted.head))]
    table = table_text([*heads, *fitted.rows, *fitted.totals], right).splitlines()
    if fitted.totals:
        table.insert(-len(fitted.totals), "-" * max(map(len, table)))
    notes = [line for note in fitted.notes for line in _broken(note)]
    if len(notes) > _MOST_NOTE_LINES and not whole:
        notes = [*notes[:_MOST_NOTE_LINES - 1], "…"]
    return "\n".join([*_broken(fitted.title), *table, *notes])


def summary_html(summary: Summary) -> str:
    """As a table of HTML in the form that notebooks give to pandas'; all text is escaped.

    >>> "<b>" in summary_html(Summary("<b>", ("<b>",), [("<b>",)], [("<b>",)], ("<b>",)))
    False
    """
    fitted = summary.fitted()

    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(
            f'<{tag} style="text-align: {"left" if column < fitted.names else "right"}">'
            f"{html.escape(cell)}</{tag}>" for column, cell in enumerate(cells)) + "</tr>"

    head = f"<thead>{row(fitted.head, 'th')}</thead>" if any(fitted.head) else ""
    body, foot = ("".join(row(cells, tag) for cells in part)
                  for part, tag in ((fitted.rows, "td"), (fitted.totals, "th")))
    table = f'<table class="dataframe">{head}<tbody>{body}</tbody><tfoot>{foot}</tfoot></table>'
    notes = "".join(f"<div>{html.escape(note)}</div>" for note in fitted.notes)
    return f"<div><strong>{html.escape(fitted.title)}</strong></div>{table}{notes}"


def table_text(lines: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    """Lines of cells as columns of text; ``right`` says which columns are aligned to the right.

    >>> print(table_text([("layer", "units"), ("fc1", "10")], (False, True)))
    layer  units
    fc1       10
    """
    lines = [[_in_one_line(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) if to_right else cell.ljust(width)
                  for cell, width, to_right in zip(line, widths, right, strict=True)).rstrip()
        for line in lines)


def _in_one_line(cell: str) -> str:
    """A cell without line breaks and control characters, whoever named what is in it."""
    return cell if cell.isprintable() else "".join(
        character if character.isprintable() else " " if character.isspace() else "\ufffd"
        for character in cell)


def short_name(name: str) -> str:
    """A name on one line, its middle left out where it is long.

    >>> short_name("fc1"), len(short_name("block." * 50))
    ('fc1', 44)
    """
    name = " ".join(name.split())
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:_LONGEST_NAME // 2]}…{name[1 - _LONGEST_NAME // 2:]}"


def _broken(sentence: str) -> list[str]:
    """At most three lines."""
    return textwrap.wrap(sentence, LINE, max_lines=3, placeholder=" …", break_on_hyphens=False)
