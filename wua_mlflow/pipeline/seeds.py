"""Adding replicates to the original and a slim variant until their recipe verdict is settled.

Tests: ``tests/pipeline/test_seeds.py``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from mlflow.entities import Metric as MetricEntity

from wua_mlflow.config import Settings
from wua_mlflow.data.tasks import Task, score_name
from wua_mlflow.pipeline.allowance import Allowance
from wua_mlflow.pipeline.networks import NetworkFactory
from wua_mlflow.pipeline.replicates import Replicate, further_replicates
from wua_mlflow.pipeline.train import add_to_run, replicate_metrics, scores_by_seed
from wua_mlflow.pipeline.trainer_runs import trainer_logs_to
from wua_mlflow.pipeline.variant import ModelVariant, replicates_table, variant_files
from wua_mlflow.results import TargetWidths
from wua_mlflow.tracking.names import ArtifactPath, Metric
from wua_mlflow.tracking.store import Store
from wua_mlflow.verdict.compare import Verdict, compare
from wua_mlflow.verdict.inputs import FEWEST_SEEDS, R2Scores
from wua_mlflow.verdict.looks import LEAST_CHANCE, planned_looks
from wua_mlflow.verdict.scores import BY_EXAMPLE, default_score, find_score

__all__ = [
    "NO_HISTORY", "SeedHistory", "SharedExamples", "fewest_replicates", "groups_of",
    "recipe_verdict", "shared_examples", "with_seeds_to_settle",
]


@dataclass(frozen=True, eq=False)
class SharedExamples:
    """The test examples of two models, and their predictions' verdict.

    ``targets`` (n,) are numbers of ``classes``, whose names these are (none where they are not
    known), amounts, or what a constant answer scores (NaN where that is not known); ``groups`` (n,)
    whose examples they are.
    """

    task: Task
    targets: np.ndarray
    classes: Sequence[str] = ()
    groups: np.ndarray | None = None

    def verdict(
        self, original: np.ndarray, slim: np.ndarray, settings: Settings, **options: Any
    ) -> Verdict:
        """The verdict on what the settings' score takes of both: shape (S, n) or (S, n, classes).

        Args:
            original: its predictions or probabilities.
            slim: the same.
            settings: score, margins, confidence and seed.
            options: further ones of ``compare``.

        Raises:
            ValueError: one line; predictions that have no such score.
        """
        score = settings.score or default_score(self.task)
        if self.task in BY_EXAMPLE:
            known = not np.isnan(self.targets).any()
            return compare(
                original, slim, constant=self.targets if known else None, score=score,
                margin=settings.margin, confidence=settings.confidence, seed=settings.seed,
                groups=self.groups,
                max_collapse=settings.max_collapse if len(slim) > 1 else None, **options)
        classes = self.task != "regression"
        targets = self.targets.astype(int) if classes else self.targets
        if classes and find_score(score).takes in ("labels", "probabilities"):
            of_columns = original.shape[2] if original.ndim > 2 else 2
            names = self._names(max(of_columns, int(targets.max()) + 1))
            targets, options["classes"] = names[targets], names.tolist()
            if find_score(score).takes == "labels":
                original, slim = (_named(side, names) for side in (original, slim))
        return compare(
            original, slim, targets=targets, score=score, margin=settings.margin,
            confidence=settings.confidence, seed=settings.seed, groups=self.groups,
            class_margin=settings.accepted_class_loss,
            max_collapse=settings.max_collapse if len(slim) > 1 else None, **options)

    def _names(self, count: int) -> np.ndarray:
        known = len(self.classes) >= count and len(set(self.classes)) == len(self.classes)
        return np.array(self.classes if known else [str(number) for number in range(count)])


def _named(codes: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Classes by name; one that no target has is "?"."""
    every = np.append(names, "?")
    whole = codes.astype(int)
    return np.asarray(every[np.where((whole < 0) | (whole >= len(names)), len(names), whole)])


@dataclass(frozen=True)
class SeedHistory:
    """What went before a recipe verdict.

    Attributes:
        screened: how many widths got new seeds to see whether they collapse.
        judged: the slim one's seeds in an earlier verdict on the same recipes, by another plan.
        ahead: how many of the slim one's networks were there before any verdict, as they had been
            screened; then the original's alone are added look by look.
    """

    screened: int = 1
    judged: int = 0
    ahead: int = 0

    @classmethod
    def of(cls, goal: TargetWidths | None, judged: int = 0) -> SeedHistory:
        """The history of a slim variant of these widths."""
        searched = goal.searched if goal else None
        return cls(goal.screened if goal else 1, judged, searched.screened_seeds if searched else 0)


