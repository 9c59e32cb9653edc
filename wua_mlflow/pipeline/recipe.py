"""A recipe: data, a factory of models and a trainer, as the settings name them.

Tests: ``tests/pipeline/test_replicates.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from wua_mlflow.config import TUTORIAL, Settings
from wua_mlflow.data.batches import Inputs, needed_arguments
from wua_mlflow.data.datasets import DataSplit, is_file
from wua_mlflow.data.loaders import load_split
from wua_mlflow.data.parts import DataPart
from wua_mlflow.data.tasks import OutputKind, checked_output, judged_as, output_kind
from wua_mlflow.device import device_of, same_on_every_processor, use_threads
from wua_mlflow.hooks import evaluating
from wua_mlflow.imports import load_object
from wua_mlflow.pipeline.models import factory, made_by, naming, users_factory, users_function
from wua_mlflow.pruning.layers import call_model
from wua_mlflow.rng import isolated, seed_all
from wua_mlflow.training.evaluation import Evaluation, Objective, evaluate_batches, evaluation_of
from wua_mlflow.verdict.scores import check_task
from wua_mlflow.widths.factory import Factory

__all__ = ["Recipe", "Trainer", "load_recipe"]


Trainer = Callable[..., nn.Module | None]
"""(model, (train, validation), epochs, seed[, widths]) -> the model, trained; None: the one given.

The two parts are torch Datasets of (x, y) where the data are held in memory, else what the user's
function of the data returned."""


@dataclass(frozen=True)
class Recipe:
    """What is trained on what; ``settings`` holds budgets and seeds."""

    settings: Settings
    split: DataSplit
    build: Factory
    device: torch.device

    @cached_property
    def trainer(self) -> Trainer | None:
        """The user's own trainer, if one is named."""
        name = self.settings.train
        return load_object(name, argument="train") if name else None

    @cached_property
    def own_loss(self) -> Callable[[Any, Any], Tensor] | None:
        """The user's own loss, if one is named; its errors are one line that names it."""
        name = self.settings.loss
        return users_function(name, "loss") if name else None

    def example(self, model: nn.Module, count: int = 4) -> Inputs:
        """A few training inputs, as the model takes them, on its device."""
        return self.split.train.example(model, count)

    def kind_of(self, model: nn.Module) -> OutputKind:
        """What the model's outputs are."""
        return output_kind(model, self.example(model, 2), self.split.task,
                           next_token=self.split.spec.next_token)

    def objective(self, kind: OutputKind) -> Objective:
        """What networks are trained for and judged by."""
        return Objective(self.split.task, kind, self.settings.score, self.own_loss)

    def evaluate(self, model: nn.Module, part: DataPart, kind: OutputKind) -> Evaluation:
        """The model's predictions, losses and scores on a part; of one without order a sample."""
        with naming(f"model: {self.settings.model} cannot be evaluated"):
            batches = part.batches(model) if part.digest else part.sample(model)
            return evaluate_batches(model, batches, self.objective(kind), digest=part.digest)

    def example_scores(self, outputs: Tensor, targets: Tensor, *, kind: OutputKind) -> Tensor:
        """The score that is set, of outputs, one number an example (``Evaluation.scores``)."""
        found = evaluation_of(outputs, targets, task=self.split.task, kind=kind,
                              score=self.settings.score)
        return torch.from_numpy(found.scores)


def load_recipe(settings: Settings) -> Recipe:
    """Load the data and find the factory and the trainer that the settings name.

    Raises:
        ValueError: one line; something is not there, or does not fit.
    """
    use_threads(settings.threads)
    if settings.data == TUTORIAL:
        same_on_every_processor()
    split = load_recipe_data(settings)
    if is_file(settings.data):
        settings = settings.model_copy(update={"data": split.source})  # holds in any folder
    if settings.score is not None:
        check_task(settings.score, judged_as(split.task))
    elif split.task == "custom":
        raise ValueError("score: expected package.module:function of (targets, predictions), one "
                         "number an example, for a custom task, but got none")
    build, device = factory(settings.model, split), device_of(settings.device)
    if split.task == "binary" and settings.task is None and ":" in settings.model:
        split = _for_outputs(split, build, settings)
    recipe = Recipe(settings, split, build, device)
    _ = recipe.trainer, recipe.own_loss
    return recipe


def _for_outputs(split: DataSplit, build: Factory, settings: Settings) -> DataSplit:
    """Two classes as a multi-class task, where the user's model has an output for each."""
    with suppress(Exception), isolated():  # what is wrong with the model is said in training
        seed_all(settings.seed)
        model = build(settings.hidden)
        with evaluating(model):
            outputs = checked_output(call_model(model, split.train.example(model, 2)))
        if outputs.dim() == 2 and outputs.shape[1] == 2:
            return split.for_two_outputs()
    return split


def load_recipe_data(settings: Settings) -> DataSplit:
    """The data that the settings name, in three parts, as their model takes them."""
    def arguments() -> int:
        factory = users_factory(settings.model)
        with isolated():
            return needed_arguments(made_by(factory, settings.model, settings.hidden or None,
                                            lambda _: None))

    name = settings.batch_to_inputs
    return load_split(settings, None if name is None else users_function(name, "batch_to_inputs"),
                      arguments=arguments if ":" in settings.model else None)
