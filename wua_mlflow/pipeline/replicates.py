"""Networks of a recipe: one trained network, and the replicates of it.

The trainer is the built-in one or the user's own, of which it is checked that its network can be
kept. Tests: ``tests/pipeline/test_replicates.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wua_mlflow.data.batches import Batch, Inputs
from wua_mlflow.data.datasets import takes
from wua_mlflow.data.parts import Part, StreamedPart
from wua_mlflow.data.tasks import OutputKind, checked_output
from wua_mlflow.errors import one_line
from wua_mlflow.hooks import evaluating, unwrapped
from wua_mlflow.pipeline.models import check_fit, naming
from wua_mlflow.pipeline.recipe import Recipe
from wua_mlflow.pipeline.trainer_runs import active_run_for
from wua_mlflow.progress import Bar, say
from wua_mlflow.pruning.cut import Specification
from wua_mlflow.pruning.layers import call_model
from wua_mlflow.rng import Purpose, Stream, isolated, restore, seed_all, stream_of, torch_generator
from wua_mlflow.signals import goes_on
from wua_mlflow.training.distillation import distillation_loss
from wua_mlflow.training.evaluation import Evaluation, outputs_of
from wua_mlflow.training.fit import Budget, EpochRecord, TrainingDiverged, fit
from wua_mlflow.verdict.scores import SCORES, value_of_comparable

__all__ = [
    "Making", "Replicate", "Trained", "further_replicates", "train_made", "train_one",
    "train_replicate", "train_replicates",
]


PROBES = 1024
"""So many training samples show whether outputs are finite, and whether two networks agree."""


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
                      stream=stream, label=label, widths=tuple(widths))


def train_made(  # noqa: PLR0913 - what is trained, for how long, from which stream, towards what
    recipe: Recipe,
    make: Making,
    epochs: int,
    *,
    seed: int,
    stream: Stream | None = None,
    label: str | None = None,
    teacher: nn.Module | None = None,
    widths: tuple[int, ...] = (),
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
        widths: of the network, for a trainer of the user's that takes them.

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
            more = (widths,) if takes(recipe.trainer, model, None, epochs, seed, widths) else ()
            model = _train_by_user(recipe, make, model, (epochs, seed, *more))
        kind = recipe.kind_of(model)
        records: list[EpochRecord] = []
        if recipe.trainer is None:
            budget = Budget(epochs, settings.lr, settings.optimizer, settings.batch_size,
                            settings.patience)
            generator = torch_generator(seed, Purpose.LOADER)
            train, validation, loss = _data_and_loss(recipe, model, kind, teacher, generator)
            steps = fit(model, train, loss, budget, generator=generator,
                        validation=validation,
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
    recipe: Recipe, model: nn.Module, kind: OutputKind, teacher: nn.Module | None,
    generator: torch.Generator,
) -> tuple[Any, Any, Any]:
    """Training part, loss, and the validation part where early stopping watches it.

    With a teacher its outputs are targets too.
    """
    split = recipe.split
    loss = recipe.objective(kind).loss
    if teacher is not None:
        loss = distillation_loss(loss, split.task, kind)
    watched = (split.validation,) if recipe.settings.patience else ()
    train: Any
    train, *validation = (
        _in_memory(part, recipe.device, teacher) if isinstance(part, Part)
        else _Taught(part.batches(model), teacher) for part in (split.train, *watched))
    streamed, size = split.train, recipe.settings.batch_size
    if isinstance(streamed, StreamedPart):
        examples = len(streamed) if size == "full" else size

        def epoch() -> Iterable[Batch]:
            return _Taught(streamed.epoch(model, examples, generator), teacher)

        train = epoch
    return train, validation[0] if validation else None, loss


def _in_memory(
    part: Part, device: torch.device, teacher: nn.Module | None
) -> tuple[Tensor, Any]:
    inputs, targets = part.to(device)
    return inputs, targets if teacher is None else (targets, outputs_of(teacher, inputs))


@dataclass(frozen=True)
class _Taught:
    """Batches whose targets hold a teacher's outputs too, if there is one."""

    batches: Iterable[Batch]
    teacher: nn.Module | None

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            if self.teacher is None:
                yield batch
                continue
            with evaluating(self.teacher):
                outputs = checked_output(batch.call(self.teacher))
            yield replace(batch, targets=(batch.targets, outputs))


