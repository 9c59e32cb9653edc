"""What a width method finds: a width for each group of units, its curve, and trials of a search.

Plain data; imports the standard library only. Tests: ``tests/widths/test_results.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = [
    "Curve", "LayerWidth", "SearchResult", "Trial", "WidthRecommendation", "comma_separated",
    "json_fields",
]


@dataclass(frozen=True)
class Curve:
    """The scores of the widths that were tried, from which a width was read; widths ascend.

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
    """The widths that one method recommends.

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
        return {layer.layer: layer.width for layer in self.layers}

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
        lines += [f"| {layer.layer} | {layer.units} | {layer.width} | {layer.alone} "
                  f"| {_read_from(layer)} |" for layer in self.layers]
        notes = [self.note] if self.note else []
        notes += [f"{name}: no width ({reason})" for name, reason in self.skipped.items()]
        return "\n".join([*lines, *([""] if notes else []), *(f"- {note}" for note in notes)])

    def to_json(self) -> str:
        """All of it, curves too, for an artifact.

        >>> WidthRecommendation("rank", 0.02, (), None, {"fc2": "why"}).to_json().splitlines()[1]
        ' "method": "rank",'
        """
        return json.dumps(json_fields(self), indent=1)


def _read_from(layer: LayerWidth) -> str:
    curve = layer.curve
    score = dict(zip(curve.widths, curve.scores, strict=True)).get(layer.alone)
    value = "" if score is None else f" {score:.4f} at {layer.alone} of {layer.units}"
    return f"{curve.axis}{value} (all: {curve.baseline:.4f}, at least {curve.threshold:.4f})"


@dataclass(frozen=True)
class Trial:
    """Networks of other widths that were trained, against the original's, on validation data.

    Attributes:
        widths: of the networks.
        cost: of one, e.g. FLOPs of a forward.
        outcome: ``original`` for the original's own, else ``holds`` or ``fails``.
        delta: mean difference of the score from the original's.
        low: lower limit of its interval, without regard to the search's other looks.
        high: its upper limit.
        score: the mean validation score.
        seeds: how many were trained.
    """

    widths: tuple[int, ...]
    cost: float
    outcome: str
    delta: float
    low: float
    high: float
    score: float
    seeds: int = 1

    @property
    def holds(self) -> bool:
        """Whether these widths may be taken; the original's may."""
        return self.outcome != "fails"


@dataclass(frozen=True)
class SearchResult:
    """The result of a search over widths.

    Attributes:
        widths: the cheapest ones that are as good; the original's, where none are.
        trials: in the order they were trained, the original first.
        stopped: ``budget``, ``interrupted`` (from the keyboard) or ``converged``.
        note: what else there is to know, in a line: what a search that was cut short did not
            try; why none are as good, where that is so.
        margin: that was judged by.
        screened: how many widths got new seeds to see whether they collapse; the last was taken.
        screened_seeds: how many new seeds the widths taken got.
    """

    widths: tuple[int, ...]
    trials: tuple[Trial, ...]
    stopped: str
    note: str
    margin: float
    screened: int = 1
    screened_seeds: int = 0

    @property
    def looks(self) -> int:
        """How many candidates were judged: the winner is to be confirmed on other data."""
        return len(self.trials) - 1

    @property
    def trainings(self) -> int:
        """How many candidates' networks were trained."""
        return sum(trial.seeds for trial in self.trials[1:])

    @property
    def remark(self) -> str:
        """The note, as a sentence, of a search that was cut short or whose networks collapsed.

        >>> SearchResult((8,), (), "budget", "stopped after 1 width", 0.02).remark
        'The search of widths: stopped after 1 width.'
        """
        told = self.note.startswith("stopped") or self.screened > 1
        return f"The search of widths: {self.note}." if told else ""

    def table(self) -> str:
        """The trials as a table in markdown."""
        lines = ["| widths | cost | seeds | mean score | difference (interval) | found |",
                 "|---|---:|---:|---:|---:|---|"]
        lines += [f"| {comma_separated(trial.widths)} | {trial.cost:,.0f} | {trial.seeds} "
                  f"| {trial.score:.4f} "
                  f"| {trial.delta:+.4f} ({trial.low:+.4f} to {trial.high:+.4f}) "
                  f"| {trial.outcome} |" for trial in self.trials]
        return "\n".join([*lines, *(["", f"- {self.note}"] if self.note else [])])

    def to_json(self) -> str:
        """All of it, for an artifact."""
        return json.dumps(json_fields(self), indent=1)


def json_fields(result: WidthRecommendation | SearchResult) -> dict[str, Any]:
    """All of a result as an artifact holds it: its fields, and what follows from them.

    >>> json_fields(SearchResult((8,), (), "budget", "", 0.02))["widths"]
    (8,)
    """
    if isinstance(result, SearchResult):
        return {**asdict(result), "looks": result.looks}
    return {**asdict(result), "skipped": dict(result.skipped), "widths": result.widths}


def comma_separated(widths: Sequence[int]) -> str:
    """Widths as they are written in a setting.

    >>> comma_separated((64, 32))
    '64,32'
    """
    return ",".join(map(str, widths))
