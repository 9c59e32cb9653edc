"""The step ``train`` and the planning of ``slim``, and what every step's run needs.

At most ten tracking calls a step, plus one per thousand metrics. ``analyze`` is in
``analysing.py``, ``compare`` in ``comparison.py``, the order of the steps in ``chain.py``.
May import: everything but cli. Tests: ``tests/pipeline/test_steps.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from wua_mlflow import __version__
from wua_mlflow.config import Settings, settings_yaml
from wua_mlflow.evaluation import Evaluation
from wua_mlflow.flops import CONVENTION, count_flops, ptflops_forward_flops
from wua_mlflow.pipeline.measuring import first_criterion, loss_of, measured
from wua_mlflow.pipeline.models import check_widths
from wua_mlflow.pipeline.recipe import (
    Recipe,
    Replicate,
    Stream,
    Trained,
    train_one,
    train_replicates,
)
from wua_mlflow.pipeline.streaming import part_feed
from wua_mlflow.pipeline.variant import Variant, replicates_table, variant_files
from wua_mlflow.plots.palette import variant_colour
from wua_mlflow.stopping import held, released
from wua_mlflow.tracking.datasets import dataset_inputs
from wua_mlflow.tracking.log import flop_metrics, write
from wua_mlflow.tracking.models import log_model
from wua_mlflow.tracking.names import ArtifactPath, Kind, Metric, Tag, step_tag
from wua_mlflow.tracking.names import Variant as VariantName
from wua_mlflow.tracking.store import Store, ended, inherited_run, new_run
from wua_mlflow.usage import ModelUsage
from wua_mlflow.widths import WidthRecommendation, recommend_widths

__all__ = ["Plan", "derive_widths", "marking", "opened", "shown_params", "train", "unheld"]


@dataclass(frozen=True)
class Plan:
    """One network to train: which variant it is, how wide, how long, and what it goes on from."""

    variant: str
    widths: tuple[int, ...]
    epochs: int
    streams: Sequence[Stream] | None = None
    baseline: str | None = None
    pipeline: str | None = None

    @property
    def name(self) -> str:
        """The run's name: ``oversized 10``, ``slim 7``, ``oversized 10, 60 epochs``."""
        widths = "-".join(str(width) for width in self.widths)
        if self.variant == VariantName.SAME_BUDGET:
            return f"oversized {widths}, {self.epochs} epochs"
        return f"{self.variant} {widths}"


@contextlib.contextmanager
def opened(store: Store, make: Callable[[], str], *, finish: bool = True) -> Iterator[str]:
    """The run that ``make`` makes; it ends as FINISHED, FAILED or KILLED, whenever a signal comes.

    Args:
        store: where the run is.
        make: gives the run's id.
        finish: whether a block that succeeds ends the run.
    """
    with held(), ended(store, make(), finish=finish) as run_id, released():
        yield run_id


