"""What a pipeline found, as plain data: variants, widths, comparisons, rounds of slimming.

The pipeline makes these; reports, plots and the command line read them. No store, no network.
Tests: ``tests/test_results.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wua_mlflow.config import Settings
from wua_mlflow.tracking.log import verdict_metrics, verdict_tags
from wua_mlflow.tracking.names import Metric, Outcome, Tag
from wua_mlflow.usage.results import ModelUsage
from wua_mlflow.verdict import text
from wua_mlflow.verdict.compare import Verdict
from wua_mlflow.verdict.sample_size import too_few_examples
from wua_mlflow.what_to_cut import ROUNDED_ABOVE, rounded_up
from wua_mlflow.widths.results import (
    Curve,
    LayerWidth,
    SearchResult,
    Trial,
    WidthRecommendation,
    json_fields,
)

__all__ = [
    "ClassControl", "Comparison", "Round", "Slimmed", "TargetWidths", "VariantResult",
    "WidthParameter", "ratios",
]


@dataclass(frozen=True)
class VariantResult:
    """A trained variant: where it came from, how it was trained, and what was measured.

    Attributes:
        run_id: its run.
        experiment_id: the experiment of that run.
        name: with the widths, ``slim 7``.
        kind: ``oversized``, ``slim``, ``slim-2``, ...
        settings: the variant's own.
        tags: of its run.
        metrics: by the contract's names.
        scores: the test score of each seed, the saved network's first.
        training_examples: their number.
        device: that it was trained and timed on.
        threads: of the CPU.
        layer_units: units by layer, as the network's modules say.
        uncut: layers that were not cut, with the reason.
        units_left: by group of a network that was cut.
        model_id: of its LoggedModel, '' where it has none.
    """

    run_id: str
    experiment_id: str
    name: str
    kind: str
    settings: Settings
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    scores: tuple[float, ...]
    training_examples: int
    device: str
    threads: int
    layer_units: Mapping[str, int] = field(default_factory=dict)
    uncut: Mapping[str, str] = field(default_factory=dict)
    units_left: Mapping[str, int] = field(default_factory=dict)
    model_id: str = ""

    @property
    def test_score(self) -> float:
        """The saved network's score on the test part."""
        return self.scores[0]

    @property
    def widths(self) -> tuple[int, ...]:
        """The hidden widths; of a network that was cut, the units left by group."""
        return tuple(map(int, self.tags[Tag.WIDTHS].split(",")))

    @property
    def pretrained(self) -> bool:
        """Whether it was trained elsewhere; nothing is known of that training."""
        return Tag.ADOPTED in self.tags

    @property
    def was_cut(self) -> bool:
        """Whether units were cut from a trained network, rather than a new network trained."""
        return Tag.STRUCTURE in self.tags

    @property
    def epochs_trained(self) -> int:
        """Epochs really trained, fewer where training stopped early; 0 if trained elsewhere."""
        if self.pretrained:
            return 0
        return int(self.tags.get(Tag.EPOCHS_TRAINED, self.settings.epochs))


