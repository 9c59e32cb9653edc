"""The result types: a width for each group of units, and the curve that it was read from.

Imports the standard library only. Tests: ``tests/widths/test_recommendation.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

__all__ = ["Curve", "LayerWidth", "SearchResult", "Trial", "WidthRecommendation", "listed"]


@dataclass(frozen=True)
class Curve:
    """What a width was read from: a point a width that was looked at, ascending.

    Attributes:
        widths: units kept.
        scores: one a width, the mean score where the method has one; ``axis`` says what it is.
        baseline: the score of all units.
        threshold: the width is the smallest one from which on all scores reach it.
        axis: what the scores are.
    """

    widths: tuple[int, ...]
    scores: tuple[float, ...]
    baseline: float
    threshold: float
    axis: str


@dataclass(frozen=True)
class LayerWidth:
    """The width of one group of units.

    Attributes:
        layer: the layer that makes the units.
        units: how many there are.
        width: how many are recommended.
        curve: of this group alone.
        alone: the width where every other group keeps all its units; ``width`` is larger where the
            groups' losses add up to more than the margin.
        layers: all layers whose outputs these units are.
    """

    layer: str
    units: int
    width: int
    curve: Curve
    alone: int
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class WidthRecommendation:
    """Widths by one method.

    Attributes:
        method: its name.
        margin: how much of the score may be lost.
        layers: one a group of units, in the model's order.
        joint: for methods that try all groups at once: the value against the units kept in all.
        skipped: groups and layers that have no width, with the reason.
        note: what else there is to know, in one line.
    """

    method: str
    margin: float
    layers: tuple[LayerWidth, ...]
    joint: Curve | None
    skipped: Mapping[str, str]
    note: str = ""

    @property
    def widths(self) -> dict[str, int]:
        """The widths by the name of the layer that makes the units."""
        return {one.layer: one.width for one in self.layers}

    def table(self) -> str:
        """The widths as a table in markdown, with what was skipped below it.

        >>> curve = Curve((3, 8), (0.9, 0.9), 0.9, 0.88, "accuracy")
        >>> print(WidthRecommendation("ablation", 0.02, (
        ...     LayerWidth("fc1", 8, 3, curve, 3),), None, {"fc2": "the output layer"}).table())
        | layer | units | width | alone | read from |
        |---|---|---|---|---|
        | fc1 | 8 | 3 | 3 | accuracy 0.9000 at 3 of 8 (all: 0.9000, at least 0.8800) |
        <BLANKLINE>
        - fc2: no width (the output layer)
        """
        lines = ["| layer | units | width | alone | read from |", "|---|---|---|---|---|"]
        lines += [f"| {one.layer} | {one.units} | {one.width} | {one.alone} | {_read(one)} |"
                  for one in self.layers]
        notes = [self.note] if self.note else []
        notes += [f"{name}: no width ({why})" for name, why in self.skipped.items()]
        return "\n".join([*lines, *([""] if notes else []), *(f"- {note}" for note in notes)])

    def to_json(self) -> str:
        """All of it, curves too, for an artifact.

        >>> WidthRecommendation("rank", 0.02, (), None, {"fc2": "why"}).to_json().splitlines()[1]
        ' "method": "rank",'
        """
        return json.dumps({**asdict(self), "skipped": dict(self.skipped), "widths": self.widths},
                          indent=1)


def _read(one: LayerWidth) -> str:
    curve = one.curve
    found = dict(zip(curve.widths, curve.scores, strict=True)).get(one.alone)
    value = "" if found is None else f" {found:.4f} at {one.alone} of {one.units}"
    return (f"{curve.axis}{value} (all: {curve.baseline:.4f}, at least {curve.threshold:.4f})")


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