def _train_by_user(
    recipe: Recipe, make: Making, model: nn.Module, options: tuple[Any, ...]
) -> nn.Module:
    """The network that the user's trainer returns, on the recipe's device; not a compiled one.

    Args:
        recipe: whose trainer it is.
        make: makes the network again.
        model: the network to train.
        options: what the trainer is given beside model and data: epochs, seed, and perhaps widths.

    Raises:
        ValueError: it raises anything, or returns no module, or another than it was given.
    """
    name, split, trainer = str(recipe.settings.train), recipe.split, recipe.trainer
    assert trainer is not None, "asked before"
    with naming(f"train: {name} failed", ours=False), \
            active_run_for(name, f"{name} with seed {options[1]}"):
        trained = trainer(model, (split.train.dataset, split.validation.dataset), *options)
    trained = model if trained is None else trained
    if not isinstance(trained, nn.Module):
        raise ValueError(f"train: expected {name} to return the trained torch.nn.Module, but it "
                         f"returned {type(trained).__name__}")
    trained = unwrapped(trained).to(recipe.device)
    with isolated():
        fresh = make().to(recipe.device)
    _check_reproducible(name, trained, fresh, recipe.example(trained, PROBES))
    return trained


def _check_reproducible(name: str, trained: nn.Module, fresh: nn.Module, inputs: Inputs) -> None:
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
        outputs, again = (checked_output(call_model(each, inputs)) for each in (trained, fresh))
        if not torch.allclose(outputs, again, rtol=1e-3, atol=1e-5, equal_nan=True):
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
        outputs = call_model(model, recipe.example(model, PROBES))
        return bool(torch.isfinite(checked_output(outputs)).all())
    return True


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


def train_replicates(  # noqa: PLR0913 - what is trained how often, what is known, what is shown
    recipe: Recipe,
    make: Callable[[int, int], Trained],
    main: tuple[Trained, Evaluation],
    *,
    count: int,
    known: Mapping[int, Replicate] | None = None,
    label: str = "replicates",
    stoppable: bool = False,
) -> list[Replicate]:
    """The main network as replicate 0, and ``count − 1`` more repetitions.

    Args:
        recipe: what is trained on what.
        make: trains a network, given the replicate's number and its seed.
        main: the main network and its evaluation on the test part.
        count: how many, the main network among them.
        known: by number, those that were trained before.
        label: of the progress bar.
        stoppable: whether a first Ctrl-C ends it with those so far.
    """
    trained, evaluation = main
    validated = recipe.evaluate(trained.model, recipe.split.validation, trained.kind)
    first = Replicate.of(recipe.settings.seed, evaluation, validated, trained.stream)
    return [first, *further_replicates(recipe, make, range(1, count), known=known or {},
                                       label=label, stoppable=stoppable)]


def further_replicates(
    recipe: Recipe, make: Callable[[int, int], Trained], numbers: Sequence[int], *,
    label: str, known: Mapping[int, Replicate], stoppable: bool = True,
) -> list[Replicate]:
    """Repetitions by their numbers; after a first Ctrl-C those so far, which is said."""
    replicates: list[Replicate] = []
    try:
        for number in Bar(numbers, desc=label, unit="seed"):
            replicates.append(known.get(number) or train_replicate(recipe, make, number))
    except KeyboardInterrupt as signal:
        if not (stoppable and goes_on(signal)):
            raise
        say(f"interrupted: going on with {numbers[0] + len(replicates)} of {numbers[-1] + 1} "
            "seeds; once more ends it")
    return replicates


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