NO_HISTORY = SeedHistory()


def recipe_verdict(
    original: Sequence[Replicate], slim: Sequence[Replicate], examples: SharedExamples,
    settings: Settings, history: SeedHistory = NO_HISTORY,
) -> Verdict | None:
    """The verdict over the replicates on the test examples; None of fewer than 5 a side.

    An original of one replicate, which was trained elsewhere, is one given network. Of a side at
    most twice as many count as there are of the other. Planned are the looks where ``seeds`` is
    a range, else that number. What the slim one has beyond the last look that was planned, or
    beyond an earlier verdict by another plan, is exploratory; a number between the looks is one
    more look. Where all of the slim one's networks were there beforehand, twice as many of them as
    of the original's are compared, and the others count among the collapses.
    Replicates of a run of an earlier version, which kept no predictions, are judged by their
    scores, without guards.
    """
    given = len(original) == 1
    if len(slim) < FEWEST_SEEDS or not given and len(original) < FEWEST_SEEDS:
        return None
    plan = planned_looks(settings.most_seeds) if settings.until_settled else (settings.most_seeds,)
    ahead = settings.until_settled and history.ahead >= plan[-1]
    seeds = len(slim) if given else min(len(slim), 2 * len(original))
    sides = original[:2 * len(slim)], slim if ahead else slim[:seeds]
    pair = seeds, len(sides[0])
    judged = partial(_judged, *sides, examples, settings, screened=history.screened)
    if ahead:
        pairs = sorted({*((min(plan[-1], 2 * look), look) for look in plan), pair})
        return judged(planned_seeds=None if given else pairs, compared_seeds=seeds,
                      beyond_plan=max((seeds if given else pair[1]) - plan[-1],
                                      _beyond(seeds, (seeds,), history.judged)))
    looks = sorted({*(look for look in plan if look >= FEWEST_SEEDS), seeds})
    return judged(planned_seeds=looks if len(looks) > 1 and seeds >= plan[0] else None,
                  beyond_plan=_beyond(seeds, plan, history.judged))


def _judged(
    original: Sequence[Replicate], slim: Sequence[Replicate], examples: SharedExamples,
    settings: Settings, **options: Any,
) -> Verdict:
    """The verdict on their predictions; on their scores where an earlier version kept no more."""
    predictions = [[replicate.predictions for replicate in side] for side in (original, slim)]
    if all(each is not None for side in predictions for each in side):
        old, new = (np.stack([each for each in side if each is not None]) for side in predictions)
        return examples.verdict(old, new, settings, **options)
    scores: list[Any] = [np.stack([replicate.scores for replicate in side])
                         for side in (original, slim)]
    if examples.task == "regression":
        scores = [R2Scores(side, examples.targets) for side in scores]
    return compare(*scores, margin=settings.margin, confidence=settings.confidence,
                   score=score_name(examples.task), seed=settings.seed, groups=examples.groups,
                   max_collapse=settings.max_collapse, **options)


def _beyond(seeds: int, plan: Sequence[int], judged: int) -> int:
    """How many of the seeds were not planned when fewer of them were judged.

    >>> _beyond(12, (5, 8, 12), 0), _beyond(14, (5, 8, 12), 0), _beyond(12, (5, 8, 12), 5)
    (0, 2, 7)
    """
    before = max((look for look in plan if look <= seeds), default=seeds)
    return seeds - min(before, judged or before)


def shared_examples(variant: ModelVariant) -> SharedExamples:
    """The test examples of a variant."""
    return SharedExamples(variant.test.task, variant.test.targets, variant.recipe.split.classes,
                          groups_of(variant))


def groups_of(variant: ModelVariant) -> np.ndarray | None:
    """Whose the test examples are: of labels, tokens and amounts the number of their example."""
    groups = variant.recipe.split.test.groups
    return variant.test.groups if groups is None else groups