@dataclass(frozen=True)
class WidthParameter:
    """A width that can be chosen.

    Attributes:
        name: of the group of units, or of the factory's width.
        units: what it is now.
        layers: those that have these units.
        groups: the groups of units that get this width each, where they are several.
        multiple_of: what the width is a multiple of above ``ROUNDED_ABOVE``, where a method finds
            it.
        kind: of the groups, as ``UnitGroup``; not kept in a file, empty of a factory's width.
    """

    name: str
    units: int
    layers: tuple[str, ...]
    groups: tuple[str, ...] = ()
    multiple_of: int = 1
    kind: str = field(default="", compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all groups that get this width."""
        return self.groups or (self.name,)

    @property
    def choice(self) -> dict[str, Any]:
        """What else a file keeps of it, where that is not the default."""
        said = {"groups": self.groups, "multiple_of": self.multiple_of}
        return {name: value for name, value in said.items() if value not in ((), 1)}

    def rounded(self, width: int) -> int:
        """The width as a method may choose it."""
        return rounded_up(width, self.units, self.multiple_of)


@dataclass(frozen=True)
class TargetWidths:
    """The widths of the slim network, and what they were read from.

    Attributes:
        dimensions: what was chosen.
        widths: a number of units for each of them.
        method: ``given``, or the method's name.
        recommendation: of the method, or of the method that a search began with; None where the
            widths were given.
        searched: the networks that a search trained.
    """

    dimensions: tuple[WidthParameter, ...]
    widths: tuple[int, ...]
    method: str
    recommendation: WidthRecommendation | None = None
    searched: SearchResult | None = None

    @property
    def keep(self) -> dict[str, int]:
        """The widths by the group's name."""
        return {name: width
                for parameter, width in zip(self.dimensions, self.widths, strict=True)
                for name in parameter.names}

    @property
    def total(self) -> tuple[int, int]:
        """How many units there are and how many stay, of all groups."""
        counts = [(len(parameter.names) * parameter.units, len(parameter.names) * width)
                  for parameter, width in zip(self.dimensions, self.widths, strict=True)]
        return sum(before for before, _ in counts), sum(after for _, after in counts)

    @property
    def rounding(self) -> str:
        """A sentence, where some of the widths that a method found were rounded up."""
        multiples = {parameter.multiple_of
                     for parameter, width in zip(self.dimensions, self.widths, strict=True)
                     if ROUNDED_ABOVE < width < parameter.units and parameter.multiple_of > 1}
        return "" if self.method == "given" or not multiples else (
            f"Widths above {ROUNDED_ABOVE} units were rounded up to multiples of "
            f"{max(multiples)}.")

    @property
    def screened(self) -> int:
        """How many widths got new seeds to see whether they collapse, these among them."""
        return max(1, self.searched.screened if self.searched else 1)

    def to_json(self) -> str:
        """The artifact ``widths.json``."""
        return json.dumps({
            "method": self.method,
            "widths": [{"name": parameter.name, "layers": parameter.layers,
                        "units": parameter.units, "width": width, **parameter.choice}
                       for parameter, width in zip(self.dimensions, self.widths, strict=True)],
            "recommendation": self.recommendation and json_fields(self.recommendation),
            "search": self.searched and json_fields(self.searched),
        }, indent=1)

    @classmethod
    def from_json(cls, artifact: str) -> TargetWidths:
        """From the artifact."""
        record = json.loads(artifact)
        recommendation, searched = record.get("recommendation"), record.get("search")
        return cls(
            dimensions=tuple(
                WidthParameter(width["name"], width["units"], tuple(width.get("layers", ())),
                               tuple(width.get("groups", ())), width.get("multiple_of", 1))
                for width in record["widths"]),
            widths=tuple(width["width"] for width in record["widths"]),
            method=record["method"],
            recommendation=recommendation and _recommendation(recommendation),
            searched=searched and _search(searched))


def _recommendation(record: Mapping[str, Any]) -> WidthRecommendation:
    joint = record.get("joint")
    layers = (LayerWidth(layer["layer"], layer["units"], layer["width"], _curve(layer["curve"]),
                         layer["alone"], tuple(layer.get("layers", ())))
              for layer in record.get("layers", ()))
    return WidthRecommendation(
        record.get("method", ""), record.get("margin", 0.0), tuple(layers),
        joint and _curve(joint), record.get("skipped", {}), record.get("note", ""))


def _curve(record: Mapping[str, Any]) -> Curve:
    return Curve(tuple(record["widths"]), tuple(record["scores"]), record["baseline"],
                 record["threshold"], record["axis"])


def _search(record: Mapping[str, Any]) -> SearchResult:
    trials = (Trial(**{**trial, "widths": tuple(trial["widths"]),
                       "outcome": _OLD_OUTCOMES.get(trial["outcome"], trial["outcome"])})
              for trial in record.get("trials", ()))
    return SearchResult(
        tuple(record.get("widths", ())), tuple(trials), record.get("stopped", ""),
        record.get("note", ""), record.get("margin", 0.0), screened=record.get("screened", 1),
        screened_seeds=record.get("screened_seeds", 0))


_OLD_OUTCOMES = {"non_inferior": "holds", "inferior": "fails", "inconclusive": "fails"}
"""Of trials in runs of earlier versions, which were verdicts."""


@dataclass(frozen=True)
class ClassControl:
    """Of a class that the slim one loses, what the original with its budget does.

    Attributes:
        name: of the class.
        slim: the change of its recall, of the slim one's networks on average.
        control: the same of the original with the slim one's budget.
        of_training: whether that budget accounts for it: of the change more than half, and of what
            the slim one is behind that original no class is lost.
    """

    name: str
    slim: float
    control: float
    of_training: bool


@dataclass(frozen=True)
class Comparison:
    """What comparing two models on the same test examples found.

    Attributes:
        artifact: verdict on the two saved models.
        recipe: verdict over seeds, where there are enough.
        churn: share of examples whose prediction differs; None for regression.
        worst_class_delta: the largest loss of accuracy within one class; None for regression.
        looks: how many verdicts on this test set the store holds, this one included.
        ratios: original ÷ slim.
        budget: sentences where the two did not train for as long, or are not alike in another way.
        worst_class: the class of ``worst_class_delta``, and how many test examples it has.
        bonferroni: ``verdict`` at the confidence 1 − (1 − c) ÷ looks; None at the first look.
        latency_ratio: original ÷ slim of the median latencies at batch 1, and its interval; None
            where not both were timed.
        timed: by run the latencies that were taken in the same turns.
        equal_budget: what the original scores if it is trained for as long, where it was not.
        equal_budget_outcome: of the slim one's verdict against that original; "" where none is.
        constant: a sentence where the saved slim one answers the same to every test example.
        no_recipe: why there is no recipe verdict, where there is none.
        class_loss: a sentence where single classes lose more than the margin.
        seedless: a sentence where every seed gave the slim one's same network.
        cautions: sentences on data and scores that are too good to be true, or of no use.
        class_control: of the class that is lost most, the original with the slim one's budget.
    """

    artifact: Verdict
    recipe: Verdict | None
    churn: float | None
    worst_class_delta: float | None
    looks: int
    ratios: Mapping[str, float]
    budget: str = ""
    worst_class: str | None = None
    bonferroni: Verdict | None = None
    latency_ratio: tuple[float, float, float] | None = None
    timed: Mapping[str, Mapping[str, float]] = field(default_factory=dict, repr=False)
    equal_budget: str = ""
    equal_budget_outcome: str = ""
    constant: str = ""
    no_recipe: str = text.TOO_FEW_SEEDS
    class_loss: str = ""
    seedless: str = ""
    cautions: tuple[str, ...] = ()
    class_control: ClassControl | None = None

    def metrics_of(self, variant: VariantResult) -> dict[str, float]:
        """A variant's metrics, with the latency that was taken in this comparison's turns."""
        return {**variant.metrics, **self.timed.get(variant.run_id, {})}

    @property
    def notes(self) -> tuple[str, ...]:
        """What the verdict and the count of FLOPs do not say, a sentence each."""
        notes = [self.constant, *self.cautions, self.class_loss, self.seedless]
        if self.looks > 1:
            notes.append(text.looks_sentence(self.looks, self.bonferroni))
        verdict = self.artifact
        if verdict.score == "accuracy":
            too_few = too_few_examples(verdict.examples, verdict.margin, verdict.confidence)
            notes += [f"{too_few[:1].upper()}{too_few[1:]}."] if too_few else []
        flops = self.ratios.get(Metric.FLOPS_RATIO, 1.0)
        notes.append(text.latency_unlike_flops(flops, self.latency_ratio))
        return tuple(filter(None, notes))

    @property
    def verdict(self) -> Verdict:
        """The recipe's verdict where there is one, else the artifact's."""
        return self.recipe or self.artifact

    @property
    def metrics(self) -> dict[str, float]:
        """Under the contract's names."""
        metrics = {**verdict_metrics(self.artifact), **self.ratios, Metric.LOOKS: self.looks}
        if self.recipe:
            metrics |= verdict_metrics(self.recipe)
        if self.churn is not None:
            metrics[Metric.CHURN] = self.churn
        if self.worst_class_delta is not None:
            metrics[Metric.WORST_CLASS_DELTA] = self.worst_class_delta
        if self.latency_ratio is not None:
            keys = Metric.LATENCY_RATIO, Metric.LATENCY_RATIO_LOW, Metric.LATENCY_RATIO_HIGH
            metrics.update(zip(keys, self.latency_ratio, strict=True))
        return metrics

    @property
    def tags(self) -> dict[str, str]:
        """Under the contract's names."""
        recipe = verdict_tags(self.recipe) if self.recipe else {}
        return {**verdict_tags(self.artifact), **recipe}


_RATIOS = {
    Metric.FLOPS_RATIO: Metric.FLOPS_FORWARD,
    Metric.PARAMS_RATIO: Metric.PARAMS_TOTAL,
    Metric.SIZE_RATIO: Metric.SIZE_BYTES,
    Metric.LATENCY_RATIO: Metric.LATENCY_P50,
    Metric.TRAINING_TIME_RATIO: Metric.TRAINING_SECONDS,
}


def ratios(original: Mapping[str, float], slim: Mapping[str, float]) -> dict[str, float]:
    """Original ÷ slim of what both have measured: above 1 is saved."""
    quotients = {name: text.ratio(original.get(metric), slim.get(metric))
                 for name, metric in _RATIOS.items()}
    return {name: quotient for name, quotient in quotients.items() if quotient is not None}


@dataclass(frozen=True)
class Round:
    """One round of slimming: the slim variant, its controls, and the verdict on it.

    Attributes:
        goal: the widths that were chosen; None where they are not known.
        variant: the slim one.
        controls: trained beside it: the original at an equal budget, and, where the network was
            cut, a network of the slim widths from scratch.
        comparison: with the original.
    """

    goal: TargetWidths | None
    variant: VariantResult
    controls: tuple[VariantResult, ...]
    comparison: Comparison

    @property
    def as_good(self) -> bool:
        """Whether the verdict is ``non_inferior``."""
        return self.comparison.verdict.outcome == Outcome.NON_INFERIOR


@dataclass(frozen=True)
class Slimmed:
    """All rounds of slimming an original.

    Attributes:
        original: what every round is compared with.
        rounds: in order; there may be none.
        usages: by variant's name, of every variant that was analysed.
        ended: why there is no further round, where more were asked for.
        last: what the method found of the round that there is not.
    """

    original: VariantResult
    rounds: tuple[Round, ...]
    usages: Mapping[str, ModelUsage] = field(default_factory=dict, repr=False)
    ended: str = ""
    last: TargetWidths | None = field(default=None, repr=False)

    @property
    def result(self) -> Round:
        """The last round that is as good as the original; the first, where none is.

        Raises:
            IndexError: there are no rounds.
        """
        return next((each for each in reversed(self.rounds) if each.as_good), self.rounds[0])

    @property
    def variants(self) -> tuple[VariantResult, ...]:
        """The original first, the result last, all others that were trained between."""
        if not self.rounds:
            return (self.original,)
        result = self.result.variant
        trained = [variant for each in self.rounds for variant in (*each.controls, each.variant)]
        others = {variant.run_id: variant for variant in trained
                  if variant.run_id != result.run_id}
        return (self.original, *others.values(), result)
