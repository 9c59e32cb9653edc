"""Judging a slim variant against the original: verdicts, classes, budgets, latency, looks.

Tests: ``tests/pipeline/test_compare.py``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from wua_mlflow.config import Settings
from wua_mlflow.data.batches import Inputs
from wua_mlflow.data.datasets import DataSplit
from wua_mlflow.data.parts import Part
from wua_mlflow.data.tasks import has_classes, score_name
from wua_mlflow.levels import MOST_CONFIDENCE
from wua_mlflow.pipeline.cautions import cautions, cautions_elsewhere, constant_answer
from wua_mlflow.pipeline.replicates import Replicate
from wua_mlflow.pipeline.seeds import (
    NO_HISTORY,
    SeedHistory,
    SharedExamples,
    fewest_replicates,
    groups_of,
    recipe_verdict,
)
from wua_mlflow.pipeline.train import add_to_run, step_status
from wua_mlflow.pipeline.variant import ModelVariant
from wua_mlflow.progress import stage
from wua_mlflow.results import ClassControl, Comparison, TargetWidths, ratios
from wua_mlflow.rng import Purpose, torch_generator
from wua_mlflow.tracking.log import latency_metrics
from wua_mlflow.tracking.names import Metric, Tag, step_tag
from wua_mlflow.tracking.names import Variant as VariantName
from wua_mlflow.tracking.runs import count_looks, look_of, seeds_judged_before
from wua_mlflow.tracking.store import Store
from wua_mlflow.training.evaluation import Evaluation
from wua_mlflow.training.latency import Latency, latency_ratio, measure_latency
from wua_mlflow.verdict import text
from wua_mlflow.verdict.budgets import TrainingSummary, budget_sentences, equal_budget_sentence
from wua_mlflow.verdict.compare import Verdict
from wua_mlflow.verdict.inputs import FEWEST_SEEDS
from wua_mlflow.verdict.sample_size import too_few_examples
from wua_mlflow.verdict.scores import default_score, find_score

__all__ = [
    "check_classes", "check_test_part", "compare_evaluations", "compare_variants", "judge",
]


def check_test_part(split: DataSplit, settings: Settings) -> None:
    """Say in a line, on standard error, where the test part is too small for the margin.

    Raises:
        ValueError: all its examples are of one class.
    """
    if split.task not in ("binary", "multiclass"):
        return
    if isinstance(split.test, Part):
        check_classes(split.test.targets.numpy())
    note = too_few_examples(len(split.test), settings.margin, settings.confidence)
    if note:
        print(f"wua: note: {note}", file=sys.stderr)


def check_classes(targets: np.ndarray) -> None:
    """Raise where all test examples are of one class."""
    labels = np.unique(targets)
    if len(labels) < 2:
        raise ValueError(f"test data: expected examples of at least two classes, but all "
                         f"{len(targets):,} are of class {labels[0]:g}; an accuracy on one class "
                         f"says nothing of the others")


LARGEST_BATCH = 1024
CHANCE = 0.05
"""The level at which a class loses, for all classes together (Bonferroni)."""


def compare_variants(
    store: Store, original: ModelVariant, slim: ModelVariant, *,
    beside: Sequence[ModelVariant] = (), goal: TargetWidths | None = None, no_recipe: str = "",
) -> tuple[Comparison, list[ModelVariant]]:
    """Judge a slim variant against the original, measure the latency of all, and log it.

    The verdict goes to the slim run; the latency to it and to those of the others that have none
    yet, so that what is logged of a run stays. The ratio is of latencies taken in turns, now.

    Args:
        store: where the runs are.
        original: what the slim one is judged against.
        slim: the slim one.
        beside: controls: measured in the same turns, named in the sentence on budgets.
        goal: how its widths were chosen.
        no_recipe: why there is no recipe verdict, where that was decided before.

    Returns:
        The comparison, and the original, the controls and the slim one as they are now.

    Raises:
        ValueError: they were not tested on the same data.
    """
    with step_status(store, slim.run_id, "compare", begin=True), \
            stage(f"comparing {slim.name} with {original.name}"):
        settings, split = slim.settings, slim.recipe.split
        unmeasured = {variant.run_id for variant in (original, *beside)
                      if Metric.LATENCY_P50 not in variant.metrics}
        looked = sorted({look_of(settings.margin, settings.confidence),
                         *filter(None, slim.tags.get(Tag.LOOKED, "").split(","))})
        looks = len(looked) + count_looks(store.client, slim.test.digest, besides=slim.run_id)
        enough = fewest_replicates(original, slim) >= FEWEST_SEEDS
        comparison = judge(original.test, slim.test, settings, classes=split.classes, looks=looks,
                           replicates=(original.replicates, slim.replicates) if enough else None,
                           groups=groups_of(slim), history=SeedHistory.of(
                               goal, seeds_judged_before(store.client, slim.run_id)))
        timed = _latencies((original, *beside, slim))
        original, *beside, slim = (variant.logged({}, latency_metrics(latency))
                                   for variant, latency in timed)
        equal = _against_equal_budget(beside, slim)
        budget, equal_budget = _budget_sentences(original, beside, slim, equal)
        control = _control_of_lost_class(comparison, original, beside, slim, equal)
        if control is not None:
            budget, equal_budget = (f"{each} {_class_sentence(control, original, beside)}"
                                    for each in (budget, equal_budget))
        comparison = replace(
            comparison, class_control=control, ratios=ratios(original.metrics, slim.metrics),
            budget=budget, equal_budget=equal_budget,
            equal_budget_outcome=equal.outcome if equal else "",
            constant=constant_answer(slim.test, slim.recipe.split.classes),
            latency_ratio=latency_ratio(timed[0][1], timed[-1][1], confidence=settings.confidence,
                                        seed=settings.seed),
            timed={variant.run_id: latency_metrics(latency) for variant, latency in timed},
            no_recipe=no_recipe or _why_no_recipe(original, slim),
            cautions=_cautions(original),
            seedless=text.seedless_note([replicate.loss for replicate in slim.replicates]))
        for variant in (original, *beside):
            if variant.run_id in unmeasured:
                add_to_run(store, variant, _latency_of(variant))
        tags = {**comparison.tags, Tag.LOOKED: ",".join(looked), step_tag("compare"): "done"}
        add_to_run(store, slim, {**comparison.metrics, **_latency_of(slim)}, tags=tags)
    return comparison, [original, *beside, slim.logged(tags, comparison.metrics)]


def _cautions(original: ModelVariant) -> tuple[str, ...]:
    """Sentences on its data and its scores that are too good to be true, or of no use."""
    trained = original.metrics.get(Metric.SCORE_TRAIN, math.nan)
    found = [*original.recipe.split.warnings]
    found += cautions_elsewhere(
        original.test, trained, original.replicates[0].validation_scores) if original.adopted \
        else cautions(original.test, trained, original.settings)
    return tuple(f"Caution: {line}{'' if line.endswith('?') else '.'}" for line in found)


def _why_no_recipe(original: ModelVariant, slim: ModelVariant) -> str:
    """Where there is no recipe verdict: that there are too few seeds, or what more would take."""
    settings = slim.settings
    if slim.interrupted and settings.first_seeds >= FEWEST_SEEDS:
        return text.interrupted_seeds(fewest_replicates(original, slim))
    if not original.adopted or not settings.until_settled:
        return text.TOO_FEW_SEEDS
    seconds = slim.metrics.get(Metric.TRAINING_SECONDS, 0.0) * (settings.first_seeds - 1)
    return text.too_long_for_seeds(settings.first_seeds, seconds, original.run_id)


def _same_budget(controls: Sequence[ModelVariant]) -> ModelVariant | None:
    """The original with the slim one's budget."""
    return next((each for each in controls if each.variant == VariantName.SAME_BUDGET), None)


