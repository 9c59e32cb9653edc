"""Words of anybody's as markdown that says them, and does nothing else.

Names of layers, columns, classes and data sets come from data and from the user; a page that shows
them renders no tag, link, image or table of theirs. Tests: ``tests/report/test_escaping.py``.
"""

from __future__ import annotations

import re

from wua_mlflow.errors import printable

__all__ = ["markdown_cell", "markdown_text"]

_ENTITIES = {"<": "&lt;", ">": "&gt;", "`": "&#96;"}
_SPECIAL = re.compile(r"[\\*\[\]<>`~|]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)")
_BLOCK = re.compile(r"^(?:[#+=-]|\d{1,9}[.)](?=\s|$))")
"""What would begin a heading, a list or a rule."""


def markdown_text(words: str) -> str:
    r"""A paragraph or a point of a list, in one line; text in backticks stays code.

    >>> print(markdown_text("run `wua run` on <b>a_b</b> [x](javascript:y)"))
    run `wua run` on &lt;b&gt;a_b&lt;/b&gt; \[x\](javascript:y)
    >>> print(markdown_text("# _a_ `b"))
    \# \_a\_ &#96;b
    """
    parts = re.split(r"`([^`]+)`", printable(words))
    text = "".join(f"`{part}`" if place % 2 else _SPECIAL.sub(_escaped, part)
                   for place, part in enumerate(parts))
    return _BLOCK.sub(lambda match: f"{match[0][:-1]}\\{match[0][-1]}", text)


def markdown_cell(words: str) -> str:
    r"""The cell of a table; a backtick is one like any other character.

    >>> print(markdown_cell("a|b `c`"))
    a\|b &#96;c&#96;
    """
    return _SPECIAL.sub(_escaped, printable(words))


def _escaped(match: re.Match[str]) -> str:
    return _ENTITIES.get(match[0]) or ("&amp;" if match[0] == "&" else f"\\{match[0]}")
