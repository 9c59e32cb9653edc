"""A recipe: data, a factory of models and a trainer; how its networks and replicates are trained.

The trainer is the built-in one or the user's own, of which it is checked that its network can be
kept. Tests: ``tests/pipeline/test_recipe.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from wua_mlflow.config import TUTORIAL, Settings
from wua_mlflow.data.datasets import DataSplit, Part, is_file, load_data
from wua_mlflow.data.tasks import OutputKind, loss_for, output_kind
from wua_mlflow.device import device_of, same_on_every_processor, use_threads
from wua_mlflow.errors import one_line
from wua_mlflow.hooks import evaluating, unwrapped
from wua_mlflow.imports import load_object
from wua_mlflow.pipeline.models import check_fit, factory, naming
from wua_mlflow.progress import Bar
from wua_mlflow.pruning.cut import Specification
from wua_mlflow.rng import Purpose, Stream, isolated, restore, seed_all, stream_of, torch_generator
from wua_mlflow.training.distillation import distillation_loss
from wua_mlflow.training.evaluation import Evaluation, evaluate, evaluation_of, outputs_of
from wua_mlflow.training.fit import Budget, EpochRecord, TrainingDiverged, fit
from wua_mlflow.verdict.scores import SCORES, check_task, value_of_comparable
from wua_mlflow.widths.factory import Factory

__all__ = [
    "Making", "Recipe", "Replicate", "Trained", "Trainer", "load_recipe", "train_made",
    "train_one", "train_replicate", "train_replicates",
]


Trainer = Callable[[nn.Module, tuple[TensorDataset, TensorDataset], int, int], nn.Module]
"""(model, (train, validation), epochs, seed) -> the model, trained."""


PROBES = 1024
"""So many training samples show whether outputs are finite, and whether two networks agree."""


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

    @property
    def example(self) -> Tensor:
        """A few training inputs, on the device."""
        return self.split.train.inputs[:4].to(self.device)

    def evaluate(self, model: nn.Module, part: Part, kind: OutputKind) -> Evaluation:
        """The model's predictions, losses and scores on a part."""
        with naming(f"model: {self.settings.model} cannot be evaluated"):
            return evaluate(model, *part.to(self.device), task=self.split.task, kind=kind,
                            digest=part.digest, score=self.settings.score)


    def example_scores(self, outputs: Tensor, targets: Tensor, *, kind: OutputKind) -> Tensor:
        """The score that is set, of outputs, one number an example (``Evaluation.scores``)."""
        found = evaluation_of(outputs, targets, task=self.split.task, kind=kind,
                              score=self.settings.score)
        return torch.from_numpy(found.scores)


@dataclass(frozen=True)
class Trained:
    """A trained network, in eval mode.

    Attributes:
        model: the network.
        kind: what its outputs are.
        records: of its epochs.
        stream: the random stream as training left it.
        seconds: how long training took.
        structure: what was cut from the module that the factory makes.
        uncut: layers that could not be cut, with the reason.
        folded: whether the next layers compensate for the units that were cut.
        tries: how many networks were trained, of which this one was chosen.
    """

    model: nn.Module
    kind: OutputKind
    records: Sequence[EpochRecord]
    stream: Stream
    seconds: float = 0.0
    structure: Specification | None = None
    uncut: Mapping[str, str] = field(default_factory=dict)
    folded: bool = False
    tries: int = 1


def load_recipe(settings: Settings) -> Recipe:
    """Load the data and find the factory and the trainer that the settings name.

    Raises:
        ValueError: one line; something is not there, or does not fit.
    """
    use_threads(settings.threads)
    if settings.data == TUTORIAL:
        same_on_every_processor()
    split = load_data(settings.data, target=settings.target, groups=settings.groups,
                      seed=settings.seed,
                      image=settings.model == "cnn", task=settings.task,
                      standardise=settings.state is None, table=settings.table_settings)
    if is_file(settings.data):
        settings = settings.model_copy(update={"data": split.source})  # holds in any folder
    if settings.score is not None:
        check_task(settings.score, split.task)
    recipe = Recipe(settings, split, factory(settings.model, split), device_of(settings.device))
    _ = recipe.trainer
    return recipe


Making = Callable[[], nn.Module]
"""Makes a network, on any device; it may draw from torch's global random stream."""


def train_one(
    recipe: Recipe,
    widths: Sequence[int],
    epochs: int,
    *,
    seed: int,
    stream: Stream | None = None,
    label: str | None = None,
) -> Trained:
    """Build a network of these widths and train it from scratch; see ``train_made``."""
    return train_made(recipe, partial(recipe.build, tuple(widths)), epochs, seed=seed,
                      stream=stream, label=label)


