"""The method ``search`` in a pipeline: networks of other widths, trained and validated.

Selection never sees the test part. Where the validation part is too small to show anything at the
margin, networks that are rebuilt are cross-validated over training and validation part together.
May import: everything but cli. Tests: ``tests/pipeline/test_searching.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from wua_mlflow.config import Settings
from wua_mlflow.pipeline.data import DataSplit, Part
from wua_mlflow.pipeline.making import Maker
from wua_mlflow.pipeline.recipe import Recipe
from wua_mlflow.pipeline.replicates import naming_replicate, replicate_seed
from wua_mlflow.randomness import Purpose, torch_generator
from wua_mlflow.verdict import required_examples_without_discordance
from wua_mlflow.widths.search import search_widths
from wua_mlflow.widths.searched import SearchResult

__all__ = ["Retraining", "folds_of", "search", "validation_scores"]

FOLDS = 5
SEEDS = 5
"""Replicates of each candidate: as many as a recipe verdict needs."""
ROOM = 4
"""A validation part is large enough with so many times the examples that no difference needs."""

Makers = Callable[[Recipe, tuple[int, ...]], Maker]
"""What trains networks of the given widths on the recipe's data."""


@dataclass(frozen=True)
class Retraining:
    """How networks of other widths are trained.

    ``cost`` gives the FLOPs of a forward; ``anew`` says whether networks are trained from scratch,
    so that other parts of the data may validate them.
    """

    recipe: Recipe
    make: Makers
    cost: Callable[[tuple[int, ...]], float]
    anew: bool


def search(
    settings: Settings, retraining: Retraining, units: Sequence[int], suggestion: Sequence[int]
) -> SearchResult:
    """The smallest widths whose networks are as good as those of ``units``, on validation data."""
    seeds = SEEDS if settings.seeds >= SEEDS else 1
    recipes = list(_recipes(settings, retraining))
    with tqdm(total=settings.search_runs, desc="searching widths", disable=None, leave=False,
              unit="width") as bar:
        def score(widths: tuple[int, ...]) -> np.ndarray:
            bar.set_postfix(widths="-".join(map(str, widths)))
            found = validation_scores(
                [(recipe, retraining.make(recipe, widths)) for recipe in recipes], seeds)
            bar.update()
            return found

        return search_widths(score, units, suggestion, margin=settings.margin,
                             confidence=settings.confidence, runs=settings.search_runs,
                             seconds=settings.search_seconds, cost=retraining.cost,
                             seed=settings.seed)


def validation_scores(recipes: Sequence[tuple[Recipe, Maker]], seeds: int) -> np.ndarray:
    """Scores of the validation examples, shape (seeds, examples); the folds follow each other."""
    rows = []
    for number in range(seeds):
        row = []
        for recipe, make in recipes:
            seed = replicate_seed(recipe.settings.seed, number)
            with naming_replicate(number, seed):
                trained = make(number, seed)
                row.append(recipe.evaluate(trained.model, recipe.split.validation,
                                           trained.kind).scores)
        rows.append(np.concatenate(row))
    return np.stack(rows)


def _recipes(settings: Settings, retraining: Retraining) -> Iterator[Recipe]:
    """The recipe as it is, or one a fold, where its validation part is too small."""
    recipe = retraining.recipe
    enough = settings.margin > 0 and len(recipe.split.validation) >= ROOM * \
        required_examples_without_discordance(settings.margin, settings.confidence)
    if enough or not retraining.anew:
        yield recipe
        return
    for split in folds_of(recipe.split, FOLDS, settings.seed):
        yield replace(recipe, split=split)


def folds_of(split: DataSplit, folds: int, seed: int) -> list[DataSplit]:
    """Training and validation part together, divided at random: each example validates once.

    The test part stays what it is.
    """
    inputs = torch.cat([split.train.inputs, split.validation.inputs])
    targets = torch.cat([split.train.targets, split.validation.targets])
    order = torch.randperm(len(inputs), generator=torch_generator(seed, Purpose.FOLDS))
    parts = order.tensor_split(folds)

    def part(rows: Tensor) -> Part:
        return Part(inputs[rows], targets[rows])

    return [replace(split, validation=part(rows),
                    train=part(torch.cat([other for other in parts if other is not rows])))
            for rows in parts]
