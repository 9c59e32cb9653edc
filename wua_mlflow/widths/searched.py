"""What a search found: the result types.

Imports the standard library only. Tests: ``tests/widths/test_search.py``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

__all__ = ["SearchResult", "Trial", "listed"]


@dataclass(frozen=True)
class Trial:
    """Widths that were trained, and their verdict against the original on validation data.

    ``outcome`` is ``original`` for the original's own; ``score`` the mean validation score.
    """

    widths: tuple[int, ...]
    cost: float
    outcome: str
    delta: float
    low: float
    high: float
    score: float


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        widths: the cheapest ones that hold; the original's, where none do.
        trials: in the order they were trained, the original first.
        stopped: ``budget`` or ``converged``.
        note: what else there is to know, in a line; why none hold, where that is so.
        margin: that was judged by.
        rule: ``non_inferior`` or ``mean``.
    """

    widths: tuple[int, ...]
    trials: tuple[Trial, ...]
    stopped: str
    note: str
    margin: float
    rule: str

    @property
    def looks(self) -> int:
        """How many candidates were judged: the winner is to be confirmed on other data."""
        return len(self.trials) - 1

    def table(self) -> str:
        """The trials as a table in markdown."""
        lines = ["| widths | cost | mean score | difference (interval) | outcome |",
                 "|---|---:|---:|---:|---|"]
        lines += [f"| {listed(one.widths)} | {one.cost:,.0f} | {one.score:.4f} "
                  f"| {one.delta:+.4f} ({one.low:+.4f} to {one.high:+.4f}) | {one.outcome} |"
                  for one in self.trials]
        return "\n".join([*lines, *(["", f"- {self.note}"] if self.note else [])])

    def to_json(self) -> str:
        """All of it."""
        return json.dumps({**asdict(self), "looks": self.looks}, indent=1)


def listed(widths: Sequence[int]) -> str:
    """Widths as they are written in a setting.

    >>> listed((64, 32))
    '64,32'
    """
    return ",".join(map(str, widths))
