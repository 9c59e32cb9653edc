"""How large a test set must be for any claim at a margin, before anything is trained.

May import: ``intervals``, ``settling``. Tests: ``tests/test_settling.py``,
``tests/test_verdict.py``.
"""

from __future__ import annotations

import math
from numbers import Real

from wua_mlflow import intervals, settling

__all__ = ["check_share", "required_examples_without_discordance", "too_small"]


def check_share(name: str, value: float, *, zero: bool) -> None:
    """Raise unless 0 < ``value`` < 1 (0 included if ``zero``)."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not (0 < value < 1 or (zero and value == 0)):
        raise ValueError(
            f"{name}: expected a number in {'[' if zero else '('}0, 1), but got {value!r}"
        )


def required_examples_without_discordance(margin: float, confidence: float = 0.95) -> int:
    """The fewest examples on which two models that never differ are shown non-inferior.

    Tango's lower limit without discordant pairs is −z²/(n + z²), so n > z²(1 − margin)/margin.

    Args:
        margin: in (0, 1), as a fraction.
        confidence: of the two-sided interval, in (0, 1).

    Raises:
        ValueError: an argument outside these.

    >>> required_examples_without_discordance(0.01)
    381
    """
    check_share("margin", margin, zero=False)
    check_share("confidence", confidence, zero=False)
    return settling.unseen_examples(margin, span=1.0, confidence=confidence)


def too_small(examples: int, margin: float, confidence: float = 0.95) -> str | None:
    """Whether a test set is too small to show that two models that never differ are as good.

    Args:
        examples: in the test set.
        margin: in [0, 1), as a fraction.
        confidence: of the two-sided interval, in (0, 1).

    Returns:
        One line that says how large it must be; None where it is large enough.

    Raises:
        ValueError: an argument outside these.

    >>> too_small(381, 0.01)
    >>> too_small(300, 0.01).partition(", but got ")[2]
    '300; take more, or a margin of at least 0.0127'
    """
    check_share("margin", margin, zero=True)
    check_share("confidence", confidence, zero=False)
    if margin == 0:
        return ("margin: expected above 0, since at 0 no test set is large enough to show that two "
                "equal models are, but got 0")
    required = required_examples_without_discordance(margin, confidence)
    if examples >= required:
        return None
    reach = intervals.unseen_reach(examples, confidence=confidence)
    digits = 2 - math.floor(math.log10(reach))
    return (f"test data: expected at least {required:,} examples to show even of equal models "
            f"that they are within a margin of {margin:g}, but got {examples:,}; take more, or a "
            f"margin of at least {math.ceil(reach * 10**digits) / 10**digits:g}")
