"""The user's own parts, each named ``package.module:name``: finding and importing them.

Also what every message about a user's own part needs: the nearest name, an error in one line.
Imports the standard library only. Tests: ``tests/test_dotted.py``.
"""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable, Mapping

__all__ = ["did_you_mean", "group_by_reason", "one_line"]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The end of a message: which of ``names`` was probably meant, or nothing.

    >>> did_you_mean("dgits", ["digits", "wine"])
    "; did you mean 'digits'?"
    """
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def group_by_reason(reasons: Mapping[str, str]) -> list[tuple[str, str]]:
    """Names and the reason that holds for them; names alike but for their numbers are one.

    >>> group_by_reason({"h.0.norm": "a norm", "h.1.norm": "a norm", "head": "the last",
    ...                  "": "a norm"})
    [('h.*.norm (2), the model', 'a norm'), ('head', 'the last')]
    """
    found: dict[str, dict[str, list[str]]] = {}
    for name, reason in reasons.items():
        folded = ".".join("*" if part.isdigit() else part for part in name.split("."))
        found.setdefault(reason, {}).setdefault(folded, []).append(name or "the model")
    return [(", ".join(names[0] if len(names) == 1 else f"{folded} ({len(names)})"
                       for folded, names in alike.items()), reason)
            for reason, alike in found.items()]


def one_line(error: BaseException) -> str:
    r"""Kind and message of ``error`` in one line of at most 300 characters.

    >>> one_line(KeyError("a")), one_line(ValueError("two\n lines")), one_line(EOFError())
    ("KeyError: 'a'", 'ValueError: two lines', 'EOFError')
    """
    message = textwrap.shorten(str(error), 300, placeholder=" …")
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
