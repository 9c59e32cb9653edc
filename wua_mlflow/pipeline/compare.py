"""What a test part can show at all, before anything is trained on its account.

May import: numpy, config, provable, the pipeline's data. Tests: ``tests/pipeline/test_claims.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from wua_mlflow.config import Settings
from wua_mlflow.data.datasets import DataSplit
from wua_mlflow.data.tasks import Task, score_name
from wua_mlflow.pipeline.train import step_status
from wua_mlflow.pipeline.variant import ModelVariant
from wua_mlflow.rng import Purpose, torch_generator
from wua_mlflow.tracking.log import latency_metrics, verdict_metrics, write
from wua_mlflow.tracking.names import Metric, Tag, step_tag
from wua_mlflow.tracking.names import Variant as VariantName
from wua_mlflow.tracking.runs import count_looks, look_of
from wua_mlflow.tracking.store import Store
from wua_mlflow.training.evaluation import Evaluation
from wua_mlflow.training.latency import Latency, latency_ratio, measure_latency
from wua_mlflow.verdict import text
from wua_mlflow.verdict.compare import Verdict, compare
from wua_mlflow.verdict.sample_size import too_few_examples

__all__ = [
    "Comparison", "budget_sentence", "check_classes", "check_test_part", "class_loss",
    "compare_evaluations", "compare_variants", "damage", "ratios", "worst_class",
]


def check_test_part(split: DataSplit, settings: Settings) -> None:
    """Say in a line, on standard error, where the test part is too small for the margin.

    Raises:
        ValueError: all its examples are of one class.
    """
    if split.task == "regression":
        return
    check_classes(split.test.targets.numpy())
    said = too_few_examples(len(split.test), settings.margin, settings.confidence)
    if said:
        print(f"wua: note: {said}", file=sys.stderr)


def check_classes(targets: np.ndarray) -> None:
    """Raise where all test examples are of one class."""
    labels = np.unique(targets)
    if len(labels) < 2:
        raise ValueError(f"test data: expected examples of at least two classes, but all "
                         f"{len(targets):,} are of class {labels[0]:g}; an accuracy on one class "
                         f"says nothing of the others")


def budget_sentence(variants: Sequence[ModelVariant]) -> str:
    """The sentences on unequal budgets, with what each control scores; "" where there are none.

    Args:
        variants: the original first, the slim one last, controls between.
    """
    original, slim = variants[0], variants[-1]
    said = [_unequal(original, slim)]
    for control in variants[1:-1]:
        if control.variant == VariantName.SAME_BUDGET and \
                control.settings.epochs == slim.settings.epochs:
            onwards = original.adopted and slim.trained.structure is not None
            said.append(_same_budget(control, slim, onwards=onwards))
        elif control.variant == VariantName.FROM_SCRATCH:
            said.append(_from_scratch(control, slim))
    return " ".join(filter(None, said))


def _unequal(original: ModelVariant, slim: ModelVariant) -> str:
    if original.adopted:
        return "The original was trained elsewhere, so nothing is known of its budget."
    if (original.settings.epochs, original.epochs_trained) == (
            slim.settings.epochs, slim.epochs_trained):
        return ""
    return (f"Budgets differ: the original trained for {_length(original)}, the slim one for "
            f"{_length(slim)}.")


def _same_budget(control: ModelVariant, slim: ModelVariant, *, onwards: bool) -> str:
    mean, seeds, gap = _against(control, slim)
    on = " on" if onwards else ""
    return (f"Trained{on} for {_length(control)} too, the original scores {mean:.4f} {seeds}; the "
            f"slim one is {gap} that.")


def _from_scratch(control: ModelVariant, slim: ModelVariant) -> str:
    mean, seeds, gap = _against(control, slim)
    own, whole = (int(one.metrics[Metric.PARAMS_TOTAL]) for one in (slim, control))
    where = "at these widths" if own == whole else \
        f"at the nearest widths that the factory can make ({whole:,} parameters, not {own:,})"
    return (f"From scratch {where} for {_length(control)} (Scratch-E, Liu et al. 2019) a "
            f"network scores {mean:.4f} {seeds}; the pruned one is {gap} that.")


def _against(control: ModelVariant, slim: ModelVariant) -> tuple[float, str, str]:
    mean = float(control.replicate_scores.mean())
    gap = _said(float(slim.replicate_scores.mean()) - mean, slim.test.task)
    count = len(control.replicates)
    return mean, f"on average over {count} seeds" if count > 1 else "with its one seed", gap


def _said(gap: float, task: Task) -> str:
    """A difference in words: in points where the score is an accuracy."""
    amount = f"{abs(gap):.3f}" if task == "regression" else f"{100 * abs(gap):.1f} points"
    return f"{amount} {'below' if gap < 0 else 'above'}"


def _length(variant: ModelVariant) -> str:
    budget, trained = variant.settings.epochs, variant.epochs_trained
    return f"{budget} epochs" if trained == budget else \
        f"at most {budget} epochs (stopped after {trained})"


SEEDS_FOR_RECIPE = 5
NO_RECIPE = f"No recipe verdict: it needs at least {SEEDS_FOR_RECIPE} seeds (setting `seeds`)."
TRAINED_ELSEWHERE = "No recipe verdict: how the original was trained elsewhere is not known."
LARGEST_BATCH = 1024
NOTEWORTHY = 1.05
"""A ratio of FLOPs above this is expected to be felt."""
CHANCE = 0.05


@dataclass(frozen=True)
class Comparison:
    """What comparing two models on the same test examples found.

    Attributes:
        artifact: of the two saved models.
        recipe: over seeds, where there are enough.
        churn: share of examples whose prediction differs; None for regression.
        worst_class_delta: the largest loss of accuracy within one class; None for regression.
        looks: how many verdicts on this test set the store holds, this one included.
        ratios: original ÷ slim.
        budget: sentences where the two did not train for as long, or are not alike in another way.
        worst_class: the class of ``worst_class_delta``, and how many test examples it has.
        bonferroni: ``verdict`` read for all looks, at confidence 1 − (1 − c) ÷ looks; None where
            this is the first look.
        latency_ratio: original ÷ slim of the median latencies at batch 1, and its interval; None
            where not both were timed.
        timed: by run the latencies that were taken in the same turns.
        no_recipe: why there is no recipe verdict, where there is none.
        class_loss: a sentence where single classes lose more than the margin.
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
    no_recipe: str = NO_RECIPE
    class_loss: str = ""

    def with_latency(self, variant: ModelVariant) -> dict[str, float]:
        """A variant's metrics, the latency as it was in this comparison's turns."""
        return {**variant.metrics, **self.timed.get(variant.run_id, {})}

    @property
    def notes(self) -> tuple[str, ...]:
        """What the verdict and the count of FLOPs do not say, a sentence each."""
        found = [self.class_loss] if self.class_loss else []
        if self.looks > 1:
            found.append(text.looks_sentence(self.looks, self.bonferroni))
        small = (
            too_few_examples(self.artifact.examples, self.artifact.margin, self.artifact.confidence)
            if self.artifact.score == "accuracy"
            else None
        )
        if small:
            found.append(f"{small[:1].upper()}{small[1:]}.")
        flops = self.ratios.get(Metric.FLOPS_RATIO, 1.0)
        if self.latency_ratio is not None and flops > NOTEWORTHY and self.latency_ratio[1] <= 1:
            ratio, low, high = self.latency_ratio
            found.append(f"FLOPs fall {flops:.1f}×, but latency at batch 1 does not: ratio "
                         f"{ratio:.2f} ({low:.2f} to {high:.2f}).")
        return tuple(found)

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
        tags = {Tag.VERDICT: self.verdict.outcome, Tag.VERDICT_ARTIFACT: self.artifact.outcome,
                Tag.CONFIDENCE: str(self.verdict.confidence)}
        if self.recipe:
            tags[Tag.VERDICT_RECIPE] = self.recipe.outcome
        return tags


