"""What a report holds, and the blocks that its sections are made of; an empty block is false.

Tests: ``tests/report/test_render.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wua_mlflow.plots.comparison import savings
from wua_mlflow.results import Comparison, Round, TargetWidths
from wua_mlflow.tracking.names import Metric
from wua_mlflow.usage.results import ModelUsage
from wua_mlflow.verdict.decision import decision_sentence, size_gain
from wua_mlflow.verdict.decision import latency_gain as latency_words
from wua_mlflow.verdict.text import margin_words
from wua_mlflow.widths.results import LayerChange

__all__ = ["Block", "Bullets", "Picture", "Report", "Section", "Table", "Text"]


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    words: str

    def __bool__(self) -> bool:
        return bool(self.words)


@dataclass(frozen=True)
class Bullets:
    """Points of a list."""

    points: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.points)


@dataclass(frozen=True)
class Table:
    """Rows under a head; the first column is words, the others figures; one row may stand out.

    ``may_be_cut``: whether rows may go where there is little room.
    """

    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    strong: int | None = None
    may_be_cut: bool = True

    def __bool__(self) -> bool:
        return bool(self.rows)


@dataclass(frozen=True)
class Picture:
    """A picture by its key; left out where there is none of that key."""

    key: str
    caption: str


Block = Text | Bullets | Table | Picture


@dataclass(frozen=True)
class Section:
    """Blocks under a title; the first section has none."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Report:
    """Everything that the report says.

    Attributes:
        title: of the pipeline.
        names: of the variants, the original first, the slim one last.
        metrics: by the contract's names, a dict a variant.
        comparison: of the first and the last.
        usages: by variant's name.
        again: how to run it again.
        layers: units by layer, before and after.
        uncut: layers that were not cut, with the reason.
        rounds: all of them, in order.
        ended: why there was no further round, where more were asked for.
        widths: how they were found.
        slimmed_by: how the network was made slim, in sentences.
        measured_on: the device that the latencies are of.
    """

    title: str
    names: Sequence[str]
    metrics: Sequence[Mapping[str, float]]
    comparison: Comparison
    usages: Mapping[str, ModelUsage] = field(default_factory=dict)
    again: str = ""
    layers: Sequence[LayerChange] = ()
    uncut: Mapping[str, str] = field(default_factory=dict)
    rounds: Sequence[Round] = ()
    ended: str = ""
    widths: TargetWidths | None = None
    slimmed_by: str = ""
    measured_on: str = ""

    @property
    def headline(self) -> str:
        """The verdict in a line, with its interval; the recipe's where there is one."""
        return self.comparison.verdict.headline

    @property
    def in_short(self) -> str:
        """The verdict for who has to decide: quality, what is saved, how the original does if it is
        trained for as long.
        """
        return " ".join(filter(None, (self.decision, self.comparison.equal_budget)))

    @property
    def decision(self) -> str:
        """The beginning of ``in_short``: quality and what is saved."""
        original, slim = self.metrics[0], self.metrics[-1]
        size = size_gain(original.get(Metric.SIZE_BYTES), slim.get(Metric.SIZE_BYTES))
        gains = list(filter(None, (self.latency_gain, size)))
        ratios = [(self.comparison.ratios.get(name, 1.0), what) for name, what in (
            (Metric.FLOPS_RATIO, "FLOPs"), (Metric.PARAMS_RATIO, "parameters"))]
        decision = decision_sentence(self.comparison.verdict, gains, *max(ratios),
                                     artifact=self.comparison.artifact,
                                     equal_budget=self.comparison.equal_budget_outcome)
        return " ".join(filter(None, (self.comparison.constant, decision)))

    @property
    def latency_gain(self) -> tuple[str, bool] | None:
        """The latency against the original's in words, and whether it is a gain."""
        original, slim = self.metrics[0], self.metrics[-1]
        return latency_words(original.get(Metric.LATENCY_P50), slim.get(Metric.LATENCY_P50),
                             self.comparison.latency_ratio)

    @property
    def asked(self) -> str:
        """The question."""
        return (f"Is {self.names[-1]} as good as {self.names[0]}, to within "
                f"{margin_words(self.comparison.verdict)}, and what does it save?")

    @property
    def saved(self) -> str:
        """What the slim model saves, or costs more, in one sentence."""
        words = savings(self.metrics[0], self.metrics[-1], self.comparison.latency_ratio)
        return f"The slim model: {words}." if words else "The slim model saves nothing."
