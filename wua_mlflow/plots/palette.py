"""Colours of the pictures, and of the runs in MLflow's charts; safe for colour-blind readers.

Imports nothing. Test: ``tests/plots/test_comparison.py``.
"""

from __future__ import annotations

__all__ = ["VARIANT_COLOURS", "variant_colour"]

VARIANT_COLOURS = {
    "oversized": "#5b7c99",
    "oversized-same-budget": "#a9bccd",
    "slim": "#d95f02",
    "from-scratch": "#4d3b6b",
}
"""Colour of each ``wua.variant``; the original and its control of equal budget share a hue."""

_LATER_ROUNDS = ("#a6430a", "#f0a35e", "#7a3b12")

INK = "#23282d"
MUTED = "#68717a"
RULE = "#c9ced3"
MEASURED = "#5b7c99"
INSIDE, OUTSIDE = "#b4c6d6", "#4a6f92"
"""Bars of a measure that lies inside, or outside, the range of its null."""
NULL_RANGE = "#e0a020"
BAND = "#f3f5f7"
"""Behind every second block of rows."""
UNIT_COLOURS, NO_IMPORTANCE = "viridis", "#d62728"
"""Matplotlib's map of unit importance, uniform to the eye, and a colour that is far from all of it
for colour-blind readers too."""
ALARM = "#c0271d"
"""What has no importance at all, or is dead."""
STRONG_WEIGHT = "#d62728"
WEAK_WEIGHT = "#b9bfc5"
NODE = "#ffffff"
WITHIN_MARGIN = "#e6f0e4"


def variant_colour(variant: str) -> str:
    """Colour of a variant; ``slim-2``, ``slim-3`` … are shades of the slim one's.

    Args:
        variant: a value of the tag ``wua.variant``.

    Returns:
        A colour as ``#rrggbb``; grey for a variant that the palette does not know.

    >>> variant_colour("slim")
    '#d95f02'
    """
    if variant in VARIANT_COLOURS:
        return VARIANT_COLOURS[variant]
    base, _, number = variant.rpartition("-")
    if base == "slim" and number.isdigit():
        return _LATER_ROUNDS[int(number) % len(_LATER_ROUNDS)]
    return MUTED
