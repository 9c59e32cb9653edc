"""What a report's section is made of; ``markup.py`` writes it as markdown and HTML.

Imports the standard library only. Tests: ``tests/pipeline/test_report.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Block", "Bullets", "Picture", "Section", "Table", "Text"]


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    words: str


@dataclass(frozen=True)
class Bullets:
    """Points of a list."""

    points: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Rows under a head; the first column is words, the others figures; one row may stand out.

    ``may_be_cut``: whether rows may go where there is little room.
    """

    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    strong: int | None = None
    may_be_cut: bool = True


@dataclass(frozen=True)
class Picture:
    """A picture by its key; left out where there is none of that key."""

    key: str
    says: str


Block = Text | Bullets | Table | Picture


@dataclass(frozen=True)
class Section:
    """Blocks under a title; the first section has none."""

    title: str
    blocks: tuple[Block, ...]
