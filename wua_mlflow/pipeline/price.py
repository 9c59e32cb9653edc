"""What a pipeline costs, said before it is spent; and the cheap plan, where that is too much.

Tests: ``tests/pipeline/test_price.py``; the numbers of trainings: ``benchmarks/search.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from wua_mlflow.config import Settings
from wua_mlflow.pipeline.allowance import HOUR_S
from wua_mlflow.pipeline.target_widths import chosen_method
from wua_mlflow.progress import duration
from wua_mlflow.verdict.inputs import FEWEST_SEEDS
from wua_mlflow.what_to_cut import WhatToCut

__all__ = ["Price", "cheap_plan", "price_of", "price_of_cuts"]


_TO_FIND = {"search": (9, 22), "rank": (2, 12)}
"""Trainings of a method: nine in ten searches lie between (``benchmarks/search.py``); of ``rank``
one to six widths of two networks."""


@dataclass(frozen=True)
class Price:
    """What is left to train once one network of the original is.

    Attributes:
        parts: the fewest and the most trainings, by what they are for.
        seconds: that one training of the original took.
        limit: seconds that the plan may take.
        each: how that training compares with those to come.
    """

    parts: Mapping[str, tuple[int, int]]
    seconds: float
    limit: float
    each: str = "of at most"

    @property
    def trainings(self) -> int:
        """About how many: the middle between the fewest and the most."""
        return round(sum(fewest + most for fewest, most in self.parts.values()) / 2)

    @property
    def total_seconds(self) -> float:
        """As if each took as long as the original's, which is wider."""
        return self.trainings * self.seconds

    @property
    def affordable(self) -> bool:
        """Whether it is within the limit."""
        return self.total_seconds <= self.limit

    @property
    def line(self) -> str:
        """The plan in a line.

        >>> Price({"of the slim network": (5, 20)}, 2.0, 3600).line
        'about 12 trainings of at most 2 s, 24 s in all: 5 to 20 of the slim network'
        """
        parts = ", ".join(f"{fewest if fewest == most else f'{fewest} to {most}'} {what}"
                          for what, (fewest, most) in self.parts.items() if most)
        return (f"about {self.trainings} trainings {self.each} {duration(self.seconds)}, "
                f"{duration(self.total_seconds)} in all: {parts}")

    def ends(self, settings: Settings) -> str:
        """When it ends at the latest, and how to give it more time.

        Args:
            settings: those in force.
        """
        if not math.isfinite(self.limit):
            return ""
        end = "at most" if self.affordable else "what is there is judged after"
        longer = settings.within(60 * math.ceil(max(self.total_seconds, self.limit) / 30))
        return (f"; {end} {duration(self.limit)} for search and seeds together (more: --limit "
                f"{longer.limit})")

    @property
    def question(self) -> str:
        """Whether to carry it out although it is too much."""
        return (f"{duration(self.total_seconds)} is more than the {duration(self.limit)} that it "
                f"may take unasked. Do all of it? Else one network is trained, and only the two "
                f"models are compared")

    def instead(self, run_id: str, planned: Settings, cheap: Settings) -> str:
        """What is done where it is too much, and the command that does the whole.

        The command allows for twice the time.

        Args:
            run_id: of the original.
            planned: the settings of the whole.
            cheap: those of what is done.
        """
        longer = planned.within(max(1, round(2 * self.total_seconds)))
        what = "" if planned.what == str(WhatToCut()) else f" --what {planned.what}"
        once = "the network is cut and fine-tuned once" if cheap.how == "prune" else \
            "one narrower network is trained"
        return (f"{duration(self.total_seconds)} is more than it may take unasked "
                f"({duration(self.limit)}), so {once}, and the two models are compared; all of it, "
                f"with the recipe verdict: wua slim --run-id {run_id} --how {planned.how}{what} "
                f"--seeds {planned.seeds} --limit {longer.limit}")


def price_of(settings: Settings, seconds: float, *, trained: int = 1) -> Price:
    """The price of what the settings leave to train.

    Args:
        settings: of the pipeline; ``how`` is not auto.
        seconds: that one training of the original took.
        trained: networks of the original that there are.
    """
    few, most = settings.first_seeds, settings.most_seeds
    method = chosen_method(settings)
    found = _TO_FIND.get(method, (0, 0)) if few >= FEWEST_SEEDS else (0, 0)
    ahead = any(found) and settings.how == "rebuild"
    parts = {"more of the original": (max(0, few - trained), max(0, most - trained)),
             "to find the widths": found,
             "of the slim network": (most if ahead else few, most)}
    return Price(parts, seconds, settings.search_seconds or HOUR_S)


def price_of_cuts(settings: Settings, seconds: float, *, ways: int, limit: float) -> Price:
    """The price of slimming a network that was trained elsewhere.

    Args:
        settings: of the step.
        seconds: that one training took.
        ways: in which each of the slim variant's networks is fine-tuned (``fold``).
        limit: seconds that all of it may take.
    """
    few, most = settings.first_seeds, settings.most_seeds
    found = _TO_FIND.get(chosen_method(settings), (0, 0))
    if few < FEWEST_SEEDS:  # one network of each width
        found = (1, settings.search_runs - 1) if chosen_method(settings) == "search" else (0, 0)
    ahead = any(found) and few >= FEWEST_SEEDS
    parts = {"to find the widths": found,
             "of the slim network": (ways * (most if ahead else few), ways * most),
             "of the original, trained on": (few, few)}
    return Price(parts, seconds, limit, each="of about")


def cheap_plan(settings: Settings, asked: Settings) -> Settings:
    """One network, cut to what ``rank`` recommends and fine-tuned, where nothing else was asked.

    Args:
        settings: of the pipeline.
        asked: the same, before ``how`` was decided.
    """
    changes: dict[str, object] = {"seeds": 1}
    if asked.how == "auto":
        changes["how"] = "prune"
    if settings.width_method in ("auto", "search"):
        changes["slim_hidden"] = "rank"
    return settings.model_copy(update=changes)