def compare_variants(
    store: Store, original: ModelVariant, slim: ModelVariant, *, beside: Sequence[ModelVariant] = ()
) -> Comparison:
    """Judge a slim variant against the original, measure the latency of all, and log it.

    The verdict goes to the slim run; the latency to it and to those of the others that have none
    yet, so that what is logged of a run stays. The ratio is of latencies taken in turns, now.

    Args:
        store: where the runs are.
        original: what the slim one is judged against.
        slim: the slim one.
        beside: controls: measured in the same turns, named in the sentence on budgets.

    Raises:
        ValueError: they were not tested on the same data.
    """
    store.client.set_tag(slim.run_id, step_tag("compare"), "running")
    with step_status(store, slim.run_id, "compare"):
        settings = slim.settings
        artifact = compare_evaluations(original.test, slim.test, settings)
        recipe = _recipe_verdict(original, slim)
        others = (original, *beside)
        unmeasured = [one for one in others if Metric.LATENCY_P50 not in one.metrics]
        timed = _latencies((*others, slim))
        for variant, latency in timed:
            variant.metrics.update(latency_metrics(latency))
        looked = sorted({look_of(settings.margin, settings.confidence),
                         *filter(None, slim.tags.get(Tag.LOOKED, "").split(","))})
        looks = len(looked) + count_looks(store.client, slim.test.digest, besides=slim.run_id)
        worst = worst_class(original.test, slim.test, slim.recipe.split.classes)
        comparison = Comparison(
            artifact, recipe, *damage(original.test, slim.test), looks,
            ratios(original.metrics, slim.metrics), budget_sentence((*others, slim)), worst,
            _for_all_looks(original, slim, looks),
            latency_ratio(timed[0][1], timed[-1][1], confidence=settings.confidence,
                          seed=settings.seed),
            {one.run_id: latency_metrics(latency) for one, latency in timed},
            TRAINED_ELSEWHERE if original.adopted else NO_RECIPE,
            class_loss(original.test, slim.test, slim.recipe.split.classes, settings.margin))
        for variant in unmeasured:
            write(store.client, variant.run_id, metrics=_latency_of(variant))
        tags = {**comparison.tags, Tag.LOOKED: ",".join(looked), step_tag("compare"): "done"}
        write(store.client, slim.run_id, tags=tags,
              metrics={**comparison.metrics, **_latency_of(slim)})
        slim.metrics.update(comparison.metrics)
        slim.tags.update(tags)
    return comparison