def fewest_replicates(original: ModelVariant, slim: ModelVariant) -> int:
    """Of the side that has fewer; an original that was trained elsewhere is given, and one."""
    sides = (slim,) if original.adopted else (original, slim)
    return min(len(side.replicates) for side in sides)


def with_seeds_to_settle(
    store: Store, original: ModelVariant, slim: ModelVariant, make_original: NetworkFactory,
    goal: TargetWidths | None = None, allowance: Allowance | None = None,
) -> tuple[ModelVariant, ModelVariant]:
    """Both with as many replicates as ``seeds`` says; of a range, as settle the verdict.

    Of an original that was trained elsewhere there is one. A range ends early where the last look
    would hardly settle it, where there is no time left for the slim one's networks up to the next,
    after Ctrl-C, and at the latest with its last number. What is added is logged once, at the end,
    in the runs of both.

    Args:
        store: where the runs are.
        original: what the slim one is judged against.
        slim: where it has one replicate alone, as its training takes too long, nothing is added.
        make_original: makes the original's replicates.
        goal: how the slim one's widths were chosen.
        allowance: what the slim one's networks may take.
    """
    history, allowance = SeedHistory.of(goal), allowance or Allowance()
    settings, before = slim.settings, (len(original.replicates), len(slim.replicates))
    looks = planned_looks(settings.most_seeds) if settings.until_settled else (
        settings.most_seeds,)
    if slim.interrupted or settings.first_seeds < FEWEST_SEEDS \
            or original.adopted and before[1] < FEWEST_SEEDS:
        return original, slim
    examples = shared_examples(slim)
    for seeds in looks:
        ahead = history.ahead >= looks[-1] and settings.until_settled and not original.adopted
        if seeds < len((original if ahead else slim).replicates):
            continue
        ahead_of_now = seeds - len(slim.replicates)
        if ahead_of_now > 0 and not allowance.affords(slim.trained.seconds, ahead_of_now):
            break
        if not original.adopted:
            original = _extended(store, original, seeds, make_original)
        slim = replace(slim, interrupted=True) if original.interrupted else \
            _extended(store, slim, seeds, slim.make)
        if fewest_replicates(original, slim) < FEWEST_SEEDS:
            break
        verdict = recipe_verdict(original.replicates, slim.replicates, examples, settings, history)
        assert verdict is not None and verdict.counts is not None, "at least 5 a side"
        if slim.interrupted or verdict.outcome != "inconclusive" or verdict.guard or \
                (verdict.counts.chance_to_settle or 0.0) < LEAST_CHANCE:
            break
    if len(original.replicates) > before[0]:
        original = _logged(store, original)
    if len(slim.replicates) > before[1]:
        slim = _logged(store, slim)
    return original, slim


def _extended(
    store: Store, variant: ModelVariant, seeds: int, make: NetworkFactory
) -> ModelVariant:
    """With so many replicates, fewer after Ctrl-C; those that it has stay."""
    numbers = range(len(variant.replicates), seeds)
    with trainer_logs_to(store, parent=variant.run_id):
        added = further_replicates(variant.recipe, make, numbers, known={},
                                   label=f"further seeds of {variant.name}")
    return replace(variant, replicates=[*variant.replicates, *added],
                   interrupted=len(added) < len(numbers))


def _logged(store: Store, variant: ModelVariant) -> ModelVariant:
    """Its run holds the replicates that it has now."""
    files = variant_files(variant.trained, variant.test, variant.replicates)
    metrics = replicate_metrics(variant.replicates, variant.test.task)
    kept = (ArtifactPath.PREDICTIONS, ArtifactPath.RNG_STATE)
    add_to_run(store, variant, metrics, files={
        ArtifactPath.REPLICATES: replicates_table(variant.replicates),
        **{path: files[path] for path in kept}})
    _log_scores(store, variant)
    return variant.logged({}, metrics)


def _log_scores(store: Store, variant: ModelVariant) -> None:
    """The points by seed that its run lacks, in one call: MLflow would keep the others twice."""
    name, now = Metric.SCORE_TEST_BY_SEED, int(time.time() * 1000)
    known = {point.step for point in store.client.get_metric_history(variant.run_id, name)}
    points = [MetricEntity(name, score, now, step)
              for step, score in enumerate(scores_by_seed(variant.replicates), 1)
              if step not in known]
    if points:
        store.client.log_batch(variant.run_id, metrics=points)