def _control_of_lost_class(
    comparison: Comparison, original: ModelVariant, controls: Sequence[ModelVariant],
    slim: ModelVariant, equal: Verdict | None,
) -> ClassControl | None:
    """What the original with the slim one's budget does on the class that is lost most, if any is.

    A class is lost where the verdict's guard says so, or the sentence on the two saved models.
    """
    control = _same_budget(controls)
    lost = comparison.class_loss or any(
        verdict and verdict.guard and "points fewer" in verdict.guard
        for verdict in (comparison.verdict, comparison.artifact))
    if control is None or not lost or control.test.digest != slim.test.digest:
        return None
    targets = original.test.targets.astype(int)
    changes = {}
    for label in np.unique(targets):
        before, *after = (_recall(each, targets == label, label)
                          for each in (original, slim, control))
        changes[label] = [recall - before for recall in after]
    label, (of_slim, of_control) = min(changes.items(), key=lambda change: change[1][0])
    classes = slim.recipe.split.classes
    name = classes[label] if label < len(classes) else str(label)
    explained = equal is not None and not equal.guard and of_control < of_slim / 2 < 0
    return ClassControl(name, of_slim, of_control, explained)


def _recall(variant: ModelVariant, of_class: np.ndarray, label: int) -> float:
    """The share of a class's examples that a variant's networks find, their mean."""
    predictions = [each.predictions for each in variant.replicates
                   if each.predictions is not None and each.predictions.shape == of_class.shape]
    if len(predictions) < len(variant.replicates) or _takes(variant) != "labels":
        predictions = [variant.test.predictions]
    return float(np.mean([each[of_class] == label for each in predictions]))


