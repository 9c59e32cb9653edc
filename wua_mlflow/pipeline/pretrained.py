"""A model that was trained elsewhere becomes an original, with a run of its own.

Tests: ``tests/pipeline/test_pretrained.py``.
"""

from __future__ import annotations

import sys
from typing import Any

from wua_mlflow.config import Settings
from wua_mlflow.data.datasets import takes
from wua_mlflow.imports import local_path
from wua_mlflow.pipeline.cautions import cautions_elsewhere, constant_score, shown_score
from wua_mlflow.pipeline.compare_external import source_run
from wua_mlflow.pipeline.models import BUILT_IN, check_fit, users_factory
from wua_mlflow.pipeline.networks import one_network
from wua_mlflow.pipeline.recipe import Recipe, load_recipe
from wua_mlflow.pipeline.replicates import Trained
from wua_mlflow.pipeline.train import TrainingPlan, train_variant
from wua_mlflow.pipeline.variant import ModelVariant
from wua_mlflow.pipeline.weights import load_weights
from wua_mlflow.pruning.cut import unit_groups
from wua_mlflow.rng import isolated, seed_all, stream_of
from wua_mlflow.tracking.names import Metric
from wua_mlflow.tracking.names import Variant as VariantName
from wua_mlflow.tracking.store import Store
from wua_mlflow.training.evaluation import Evaluation
from wua_mlflow.verdict.scores import BY_EXAMPLE

__all__ = ["import_pretrained", "pretrained_recipe", "pretrained_settings", "source_of"]


def pretrained_settings(settings: Settings) -> Settings:
    """The settings of a model that exists: its file by a path that holds in any folder.

    A factory gets widths where ``hidden`` is given, or where it can do with nothing less.

    Raises:
        ValueError: one line; there is no such factory.
    """
    changes: dict[str, Any] = {}
    if settings.model not in BUILT_IN and "hidden" not in settings.given and \
            takes(users_factory(settings.model)):
        changes["hidden"] = ()
    if settings.state is not None:
        changes["state"] = str(local_path(settings.state).absolute())
    return settings.model_copy(update=changes)


def pretrained_recipe(settings: Settings) -> Recipe:
    """The data and the factory that the settings name.

    Raises:
        ValueError: one line; something is not there, or does not fit.
    """
    return load_recipe(pretrained_settings(settings))


def import_pretrained(store: Store, recipe: Recipe, *, pipeline: str | None = None) -> ModelVariant:
    """Log the factory's module, with the weights of ``state``, as an original's run.

    There is one network and no replicate of it. What its training cost is not known.

    Raises:
        ValueError: one line; the weights do not fit the module, or the module not the data.
    """
    settings, split = recipe.settings, recipe.split
    with isolated():
        seed_all(settings.seed)
        model = recipe.build(settings.hidden)
        stream = stream_of(recipe.device)
    if settings.state is not None:
        load_weights(model, settings.state)
    model = model.to(recipe.device).eval()
    check_fit(model, split)
    trained = Trained(model, recipe.kind_of(model), (), stream)
    widths = settings.hidden or tuple(
        group.units for group in unit_groups(
            model, recipe.example(model), settings.what_to_cut.kinds).groups)
    variant = train_variant(store, recipe, TrainingPlan(
        VariantName.OVERSIZED, widths, settings.epochs, one_network(trained, recipe.device),
        hidden=settings.hidden, adopted=settings.state or settings.model, replicates=1,
        pipeline=pipeline))
    warning = _low_score_warning(variant.test)
    for line in filter(None, (warning, *cautions_elsewhere(
            variant.test, variant.metrics[Metric.SCORE_TRAIN],
            variant.replicates[0].validation_scores))):
        print(f"wua: note: {line}", file=sys.stderr)
    return variant


def _low_score_warning(test: Evaluation) -> str:
    """A line, where the network answers worse than one that ignores its inputs."""
    name = shown_score(test)
    if test.task in BY_EXAMPLE or test.score_name not in ("", "accuracy", "r2"):
        return ""
    least = constant_score(test)
    if test.score >= least:
        return ""
    return (f"the original has {name} on the test part, where the same answer to everything has "
            f"{least:.4f}: are these data what it was trained on, in the same units? All that "
            f"follows is beside that score")


def source_of(store: Store, uri: str) -> str:
    """The run of ours that logged the model behind ``uri``.

    Raises:
        ValueError: one line; there is no such model, or it was not logged by a variant's run: its
            exported graph has no layers that could be cut.
    """
    run_id = source_run(store, uri)
    if run_id is None:
        raise ValueError(f"run_id: expected a model that a variant's run of wua logged, but "
                         f"{uri} is none; an exported graph (pt2) has no layers to cut: name the "
                         f"module and its weights (--model package.module:factory "
                         f"--state weights.safetensors --data DATA)")
    return run_id