def train_made(  # noqa: PLR0913 - what is trained, for how long, from which stream, towards what
    recipe: Recipe,
    make: Making,
    epochs: int,
    *,
    seed: int,
    stream: Stream | None = None,
    label: str | None = None,
    teacher: nn.Module | None = None,
) -> Trained:
    """Make one network and train it; the caller's random streams are left alone.

    Args:
        recipe: what is trained on what.
        make: gives the network.
        epochs: at most so many.
        seed: of torch's stream, where ``stream`` does not go on from one; of the loaders always.
        stream: the random state to begin with: the oversized network's, for the slim one.
        label: of the progress bar.
        teacher: a network on the recipe's device whose outputs are also aimed at.

    Raises:
        ValueError: the model does not fit the data, or the trainer fails.
        TrainingDiverged: the loss became NaN.
    """
    settings, split = recipe.settings, recipe.split
    with isolated():
        seed_all(seed)
        if stream is not None:
            restore(stream, recipe.device)
        model = make().to(recipe.device)
        check_fit(model, split)
        _warm_up(recipe.device)
        began = time.perf_counter()
        if recipe.trainer is not None:
            model = _train_by_user(
                recipe, recipe.trainer, make, model=model, epochs=epochs, seed=seed)
        kind = output_kind(model, _probe(recipe)[:2], split.task)
        records: list[EpochRecord] = []
        if recipe.trainer is None:
            budget = Budget(epochs, settings.lr, settings.optimizer, settings.batch_size,
                            settings.patience)
            train, validation, loss = _data_and_loss(recipe, kind, teacher)
            steps = fit(model, train, loss, budget, generator=torch_generator(seed, Purpose.LOADER),
                        validation=validation if settings.patience else None,
                        watched=_watched(recipe, kind) if settings.score else None)
            records = _all_epochs(recipe, model, steps, epochs, label)
        seconds = time.perf_counter() - began
        return Trained(model.eval(), kind, records, stream_of(recipe.device), seconds)


def _warm_up(device: torch.device) -> None:
    """One step of an optimizer, so that what torch loads then is not counted as training time."""
    weight = nn.Parameter(torch.zeros(1, device=device))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()


def _watched(recipe: Recipe, kind: OutputKind) -> Callable[[nn.Module], float]:
    """What early stopping watches where a score is set: minus the validation part's mean."""
    def watched(model: nn.Module) -> float:
        result = recipe.evaluate(model, recipe.split.validation, kind)
        return result.score if less else -result.score

    name = recipe.settings.score or ""
    less = name in SCORES and SCORES[name].less_is_better

    return watched


def _data_and_loss(
    recipe: Recipe, kind: OutputKind, teacher: nn.Module | None
) -> tuple[Any, Any, Any]:
    """Training part, validation part and loss; with a teacher its outputs are targets too."""
    split = recipe.split
    parts: list[Any] = [part.to(recipe.device) for part in (split.train, split.validation)]
    loss = loss_for(split.task, kind)
    if teacher is not None:
        parts = [(inputs, (targets, outputs_of(teacher, inputs))) for inputs, targets in parts]
        loss = distillation_loss(loss, split.task, kind)
    return *parts, loss


def _train_by_user(
    recipe: Recipe, trainer: Trainer, make: Making, *, model: nn.Module, epochs: int, seed: int
) -> nn.Module:
    """The network that the user's trainer returns, on the recipe's device; not a compiled one.

    Raises:
        ValueError: it raises anything, or returns no module, or another than it was given.
    """
    name, split = str(recipe.settings.train), recipe.split
    with naming(f"train: {name} failed", ours=False):
        trained = trainer(model, (TensorDataset(split.train.inputs, split.train.targets),
                                  TensorDataset(split.validation.inputs, split.validation.targets)),
                          epochs, seed)
    if not isinstance(trained, nn.Module):
        raise ValueError(f"train: expected {name} to return the trained torch.nn.Module, but it "
                         f"returned {type(trained).__name__}")
    trained = unwrapped(trained).to(recipe.device)
    with isolated():
        fresh = make().to(recipe.device)
    _check_reproducible(name, trained, fresh, _probe(recipe))
    return trained


