"""What a width method finds: a width for each group of units, its curve, and trials of a search.

Plain data. Tests: ``tests/widths/test_results.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from wua_mlflow.display import Displayed, Summary
from wua_mlflow.errors import group_by_reason

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Curve", "LayerChange", "LayerWidth", "SearchResult", "Trial", "WidthRecommendation",
    "comma_separated", "json_fields", "widths_name",
]


_MOST_NAMED = 8
"""Layers whose widths a name gives one by one."""


def widths_name(widths: Sequence[int]) -> str:
    """Widths as part of a run's name; of a deep network equal neighbours together, in few words.

    >>> widths_name((64, 32)), widths_name([4] * 199)
    ('64-32', '4×199')
    >>> widths_name([64, 64, 128, 128, 64, 32, 16, 8, 4, 2])
    '64×2-128×2-64-…-2 (10 layers)'
    """
    if len(widths) <= _MOST_NAMED:
        return "-".join(map(str, widths))
    counted = [(width, len(list(same))) for width, same in groupby(widths)]
    parts = [f"{width}×{count}" if count > 1 else str(width) for width, count in counted]
    if len(parts) <= 4:
        return "-".join(parts)
    return f"{'-'.join(parts[:3])}-…-{parts[-1]} ({len(widths)} layers)"


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
class LayerChange:
    """How many units a layer had and has."""

    layer: str
    before: int
    after: int

    @property
    def share(self) -> float:
        """Units that stay ÷ units before."""
        return self.after / self.before


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


@dataclass(frozen=True, repr=False)
class WidthRecommendation(Displayed):
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

    def summary(self) -> Summary:
        """What is shown of it: a group of units a row.

        >>> curve = Curve((3, 8), (0.9, 0.9), 0.9, 0.88, "accuracy")
        >>> WidthRecommendation("ablation", 0.02, (
        ...     LayerWidth("fc1", 8, 3, curve, 3),), None, {"fc2": "the output layer"})
        Widths by ablation, margin 0.02
        layer  units  width   kept  alone   score  to reach
        fc1        8      3  37.5%      3  0.9000    0.8800
        ---------------------------------------------------
        all        8      3  37.5%
        read from: accuracy
        no width: fc2: the output layer
        """
        units, width = (sum(getattr(layer, name) for layer in self.layers)
                        for name in ("units", "width"))
        totals = [("all", f"{units:,}", f"{width:,}", f"{width / units:.1%}", "", "", "")] \
            if units else []
        axes = {layer.curve.axis.partition(" (")[0]: None for layer in self.layers}
        notes = [f"read from: {axis}" for axis in axes] + ([self.note] if self.note else [])
        margin = f", margin {self.margin:g}" if self.method in _BY_MARGIN else ""
        return Summary(
            f"Widths by {self.method}{margin}",
            ("layer", "units", "width", "kept", "alone", "score", "to reach"),
            [_cells(layer) for layer in self.layers], totals,
            notes + [f"no width: {names}: {why}" for names, why in group_by_reason(self.skipped)])

    def table(self) -> pd.DataFrame:
        """The widths, a group of units a row, with the score that each was read from."""
        import pandas as pd

        rows = [{"layer": layer.layer, "units": layer.units, "width": layer.width,
                 "alone": layer.alone, "score": _score_at(layer), "baseline": layer.curve.baseline,
                 "threshold": layer.curve.threshold, "axis": layer.curve.axis,
                 "layers": ", ".join(layer.layers or (layer.layer,))} for layer in self.layers]
        return pd.DataFrame(rows).set_index("layer") if rows else pd.DataFrame()

    def to_json(self) -> str:
        """All of it, curves too, for an artifact.

        >>> WidthRecommendation("rank", 0.02, (), None, {"fc2": "why"}).to_json().splitlines()[1]
        ' "method": "rank",'
        """
        return json.dumps(json_fields(self), indent=1)


_BY_MARGIN = ("projection", "ablation", "search")
"""Methods that a margin goes into."""


def _score_at(layer: LayerWidth) -> float | None:
    """The score of the group's width alone, where it was tried."""
    return dict(zip(layer.curve.widths, layer.curve.scores, strict=True)).get(layer.alone)


def _cells(layer: LayerWidth) -> list[str]:
    score = _score_at(layer)
    return [layer.layer, f"{layer.units:,}", f"{layer.width:,}",
            f"{layer.width / layer.units:.1%}", f"{layer.alone:,}",
            "" if score is None else f"{score:.4f}", f"{layer.curve.threshold:.4f}"]


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


@dataclass(frozen=True, repr=False)
class SearchResult(Displayed):
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

    def summary(self) -> Summary:
        """What is shown of it: a trial a row, in the order they were trained."""
        rows = [(comma_separated(trial.widths), f"{trial.cost:,.0f}", f"{trial.seeds:,}",
                 f"{trial.score:.4f}", f"{trial.delta:+.4f}",
                 f"{trial.low:+.4f} to {trial.high:+.4f}", trial.outcome) for trial in self.trials]
        return Summary(
            f"Widths {comma_separated(self.widths)}, of {self.looks:,} that were tried, margin "
            f"{self.margin:g}",
            ("widths", "cost", "seeds", "mean score", "difference", "interval", "found"), rows,
            notes=[self.note] if self.note else [])

    def table(self) -> pd.DataFrame:
        """The trials, a row each, in the order they were trained."""
        import pandas as pd

        return pd.DataFrame([{**asdict(trial), "widths": comma_separated(trial.widths)}
                             for trial in self.trials])

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