@contextlib.contextmanager
def marking(store: Store, run_id: str, step: str) -> Iterator[None]:
    """Mark a step of a run as failed where the block raises; ``done`` goes with its results."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):  # the store's own failure must not hide the error
            store.client.set_tag(run_id, step_tag(step), "failed")
        raise


def train(store: Store, recipe: Recipe, plan: Plan) -> Variant:
    """Train a variant and its replicates, count what it costs, and log all of it as one run.

    The run that ``mlflow run -e train`` made is the variant's; else one is made.
    """
    settings = recipe.settings.model_copy(
        update={"hidden": plan.widths, "epochs": plan.epochs, "run_id": None})
    tags = _tags(recipe, plan)
    with opened(store, lambda: _run_of(store, plan, tags)) as run_id, \
            marking(store, run_id, "train"):
        write(store.client, run_id, params=unheld(store, run_id, _params(settings)))
        trained = train_one(recipe, plan.widths, plan.epochs, seed=settings.seed,
                            stream=plan.streams[0] if plan.streams else None,
                            label=f"training {plan.name}")
        test = recipe.evaluate(trained.model, recipe.split.test, trained.kind)
        replicates = train_replicates(recipe, plan.widths, plan.epochs, (trained, test),
                                      streams=plan.streams, label=f"replicates of {plan.name}")
        metrics = {**_score_metrics(recipe, trained, test, replicates),
                   **_cost_metrics(recipe, trained, plan)}
        model_id, metrics[Metric.SIZE_BYTES] = log_model(
            store.client, run_id, store.experiment_id, trained.model, recipe.split.train.inputs,
            params=_params(settings), tags={Tag.VARIANT: plan.variant})
        store.client.log_inputs(run_id, datasets=_datasets(recipe))
        done = {step_tag("train"): "done",
                Tag.EPOCHS_TRAINED: str(len(trained.records) or plan.epochs)}
        write(store.client, run_id, metrics=metrics, curves=_curves(trained), model_id=model_id,
              tags=done, files={
                  ArtifactPath.CONFIG: _origin(plan, recipe.settings) + settings_yaml(settings),
                  ArtifactPath.REPLICATES: replicates_table(replicates),
                  **variant_files(trained.model, test, replicates)})
    own = Recipe(settings, recipe.split, recipe.build, recipe.device)
    return Variant(run_id, store.experiment_id, plan.name, plan.variant, own, trained.model,
                   trained.kind, test, replicates, {**tags, **done}, metrics)


def derive_widths(variant: Variant, usage: ModelUsage | None = None) -> WidthRecommendation:
    """The slim widths: those given, or the method's, from the usage of the original.

    Raises:
        ValueError: the factory ignores its widths, as many widths were not given as the original
            has, one is larger than the original's, or none is smaller.
    """
    settings = variant.settings
    original = settings.hidden
    layers = check_widths(variant.recipe.build, original, settings.slim_hidden)
    if settings.slim_hidden != "auto":
        return WidthRecommendation("given", original, settings.slim_hidden, layers)
    if usage is None:
        usage = _usage_of(variant)
    found = recommend_widths(usage, original, layers, method=settings.width_method)
    if found.widths == original:
        raise ValueError(f"slim_hidden: auto found no width below the original's "
                         f"({','.join(map(str, original))}); name smaller ones, if any")
    return found


def _usage_of(variant: Variant) -> ModelUsage:
    """The usage by the first criterion alone, for the widths: no null, nothing logged."""
    settings = variant.settings.model_copy(update={
        "criterion": first_criterion(variant.settings), "null_draws": 0, "effective_rank": False})
    split, device = variant.recipe.split, variant.recipe.device
    loss = loss_of(settings, variant.model, split, device, kind=variant.kind)
    usage, = measured(variant.model, part_feed(split, device, passes=1, label="widths"), settings,
                      loss).values()
    return usage


def _run_of(store: Store, plan: Plan, tags: Mapping[str, str]) -> str:
    """The variant's run: a new one, or that of ``mlflow run -e train``."""
    inherited = inherited_run()
    if inherited and plan.variant == VariantName.OVERSIZED and plan.pipeline is None:
        write(store.client, inherited, tags={**tags, "mlflow.runName": plan.name})
        return inherited
    return new_run(store, plan.name, tags, parent=plan.pipeline)


def unheld(store: Store, run_id: str, params: Mapping[str, str]) -> dict[str, str]:
    """The params that the run does not hold yet, as one that ``mlflow run`` made may do."""
    held_ones = store.client.get_run(run_id).data.params if run_id == inherited_run() else {}
    return {name: value for name, value in params.items() if name not in held_ones}