def _takes(variant: ModelVariant) -> str:
    """What the score takes of a network: classes, probabilities, ..."""
    return find_score(variant.settings.score or default_score(variant.test.task)).takes


def _class_sentence(
    found: ClassControl, original: ModelVariant, controls: Sequence[ModelVariant]
) -> str:
    control = _same_budget(controls)
    assert control is not None, "asked before"
    return text.class_control_sentence(
        found.name, found.control, len(control.replicates), trained_on=original.adopted,
        of_training=found.of_training)


def _against_equal_budget(
    controls: Sequence[ModelVariant], slim: ModelVariant
) -> Verdict | None:
    """The slim one against the original with its budget, if that is among the controls."""
    control = _same_budget(controls)
    if control is None or control.test.digest != slim.test.digest:
        return None
    one = len(control.replicates) == 1
    seeds = len(slim.replicates) if one else min(len(control.replicates), len(slim.replicates))
    found = judge(  # the control has a fixed number of seeds: nobody looks at fewer of them
        control.test, slim.test, slim.settings.model_copy(update={"seeds": seeds}),
        classes=slim.recipe.split.classes, looks=1, groups=groups_of(slim),
        replicates=(control.replicates[:seeds], slim.replicates[:seeds]))
    return found.recipe or (found.artifact if one and len(slim.replicates) == 1 else None)


def _budget_sentences(
    original: ModelVariant, controls: Sequence[ModelVariant], slim: ModelVariant,
    equal: Verdict | None,
) -> tuple[str, str]:
    """All sentences on budgets, and the one on the original with the slim one's."""
    def summary(variant: ModelVariant) -> TrainingSummary:
        return TrainingSummary(
            variant.settings.epochs, variant.epochs_trained,
            float(np.mean([replicate.score for replicate in variant.replicates])),
            len(variant.replicates),
            int(variant.metrics[Metric.PARAMS_TOTAL]), variant.adopted)

    by_kind = {control.variant: summary(control) for control in controls}
    score = slim.settings.score or score_name(slim.test.task)
    same_budget = by_kind.get(VariantName.SAME_BUDGET)
    judged = text.short_verdict(equal) if equal else ""
    trained_on = original.adopted and slim.trained.structure is not None
    return budget_sentences(
        summary(original), summary(slim), score, same_budget=same_budget,
        from_scratch=by_kind.get(VariantName.FROM_SCRATCH), trained_on=trained_on, judged=judged,
    ), equal_budget_sentence(summary(slim), score, same_budget, trained_on, judged)


def compare_evaluations(
    original: Evaluation, slim: Evaluation, settings: Settings, *, classes: Sequence[str] = (),
    groups: np.ndarray | None = None,
) -> Verdict:
    """The artifact's verdict.

    Args:
        original: on the test examples.
        slim: on the same ones.
        settings: score, margin, confidence and seed.
        classes: their names.
        groups: whose examples they are, shape (n,).

    Raises:
        ValueError: the two were not tested on the same examples or not for the same score, or all
            examples are of one class.
    """
    scores = score_name(original.task), score_name(slim.task)
    if scores[0] != scores[1]:
        raise ValueError(f"compare: expected two models of the same outputs, but one is scored by "
                         f"{scores[0]} and the other by {scores[1]}")
    if has_classes(original.task):
        check_classes(original.targets)
    if original.digest != slim.digest:
        raise ValueError(f"compare: expected two models of the same test examples, but got the "
                         f"digests {original.digest} and {slim.digest}")
    sides = [replace(side, score_name=settings.score or "").judged[None]
             for side in (original, slim)]
    if original.task == "regression":
        sides[1] = _in_unit_of(original.targets, slim.targets, sides[1])
    examples = SharedExamples(original.task, original.targets, classes, groups)
    return examples.verdict(sides[0], sides[1], settings)


