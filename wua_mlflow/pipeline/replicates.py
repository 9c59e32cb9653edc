"""Replicates: the recipe repeated over seeds.

Replicate i repeats the whole recipe (oversized, then slim from the same random stream) with torch
seed ``seed + i``, data and split fixed; replicate 0 is the main run.
May import: the leaves, the recipe, the streams. Tests: ``tests/pipeline/test_recipe.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from wua_mlflow.evaluation import Evaluation
from wua_mlflow.pipeline.recipe import Recipe, Trained
from wua_mlflow.pipeline.streams import Stream
from wua_mlflow.training import TrainingDiverged

__all__ = ["Replicate", "naming_replicate", "replicate_seed", "train_replicates"]


@dataclass(frozen=True)
class Replicate:
    """One repetition of the recipe: its seed, scores by test example, mean loss, stream."""

    seed: int
    scores: np.ndarray
    loss: float
    stream: Stream = field(repr=False)

    @property
    def score(self) -> float:
        """Accuracy, or R²."""
        return float(self.scores.mean())


def train_replicates(
    recipe: Recipe,
    one: Callable[[int, int], Trained],
    main: tuple[Trained, Evaluation],
    *,
    count: int,
    label: str = "replicates",
) -> list[Replicate]:
    """The main network as replicate 0, and ``count − 1`` more repetitions.

    Args:
        recipe: what is trained on what.
        one: trains a network, given the replicate's number and its seed.
        main: the main network and its evaluation on the test part.
        count: how many, the main network among them.
        label: of the progress bar.
    """
    trained, evaluation = main
    settings = recipe.settings
    found = [Replicate(settings.seed, evaluation.scores, evaluation.loss, trained.stream)]
    for number in tqdm(range(1, count), desc=label, disable=None, leave=False, unit="seed"):
        seed = replicate_seed(settings.seed, number)
        with naming_replicate(number, seed):
            trained = one(number, seed)
            result = recipe.evaluate(trained.model, recipe.split.test, trained.kind)
        found.append(Replicate(seed, result.scores, result.loss, trained.stream))
    return found


def replicate_seed(seed: int, number: int) -> int:
    """The torch seed of a replicate: ``seed + number``, in [0, 2**32)."""
    return (seed + number) % 2**32


@contextmanager
def naming_replicate(number: int, seed: int) -> Iterator[None]:
    """An error within names the replicate."""
    try:
        yield
    except ValueError as error:
        kind = TrainingDiverged if isinstance(error, TrainingDiverged) else ValueError
        raise kind(f"{error} (in replicate {number}, seed {seed})") from error
