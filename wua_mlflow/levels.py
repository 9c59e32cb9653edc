"""What a margin and a confidence may be: one rule, for settings and for ``wua.compare``.

Tests: ``tests/test_levels.py``.
"""

from __future__ import annotations

__all__ = [
    "CONFIDENCE_RANGE", "LEAST_CONFIDENCE", "LEAST_MARGIN", "MARGIN_RANGE", "MOST_CONFIDENCE",
    "is_confidence", "is_margin",
]


LEAST_MARGIN = 1e-12
"""No test set could show less; 0 is a margin too."""

LEAST_CONFIDENCE, MOST_CONFIDENCE = 1e-9, 1 - 1e-9
"""Beyond these quantiles are lost to rounding."""

MARGIN_RANGE = "0 or a number from 1e-12 to below 1"
CONFIDENCE_RANGE = "a number from 1e-9 to 1 - 1e-9"


def is_margin(value: float) -> bool:
    """Whether it is 0, or from ``LEAST_MARGIN`` to below 1.

    >>> is_margin(0.0), is_margin(1e-13), is_margin(1.0)
    (True, False, False)
    """
    return value == 0 or LEAST_MARGIN <= value < 1


def is_confidence(value: float) -> bool:
    """Whether it is from ``LEAST_CONFIDENCE`` to ``MOST_CONFIDENCE``.

    >>> is_confidence(0.95), is_confidence(1 - 1e-12)
    (True, False)
    """
    return LEAST_CONFIDENCE <= value <= MOST_CONFIDENCE
