"""How many samples go through a network at once, where the data come whole.

Imports the standard library only. Tests: ``tests/test_chunks.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["rows_at_once"]

MOST_ROWS, MOST_NUMBERS = 1024, 2**22


def rows_at_once(shape: Sequence[int]) -> int:
    """At most 1,024 samples, and at most 4 million numbers in them, but at least one sample.

    Args:
        shape: of the data, (samples, ...).

    >>> rows_at_once((60_000, 784)), rows_at_once((10, 3, 224, 224)), rows_at_once((2, 2**30))
    (1024, 27, 1)
    """
    return max(1, min(MOST_ROWS, MOST_NUMBERS // max(1, math.prod(shape[1:]))))