def _in_unit_of(targets: np.ndarray, others: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Predictions of ``others`` as predictions of ``targets``, the same in another unit.

    A run's targets are standardised, a file's are in their own unit.
    """
    if np.array_equal(targets, others) or others.std() == 0:
        return predictions
    scale = targets.std() / others.std()
    return np.asarray((predictions - others.mean()) * scale + targets.mean())


def judge(  # noqa: PLR0913 - two models, and what is known of their examples
    original: Evaluation, slim: Evaluation, settings: Settings, *, classes: Sequence[str],
    looks: int, replicates: tuple[Sequence[Replicate], Sequence[Replicate]] | None = None,
    groups: np.ndarray | None = None, history: SeedHistory = NO_HISTORY,
) -> Comparison:
    """The verdicts and what changes by class; costs and budgets are not looked at.

    Args:
        original: on the test examples.
        slim: on the same ones.
        settings: score, margin, confidence and seed.
        classes: their names.
        looks: how many verdicts there are on these test examples, this one included.
        replicates: of each, on the same examples.
        groups: whose examples they are, shape (n,).
        history: what went before the verdict on these.

    Raises:
        ValueError: as ``compare_evaluations``.
    """
    def verdicts(settings: Settings) -> tuple[Verdict, Verdict | None]:
        examples = SharedExamples(original.task, original.targets, classes, groups)
        return (compare_evaluations(original, slim, settings, classes=classes, groups=groups),
                recipe_verdict(*replicates, examples, settings, history)
                if replicates else None)

    artifact, recipe = verdicts(settings)
    bonferroni = None
    if looks > 1:
        confidence = min(1 - (1 - settings.confidence) / looks, MOST_CONFIDENCE)
        strict = verdicts(settings.model_copy(update={"confidence": confidence}))
        bonferroni = strict[1] or strict[0]
    comparison = Comparison(artifact, recipe, None, None, looks, {}, bonferroni=bonferroni)
    if not has_classes(original.task):
        return comparison
    changes = _class_changes(original, slim, classes)
    worst = min(changes, key=lambda change: change.mean)
    losses = [(change.name, change.examples, change.mean) for change in changes
              if change.mean < -settings.margin and change.p * len(changes) < CHANCE]
    return replace(
        comparison, churn=float(np.mean(original.predictions != slim.predictions)),
        worst_class_delta=worst.mean, worst_class=f"{worst.name}, {worst.examples:,} test examples",
        class_loss=text.class_loss_sentence(losses, settings.accepted_class_loss))


@dataclass(frozen=True)
class _ClassChange:
    """One class: the mean change of its examples' scores, and the p-value of a loss.

    ``p`` is of the exact one-sided test of McNemar on the examples that one of the two models alone
    gets right.
    """

    name: str
    examples: int
    mean: float
    p: float


def _class_changes(
    original: Evaluation, slim: Evaluation, classes: Sequence[str]
) -> list[_ClassChange]:
    from scipy.stats import binom

    changes = []
    for label in np.unique(original.targets).astype(int):
        right = [side.predictions == side.targets for side in (original, slim)]
        difference = (right[1].astype(float) - right[0])[original.targets == label]
        lost, differing = (difference < 0).sum(), (difference != 0).sum()
        changes.append(_ClassChange(
            classes[label] if label < len(classes) else str(label), len(difference),
            float(difference.mean()), float(binom.sf(lost - 1, differing, 0.5))))
    return changes


def _latencies(variants: Sequence[ModelVariant]) -> list[tuple[ModelVariant, Latency]]:
    recipe = variants[-1].recipe
    train, size = recipe.split.train, recipe.settings.batch_size
    batch = min(len(train), LARGEST_BATCH, len(train) if size == "full" else size)
    if recipe.settings.threads:
        torch.set_num_threads(recipe.settings.threads)
    if isinstance(train, Part):
        rows = torch.randperm(
            len(train), generator=torch_generator(recipe.settings.seed, Purpose.LATENCY))[:batch]
        inputs: Inputs = train.inputs[rows].to(recipe.device)
    else:
        inputs = recipe.example(variants[-1].model, batch)
    measured = measure_latency({variant.run_id: variant.model for variant in variants}, inputs)
    return [(variant, measured[variant.run_id]) for variant in variants]


def _latency_of(variant: ModelVariant) -> dict[str, float]:
    return {key: value for key, value in variant.metrics.items() if key.startswith("latency/")}