def _check_reproducible(name: str, trained: nn.Module, fresh: nn.Module, inputs: Tensor) -> None:
    """Whether the factory and the state alone make the trained network again: a run keeps no more.

    Args:
        name: of the trainer.
        trained: what it returned.
        fresh: a network from the factory, which is given the state of ``trained``.
        inputs: some, on which the two must agree.
    """
    what = f"train: expected {name} to return the network it was given, trained, but it returned"
    try:
        fresh.load_state_dict(trained.state_dict())
    except RuntimeError as error:
        raise ValueError(f"{what} one of other parameters: {one_line(error)}") from error
    with naming(f"{what} one that fails"), evaluating(trained), evaluating(fresh):
        outputs = trained(inputs), fresh(inputs)
        if not torch.allclose(*outputs, rtol=1e-3, atol=1e-5, equal_nan=True):
            raise ValueError(f"{what} one that computes something else")


def _all_epochs(
    recipe: Recipe, model: nn.Module, steps: Iterator[EpochRecord], epochs: int, label: str | None
) -> list[EpochRecord]:
    """Train, with a progress bar.

    Errors of the forward, the loss or the optimizer become one line that names a setting.
    """
    settings, records = recipe.settings, []
    bar = Bar(steps, total=epochs, desc=label, unit="epoch")
    try:
        for record in bar:
            records.append(record)
            if record.epoch % max(1, epochs // 20) == 0:
                bar.set_postfix(loss=f"{record.train_loss:.4f}")
    except TrainingDiverged:
        raise
    except Exception as error:
        if not _finite(recipe, model):
            raise TrainingDiverged(
                f"training: the outputs became NaN or infinite in epoch {len(records) + 1}; a "
                f"smaller learning rate than lr={settings.lr:g} may help") from error
        raise ValueError(f"model: {settings.model} cannot be trained with batch_size="
                         f"{settings.batch_size}: {one_line(error)}") from error
    return records


def _finite(recipe: Recipe, model: nn.Module) -> bool:
    with suppress(Exception), evaluating(model):
        return bool(torch.isfinite(model(_probe(recipe))).all())
    return True


def _probe(recipe: Recipe) -> Tensor:
    return recipe.split.train.inputs[:PROBES].to(recipe.device, copy=True)


@dataclass(frozen=True)
class Replicate:
    """One repetition of the recipe.

    Attributes:
        seed: of it.
        scores: of the test examples.
        loss: its mean over them.
        stream: the random stream as training left it.
        validation_scores: of the validation examples; empty where a run of an earlier version kept
            none.
        predictions: what the score takes of the test examples; None where a run of an earlier
            version kept none.
        score_name: as in ``Evaluation``.
    """

    seed: int
    scores: np.ndarray
    loss: float
    stream: Stream = field(repr=False)
    validation_scores: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)
    predictions: np.ndarray | None = field(default=None, repr=False, kw_only=True)
    score_name: str = field(default="", kw_only=True)

    @classmethod
    def of(cls, seed: int, test: Evaluation, validation: Evaluation, stream: Stream) -> Replicate:
        """A network's, by its evaluations."""
        return cls(seed, test.scores, test.loss, stream, validation.scores,
                   predictions=test.judged, score_name=test.score_name)

    @property
    def score(self) -> float:
        """The score's value: accuracy or R² by default."""
        return value_of_comparable(self.score_name, self.scores)


def train_replicates(
    recipe: Recipe,
    make: Callable[[int, int], Trained],
    main: tuple[Trained, Evaluation],
    *,
    count: int,
    known: Mapping[int, Replicate] | None = None,
    label: str = "replicates",
) -> list[Replicate]:
    """The main network as replicate 0, and ``count − 1`` more repetitions.

    Args:
        recipe: what is trained on what.
        make: trains a network, given the replicate's number and its seed.
        main: the main network and its evaluation on the test part.
        count: how many, the main network among them.
        known: by number, those that were trained before.
        label: of the progress bar.
    """
    trained, evaluation = main
    validated = recipe.evaluate(trained.model, recipe.split.validation, trained.kind)
    first = Replicate.of(recipe.settings.seed, evaluation, validated, trained.stream)
    return [first, *(
        (known or {}).get(number) or train_replicate(recipe, make, number)
        for number in Bar(range(1, count), desc=label, unit="seed"))]


def train_replicate(
    recipe: Recipe, make: Callable[[int, int], Trained], number: int
) -> Replicate:
    """One repetition, scored; its torch seed is ``seed + number``, in [0, 2**32).

    Raises:
        ValueError: with the number and the seed at its end.
    """
    seed = (recipe.settings.seed + number) % 2**32
    try:
        trained = make(number, seed)
        validated, result = (recipe.evaluate(trained.model, part, trained.kind)
                             for part in (recipe.split.validation, recipe.split.test))
    except ValueError as error:
        kind = TrainingDiverged if isinstance(error, TrainingDiverged) else ValueError
        raise kind(f"{error} (in replicate {number}, seed {seed})") from error
    return Replicate.of(seed, result, validated, trained.stream)