def _tags(recipe: Recipe, plan: Plan) -> dict[str, str]:
    tags = {
        Tag.KIND: Kind.VARIANT,
        Tag.VARIANT: plan.variant,
        Tag.VERSION: __version__,
        Tag.TASK: recipe.split.task,
        Tag.WIDTHS: ",".join(str(width) for width in plan.widths),
        Tag.TEST_DIGEST: recipe.split.test.digest,
        Tag.FLOP_CONVENTION: CONVENTION,
        step_tag("train"): "running",
        "mlflow.runColor": variant_colour(plan.variant),
        "mlflow.runType": "evaluation",  # the UI shows parents of such runs expanded
    }
    if plan.pipeline:
        tags[Tag.PIPELINE] = plan.pipeline
    if plan.baseline:
        tags[Tag.BASELINE] = plan.baseline
    return tags


def _origin(plan: Plan, settings: Settings) -> str:
    """A comment for ``config.yaml``: what else it takes to make this variant again."""
    if plan.streams is None:
        return ""
    widths = ",".join(map(str, settings.hidden))
    slim = ",".join(map(str, plan.widths))
    return (f"# Trained from the random stream that run {plan.baseline} left (hidden {widths}, "
            f"{settings.epochs} epochs).\n# Both again: the original's config.yaml with "
            f"slim_hidden: [{slim}], slim_epochs: {plan.epochs}\n")


def _params(settings: Settings) -> dict[str, str]:
    """The settings that made the network, as text."""
    return shown_params(settings, (
        "data", "target", "model", "train", "hidden", "epochs", "criterion", "optimizer",
        "batch_size", "lr", "patience", "seed", "seeds", "device", "threads"))


def shown_params(settings: Settings, fields: Iterable[str]) -> dict[str, str]:
    """Settings as text, for a run's params; those that are unset are left out."""
    values = {name: getattr(settings, name) for name in fields}
    return {name: ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            for name, value in values.items() if value is not None}


def _score_metrics(
    recipe: Recipe, trained: Trained, test: Evaluation, replicates: Sequence[Replicate]
) -> dict[str, float]:
    split = recipe.split
    scores = {
        "train": recipe.evaluate(trained.model, split.train, trained.kind).score,
        "validation": recipe.evaluate(trained.model, split.validation, trained.kind).score,
        "test": test.score,
    }
    metrics = {f"score/{part}": score for part, score in scores.items()}
    metrics[Metric.LOSS_TEST] = test.loss
    if split.task != "regression":
        metrics |= {f"accuracy/{part}": score for part, score in scores.items()}
        if len(replicates) > 1:
            all_scores = [replicate.score for replicate in replicates]
            metrics[Metric.ACCURACY_TEST_MEAN] = float(np.mean(all_scores))
            metrics[Metric.ACCURACY_TEST_STD] = float(np.std(all_scores, ddof=1))
    return metrics


def _cost_metrics(recipe: Recipe, trained: Trained, plan: Plan) -> dict[str, float]:
    train_samples = len(recipe.split.train.inputs)
    epochs = len(trained.records) or plan.epochs
    count = count_flops(trained.model, recipe.split.train.inputs[:2].to(recipe.device))
    metrics = flop_metrics(count, train_samples=train_samples, epochs=epochs)
    tutorial = ptflops_forward_flops(trained.model, recipe.split.features)
    if tutorial is not None:
        metrics[Metric.FLOPS_PTFLOPS_INFERENCE] = tutorial * train_samples
        metrics[Metric.FLOPS_PTFLOPS_TRAINING] = 2 * tutorial * train_samples * epochs
    metrics[Metric.PARAMS_TOTAL] = _parameters(trained.model)
    return metrics


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _curves(trained: Trained) -> dict[str, list[float]]:
    curves = {
        Metric.LOSS_TRAIN: [record.train_loss for record in trained.records],
        Metric.LOSS_VALIDATION: [record.validation_loss for record in trained.records
                                 if record.validation_loss is not None],
    }
    return {name: values for name, values in curves.items() if values}


def _datasets(recipe: Recipe) -> list[Any]:
    split = recipe.split
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    return dataset_inputs(split.name, split.source, [
        (context, part.inputs.numpy(), part.targets.numpy(), part.digest)
        for context, part in parts.items()])
