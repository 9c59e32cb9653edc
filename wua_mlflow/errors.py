"""What error messages share: the nearest name, names grouped by reason, an error in one line.

Tests: ``tests/test_errors.py``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

from wua_mlflow.redaction import redacted

__all__ = ["WORDED", "did_you_mean", "group_by_reason", "listed", "one_line", "printable",
           "without_controls"]

WORDED = (ValueError, FileNotFoundError)
"""Kinds of errors whose messages are written for the user."""
LONGEST_MISTAKE = 200


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The end of a message: which of ``names`` was probably meant, or nothing.

    >>> did_you_mean("dgits", ["digits", "wine"])
    "; did you mean 'digits'?"
    """
    if len(name) > LONGEST_MISTAKE:  # difflib takes minutes for a text of a million characters
        return ""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def group_by_reason(reasons: Mapping[str, str]) -> list[tuple[str, str]]:
    """Names and the reason that holds for them; names alike but for their numbers are one.

    >>> group_by_reason({"h.0.norm": "a norm", "h.1.norm": "a norm", "head": "the last",
    ...                  "": "a norm"})
    [('h.*.norm (2), the model', 'a norm'), ('head', 'the last')]
    """
    names_by_reason: dict[str, dict[str, list[str]]] = {}
    for name, reason in reasons.items():
        folded = ".".join("*" if part.isdigit() else part for part in name.split("."))
        names_by_reason.setdefault(reason, {}).setdefault(folded, []).append(name or "the model")
    return [(", ".join(names[0] if len(names) == 1 else f"{folded} ({len(names)})"
                       for folded, names in alike.items()), reason)
            for reason, alike in names_by_reason.items()]


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names in quotes for a message, the first few of many, none of them very long.

    >>> listed(["a", "b", "c"], most=2)
    "'a', 'b' and 1 more"
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    short = [name if len(name) <= 60 else f"{name[:59]}…" for name in names[:most]]
    return ", ".join(map(repr, short)) + more


def one_line(
    error: BaseException, *, limit: int = 300, bare: tuple[type[BaseException], ...] = ()
) -> str:
    r"""Kind and message of ``error`` in one line.

    Args:
        error: any exception.
        limit: the most characters of the line.
        bare: kinds of errors whose message stands alone.

    >>> one_line(KeyError("a")), one_line(ValueError("two\n lines")), one_line(EOFError())
    ("KeyError: 'a'", 'ValueError: two lines', 'EOFError')
    >>> one_line(ValueError("epochs: too many"), limit=10, bare=WORDED)
    'epochs: t…'
    """
    message = printable(str(error))
    kind = "" if message and isinstance(error, bare) else type(error).__name__
    line = ": ".join(filter(None, (kind, message)))
    return line if len(line) <= limit else f"{line[:limit - 1]}…"


def printable(text: str) -> str:
    r"""The text in one line that a terminal shows as it is: no control characters, no password.

    >>> printable("two\n lines"), printable("\x1b[2J\u202ea")
    ('two lines', '\\x1b[2J\\u202ea')
    """
    return without_controls(" ".join(redacted(text).split()))


def without_controls(text: str) -> str:
    r"""The text with its lines as they are, and no other control characters.

    Names of runs and of layers may be anybody's, and could move the cursor or hide what follows.

    >>> without_controls("a  b\n\x1b]0;title\x07")
    'a  b\n\\x1b]0;title\\x07'
    """
    return text if text.isprintable() else "".join(
        character if character == "\n" or character.isprintable() else ascii(character)[1:-1]
        for character in text)