def compare_evaluations(
    original: Evaluation, slim: Evaluation, settings: Settings
) -> Verdict:
    """The artifact's verdict.

    Raises:
        ValueError: the two were not tested on the same examples or not for the same score, or all
            examples are of one class.
    """
    one, other = score_name(original.task), score_name(slim.task)
    if one != other:
        raise ValueError(f"compare: expected two models of the same outputs, but one is scored by "
                         f"{one} and the other by {other}")
    if original.task != "regression":
        check_classes(original.targets)
    return compare(original, slim, margin=settings.margin, confidence=settings.confidence,
                   score=score_name(original.task), seed=settings.seed)


def damage(original: Evaluation, slim: Evaluation) -> tuple[float | None, float | None]:
    """Churn and the worst class's change in accuracy; None and None for regression."""
    if original.task == "regression":
        return None, None
    churn = float(np.mean(original.predictions != slim.predictions))
    difference = slim.scores - original.scores
    worst = min(float(difference[original.targets == label].mean())
                for label in np.unique(original.targets))
    return churn, worst


def class_loss(
    original: Evaluation, slim: Evaluation, classes: Sequence[str], margin: float
) -> str:
    """A sentence where a class loses more than the margin, and not by chance; else "".

    By chance: the exact one-sided test of McNemar on the examples that one of the two alone gets
    right, at 5% for all classes together (Bonferroni).
    """
    if original.task == "regression":
        return ""
    from scipy.stats import binom

    difference, said = slim.scores - original.scores, []
    labels = np.unique(original.targets)
    for label in labels:
        own = difference[original.targets == label]
        lost, differ = int((own < 0).sum()), int((own != 0).sum())
        p = min(1.0, float(binom.sf(lost - 1, differ, 0.5)) * len(labels))
        if own.mean() < -margin and p < CHANCE:
            name = classes[int(label)] if int(label) < len(classes) else str(int(label))
            said.append(f"{name} ({len(own):,} test examples) −{-100 * own.mean():.1f} points")
    return f"Single classes lose more than the margin: {', '.join(said)}." if said else ""


