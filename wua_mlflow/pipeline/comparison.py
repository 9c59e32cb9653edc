"""The step ``compare``: the original against a slim variant, on test data, in verdicts and savings.

May import: everything but cli and the chain. Tests: ``tests/pipeline/test_comparison.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from wua_mlflow.config import Settings
from wua_mlflow.evaluation import Evaluation, Task, score_name
from wua_mlflow.latency import Latency, measure_latency
from wua_mlflow.pipeline.steps import marking
from wua_mlflow.pipeline.variant import Variant
from wua_mlflow.randomness import Purpose, torch_generator
from wua_mlflow.tracking.log import latency_metrics, verdict_metrics, write
from wua_mlflow.tracking.names import Metric, Tag, step_tag
from wua_mlflow.tracking.runs import count_looks
from wua_mlflow.tracking.store import Store
from wua_mlflow.verdict import Verdict, compare

__all__ = ["Comparison", "compare_evaluations", "compare_variants", "damage", "ratios"]

SEEDS_FOR_RECIPE = 5
LARGEST_BATCH = 1024


@dataclass(frozen=True)
class Comparison:
    """What comparing two models on the same test examples found.

    ``churn`` is the share of examples whose prediction differs; ``worst_class_delta`` the largest
    loss of accuracy within one class (None for regression); ``looks`` how many verdicts on this
    test set the store holds, this one included; ``ratios`` are original ÷ slim; ``budget`` is a
    sentence where the two did not train for as long.
    """

    artifact: Verdict
    recipe: Verdict | None
    churn: float | None
    worst_class_delta: float | None
    looks: int
    ratios: Mapping[str, float]
    budget: str = ""

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
    store: Store, original: Variant, slim: Variant, *, beside: Sequence[Variant] = ()
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
    with marking(store, slim.run_id, "compare"):
        settings = slim.settings
        artifact = compare_evaluations(original.test, slim.test, settings)
        recipe = _recipe_verdict(original, slim)
        others = (original, *beside)
        unmeasured = [one for one in others if Metric.LATENCY_P50 not in one.metrics]
        for variant, latency in _latencies((*others, slim)):
            variant.metrics.update(latency_metrics(latency))
        looks = 1 + count_looks(store.client, slim.test.digest, besides=slim.run_id)
        comparison = Comparison(artifact, recipe, *damage(original.test, slim.test), looks,
                                ratios(original.metrics, slim.metrics),
                                _budget((*others, slim)))
        for variant in unmeasured:
            write(store.client, variant.run_id, metrics=_latency_of(variant))
        tags = {**comparison.tags, step_tag("compare"): "done"}
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
        ValueError: the two were not tested on the same examples.
    """
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


def _recipe_verdict(original: Variant, slim: Variant) -> Verdict | None:
    count = min(len(original.replicates), len(slim.replicates))
    if count < SEEDS_FOR_RECIPE:
        return None
    settings = slim.settings
    return compare(original.replicate_scores[:count], slim.replicate_scores[:count],
                   margin=settings.margin, confidence=settings.confidence,
                   score=score_name(original.test.task), seed=settings.seed)


def _budget(variants: Sequence[Variant]) -> str:
    """The sentence on unequal budgets, with what the controls of equal budget score."""
    original, slim = variants[0], variants[-1]
    if (original.settings.epochs, original.epochs_trained) == (
            slim.settings.epochs, slim.epochs_trained):
        return ""
    sentence = f"Budgets differ: the original trained for {_length(original)}, the slim one for " \
               f"{_length(slim)}."
    for control in variants[1:-1]:
        mean = control.replicate_scores.mean()
        gap = _said(slim.replicate_scores.mean() - mean, slim.test.task)
        count = len(control.replicates)
        seeds = f"on average over {count} seeds" if count > 1 else "with its one seed"
        sentence += (f" Trained for {_length(control)} too, the original scores {mean:.4f} "
                     f"{seeds}; the slim one is {gap} that.")
    return sentence


def _said(gap: float, task: Task) -> str:
    """A difference in words: in points where the score is an accuracy."""
    amount = f"{abs(gap):.3f}" if task == "regression" else f"{100 * abs(gap):.1f} points"
    return f"{amount} {'below' if gap < 0 else 'above'}"


def _length(variant: Variant) -> str:
    budget, trained = variant.settings.epochs, variant.epochs_trained
    return f"{budget} epochs" if trained == budget else \
        f"at most {budget} epochs (stopped after {trained})"


def _latencies(variants: Sequence[Variant]) -> list[tuple[Variant, Latency]]:
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


def _latency_of(variant: Variant) -> dict[str, float]:
    return {key: value for key, value in variant.metrics.items() if key.startswith("latency/")}


def ratios(original: Mapping[str, float], slim: Mapping[str, float]) -> dict[str, float]:
    """Original ÷ slim of what both have measured: above 1 is saved."""
    pairs = {
        Metric.FLOPS_RATIO: Metric.FLOPS_FORWARD,
        Metric.PARAMS_RATIO: Metric.PARAMS_TOTAL,
        Metric.SIZE_RATIO: Metric.SIZE_BYTES,
        Metric.LATENCY_RATIO: Metric.LATENCY_P50,
    }
    return {ratio: original[what] / slim[what] for ratio, what in pairs.items()
            if slim.get(what) and what in original}
