"""Adding replicates to the original and a slim variant until their recipe verdict is settled.

Tests: ``tests/pipeline/test_seeds.py``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from wua_mlflow.config import Settings
from wua_mlflow.data.tasks import Task, score_name
from wua_mlflow.pipeline.networks import NetworkFactory
from wua_mlflow.pipeline.recipe import train_replicate
from wua_mlflow.pipeline.train import replicate_metrics
from wua_mlflow.pipeline.variant import ModelVariant, replicates_table, variant_files
from wua_mlflow.tracking.log import write
from wua_mlflow.tracking.names import ArtifactPath
from wua_mlflow.tracking.store import Store
from wua_mlflow.verdict.compare import Verdict, compare
from wua_mlflow.verdict.inputs import FEWEST_SEEDS, R2Scores
from wua_mlflow.verdict.looks import LEAST_CHANCE, planned_looks

__all__ = ["recipe_verdict", "with_seeds_to_settle"]

def recipe_verdict(
    original: np.ndarray, slim: np.ndarray, task: Task, settings: Settings, *,
    targets: np.ndarray | None = None,
) -> Verdict | None:
    """The verdict over the replicates' test scores, shape (S, n); None of fewer than 5 a side.

    Where ``seeds`` is auto it is that of a look, if the slim one's number is a planned one. Of a
    side at most twice as many count as there are of the other. ``targets`` are the test part's, of
    a regression.
    """
    if min(len(original), len(slim)) < FEWEST_SEEDS:
        return None
    planned = planned_looks(settings.max_seeds) if settings.seeds == "auto" else ()
    old: Any = original[:2 * len(slim)]
    new: Any = slim[:2 * len(original)]
    seeds = len(new)
    if task == "regression" and targets is not None:
        old, new = R2Scores(old, targets), R2Scores(new, targets)
    return compare(old, new, margin=settings.margin, confidence=settings.confidence,
                   score=score_name(task), seed=settings.seed,
                   planned_seeds=planned if seeds in planned else None)


def with_seeds_to_settle(
    store: Store, original: ModelVariant, slim: ModelVariant, make_original: NetworkFactory
) -> tuple[ModelVariant, ModelVariant]:
    """Both with as many replicates as settle the verdict, or as ``max_seeds`` allows.

    It ends early where the last look would hardly settle it. What is added is logged once, at the
    end, in the runs of both.

    Args:
        store: where the runs are.
        original: with at least 5 replicates; else nothing is added.
        slim: the same.
        make_original: makes the original's replicates.
    """
    settings, before = slim.settings, (len(original.replicates), len(slim.replicates))
    if settings.seeds != "auto" or min(before) < FEWEST_SEEDS:
        return original, slim
    for seeds in planned_looks(settings.max_seeds):
        if seeds < len(slim.replicates):
            continue
        original = _extended(original, seeds, make_original)
        slim = _extended(slim, seeds, slim.make)
        verdict = recipe_verdict(original.replicate_scores, slim.replicate_scores,
                                 slim.test.task, settings, targets=slim.test.targets)
        assert verdict is not None and verdict.counts is not None, "at least 5 a side"
        if verdict.outcome != "inconclusive" or \
                (verdict.counts.chance_to_settle or 0.0) < LEAST_CHANCE:
            break
    if len(original.replicates) > before[0]:
        original = _logged(store, original)
    if len(slim.replicates) > before[1]:
        slim = _logged(store, slim)
    return original, slim


def _extended(variant: ModelVariant, seeds: int, make: NetworkFactory) -> ModelVariant:
    """With so many replicates; those that it has stay."""
    numbers = range(len(variant.replicates), seeds)
    added = [train_replicate(variant.recipe, make, number, variant.recipe.split.test)
             for number in tqdm(numbers, desc=f"further seeds of {variant.name}", disable=None,
                                leave=False, unit="seed")]
    return replace(variant, replicates=[*variant.replicates, *added])


def _logged(store: Store, variant: ModelVariant) -> ModelVariant:
    """Its run holds the replicates that it has now."""
    files = variant_files(variant.trained, variant.test, variant.replicates)
    metrics = replicate_metrics(variant.replicates, variant.test.task)
    kept = (ArtifactPath.PREDICTIONS, ArtifactPath.RNG_STATE)
    write(store.client, variant.run_id, metrics=metrics, files={
        ArtifactPath.REPLICATES: replicates_table(variant.replicates),
        **{path: files[path] for path in kept}})
    return variant.logged({}, metrics)