def worst_class(
    original: Evaluation, slim: Evaluation, classes: Sequence[str]
) -> str | None:
    """The class that loses most, with its number of test examples; None for regression."""
    if original.task == "regression":
        return None
    difference = slim.scores - original.scores
    labels, counts = np.unique(original.targets, return_counts=True)
    worst = int(np.argmin([difference[original.targets == label].mean() for label in labels]))
    label = int(labels[worst])
    name = classes[label] if label < len(classes) else str(label)
    return f"{name}, {counts[worst]:,} test examples"


def _for_all_looks(original: ModelVariant, slim: ModelVariant, looks: int) -> Verdict | None:
    """The verdict at Bonferroni's confidence; None at the first look."""
    if looks < 2:
        return None
    confidence = 1 - (1 - slim.settings.confidence) / looks
    settings = slim.settings.model_copy(update={"confidence": confidence})
    return _recipe_verdict(original, slim, settings) or compare_evaluations(
        original.test, slim.test, settings)


def _recipe_verdict(
    original: ModelVariant, slim: ModelVariant, settings: Settings | None = None
) -> Verdict | None:
    count = min(len(original.replicates), len(slim.replicates))
    if count < SEEDS_FOR_RECIPE:
        return None
    settings = settings or slim.settings
    return compare(original.replicate_scores[:count], slim.replicate_scores[:count],
                   margin=settings.margin, confidence=settings.confidence,
                   score=score_name(original.test.task), seed=settings.seed)


def _latencies(variants: Sequence[ModelVariant]) -> list[tuple[ModelVariant, Latency]]:
    recipe = variants[-1].recipe
    inputs = recipe.split.train.inputs
    size = recipe.settings.batch_size
    batch = min(len(inputs), LARGEST_BATCH, len(inputs) if size == "full" else size)
    if recipe.settings.threads:
        torch.set_num_threads(recipe.settings.threads)
    rows = torch.randperm(
        len(inputs), generator=torch_generator(recipe.settings.seed, Purpose.LATENCY))[:batch]
    measured = measure_latency({variant.run_id: variant.model for variant in variants},
                               inputs[rows].to(recipe.device))
    return [(variant, measured[variant.run_id]) for variant in variants]


def _latency_of(variant: ModelVariant) -> dict[str, float]:
    return {key: value for key, value in variant.metrics.items() if key.startswith("latency/")}


def ratios(original: Mapping[str, float], slim: Mapping[str, float]) -> dict[str, float]:
    """Original ÷ slim of what both have measured: above 1 is saved."""
    pairs = {
        Metric.FLOPS_RATIO: Metric.FLOPS_FORWARD,
        Metric.PARAMS_RATIO: Metric.PARAMS_TOTAL,
        Metric.SIZE_RATIO: Metric.SIZE_BYTES,
        Metric.LATENCY_RATIO: Metric.LATENCY_P50,
        Metric.TRAINING_TIME_RATIO: Metric.TRAINING_SECONDS,
    }
    return {ratio: original[what] / slim[what] for ratio, what in pairs.items()
            if slim.get(what) and what in original}
