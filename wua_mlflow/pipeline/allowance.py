"""The time that search and seeds may take together, of a network that was trained elsewhere.

What its training took is not known, so nothing can be planned before one network was cut and
fine-tuned. From then on the time is shared out: half to the search for widths, of what it leaves a
quarter to the original trained on, the rest to the slim network's seeds.
Tests: ``tests/pipeline/test_allowance.py``.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from wua_mlflow.config import Settings

__all__ = ["FIRST_VERDICT_S", "HOUR_S", "Allowance", "clock", "null_seconds", "seconds_elsewhere"]


HOUR_S = 3600.0
"""What takes longer is not begun unasked."""
FIRST_VERDICT_S = 480.0
"""The same of a network from elsewhere: with the rest a first verdict takes ten minutes."""
SEARCH, CONTROL = 1 / 2, 1 / 4
"""The search's share of the time; the control's of what the search leaves."""
NULLS = 1 / 30
"""The share, beside all that, of the untrained networks of one analysis; there are three."""

clock: Callable[[], float] = time.monotonic
"""Seconds; replaced in tests."""


@dataclass
class Allowance:
    """What may be spent; without ``seconds`` as much as it takes.

    Attributes:
        seconds: for all of it, from now on.
        plan: gives the plan's words, once it is known how many seconds one training takes.
    """

    seconds: float = math.inf
    plan: Callable[[float], str] | None = None
    began: float = field(default_factory=lambda: clock())

    @property
    def left(self) -> float:
        """Seconds, below 0 where it was overdrawn."""
        return self.began + self.seconds - clock()

    @property
    def limited(self) -> bool:
        """Whether there is an end to it."""
        return math.isfinite(self.seconds)

    def timed(self, seconds: float) -> None:
        """Say the plan, once, as one training took so long."""
        if self.plan is not None:
            print(f"wua: plan: {self.plan(seconds)}", file=sys.stderr)
            self.plan = None

    def affords(self, seconds: float, trainings: int, *, share: float = 1.0) -> bool:
        """Whether a share of what is left is enough for so many trainings like the one that took
        ``seconds``."""
        self.timed(seconds)
        return seconds * trainings <= share * self.left


def seconds_elsewhere(settings: Settings) -> float:
    """What may be spent on a network that was trained elsewhere; all of it, if seeds are fixed."""
    return settings.search_seconds or FIRST_VERDICT_S if settings.until_settled else math.inf


def null_seconds(settings: Settings) -> float:
    """What the untrained networks of one of its analyses may take, unless their number is asked."""
    if settings.null_draws != Settings.model_fields["null_draws"].default:
        return math.inf
    return NULLS * (settings.search_seconds or FIRST_VERDICT_S)
