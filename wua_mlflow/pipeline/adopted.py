"""An original that was trained elsewhere: a factory's module with the weights of a file.

May import: everything but cli and the chain. Tests: ``tests/pipeline/test_adopted.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from torch import Tensor

from wua_mlflow.config import Settings
from wua_mlflow.evaluation import output_kind
from wua_mlflow.pipeline.data import takes
from wua_mlflow.pipeline.models import BUILT_IN, check_fit, users_factory
from wua_mlflow.pipeline.recipe import Recipe, Trained, load_recipe
from wua_mlflow.pipeline.sides import source_run
from wua_mlflow.pipeline.steps import Plan, train
from wua_mlflow.pipeline.streams import seed_all, stream_of
from wua_mlflow.pipeline.variant import Variant
from wua_mlflow.pipeline.weights import load_weights
from wua_mlflow.randomness import isolated
from wua_mlflow.slimming import unit_groups
from wua_mlflow.tracking.names import Variant as VariantName
from wua_mlflow.tracking.store import Store

__all__ = ["adopt", "adopted_recipe", "source_of"]


def adopted_recipe(settings: Settings, given: frozenset[str]) -> Recipe:
    """The data and the factory that the settings name.

    Args:
        settings: ``model``, ``data`` and what goes with them.
        given: names of the settings that were given; a factory gets widths where ``hidden`` is
            among them, or where it can do with nothing less.

    Raises:
        ValueError: one line; something is not there, or does not fit.
    """
    own = settings.model not in BUILT_IN
    if own and "hidden" not in given and takes(users_factory(settings.model)):
        settings = settings.model_copy(update={"hidden": ()})
    if settings.state is not None:
        path = str(Path(settings.state).expanduser().absolute())
        settings = settings.model_copy(update={"state": path})
    return load_recipe(settings.model_copy(update={"seeds": 1}))


def adopt(store: Store, recipe: Recipe, *, pipeline: str | None = None) -> Variant:
    """Log the factory's module, with the weights of ``state``, as an original's run.

    There is one network and no replicate of it; nobody knows what its training cost.

    Raises:
        ValueError: one line; the weights do not fit the module, or the module not the data.
    """
    trained = _loaded(recipe)
    settings = recipe.settings

    def make(number: int, seed: int, label: str | None = None) -> Trained:
        return trained

    widths = settings.hidden or tuple(
        group.units for group in unit_groups(trained.model, _example(recipe)).groups)
    variant = train(store, recipe, Plan(
        VariantName.OVERSIZED, widths, settings.epochs, make, hidden=settings.hidden,
        adopted=settings.state or settings.model, replicates=1, pipeline=pipeline))
    doubt = _doubt(variant)
    if doubt:
        print(f"wua: note: {doubt}", file=sys.stderr)
    return variant


def _doubt(variant: Variant) -> str:
    """A line, where the network answers worse than one that never looks at its inputs."""
    score, least = variant.test.score, 0.0
    if variant.test.task != "regression":
        counts = np.unique(variant.test.targets, return_counts=True)[1]
        least = float(counts.max() / counts.sum())
    if score >= least:
        return ""
    return (f"the original scores {score:.4f} on the test part, where the same answer to "
            f"everything scores {least:.4f}: are these data what it was trained on, in the same "
            f"units? All that follows is beside that score")


def source_of(store: Store, uri: str) -> str:
    """The run of ours that logged the model behind ``uri``.

    Raises:
        ValueError: one line; there is no such model, or it was not logged by a variant's run: its
            exported graph has no layers that could be cut.
    """
    run_id = source_run(store, uri)
    if run_id is None:
        raise ValueError(f"model_uri: expected a model that a variant's run of wua logged, but "
                         f"{uri} is none; an exported graph (pt2) has no layers to cut: name the "
                         f"module and its weights (--model package.module:factory "
                         f"--state weights.safetensors --data DATA)")
    return run_id


def _loaded(recipe: Recipe) -> Trained:
    settings, split = recipe.settings, recipe.split
    with isolated():
        seed_all(settings.seed)
        model = recipe.build(settings.hidden)
        stream = stream_of(recipe.device)
    if settings.state is not None:
        load_weights(model, settings.state)
    model = model.to(recipe.device).eval()
    check_fit(model, split)
    return Trained(model, output_kind(model, _example(recipe)[:2], split.task), (), stream)


def _example(recipe: Recipe) -> Tensor:
    return recipe.split.train.inputs[:4].to(recipe.device)
