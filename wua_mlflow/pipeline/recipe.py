"""A recipe: data, factory and trainer; training one network of it, and its replicates over seeds.

Replicate i repeats the whole recipe (oversized, then slim from the same random stream) with torch
seed ``seed + i``, data and split fixed; replicate 0 is the main run.
May import: the leaves, the pipeline's data and models. Tests: ``tests/pipeline/test_recipe.py``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from wua_mlflow.config import Settings
from wua_mlflow.dotted import load_object, one_line
from wua_mlflow.evaluation import Evaluation, OutputKind, evaluate, loss_for, output_kind
from wua_mlflow.hooks import evaluating
from wua_mlflow.pipeline.data import DataSplit, Part, is_file, load_data
from wua_mlflow.pipeline.machine import device_of, use_threads
from wua_mlflow.pipeline.models import check_fit, factory, naming
from wua_mlflow.pipeline.trainer import Trainer, check_kept, trained_by
from wua_mlflow.randomness import Purpose, isolated, torch_generator
from wua_mlflow.training import Budget, EpochRecord, TrainingDiverged, fit
from wua_mlflow.widths import Factory

__all__ = [
    "Recipe",
    "Replicate",
    "Stream",
    "Trained",
    "load_recipe",
    "seed_all",
    "train_one",
    "train_replicates",
]

Stream = dict[str, Tensor]
"""The state of torch's global random stream: ``cpu``, and ``cuda`` where training used it."""

PROBES = 1024
"""Training samples on which the outputs of a network are looked at."""


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

    def evaluate(self, model: nn.Module, part: Part, kind: OutputKind) -> Evaluation:
        """The model's predictions, losses and scores on a part."""
        with naming(f"model: {self.settings.model} cannot be evaluated"):
            return evaluate(model, part.inputs.to(self.device), part.targets.to(self.device),
                            task=self.split.task, kind=kind, digest=part.digest)


@dataclass(frozen=True)
class Trained:
    """A trained network (eval mode), its epochs, and the random stream as training left it."""

    model: nn.Module
    kind: OutputKind
    records: Sequence[EpochRecord]
    stream: Stream


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


def load_recipe(settings: Settings) -> Recipe:
    """Load the data and find the factory and the trainer that the settings name.

    Raises:
        ValueError: one line; something is not there, or does not fit.
    """
    use_threads(settings.threads)
    split = load_data(settings.data, target=settings.target, seed=settings.seed,
                      image=settings.model == "cnn", task=settings.task)
    if is_file(settings.data):
        settings = settings.model_copy(update={"data": split.source})  # holds in any folder
    recipe = Recipe(settings, split, factory(settings.model, split), device_of(settings.device))
    _ = recipe.trainer
    return recipe


def train_one(
    recipe: Recipe,
    widths: Sequence[int],
    epochs: int,
    *,
    seed: int,
    stream: Stream | None = None,
    label: str | None = None,
) -> Trained:
    """Build and train one network; the caller's random streams are left alone.

    Args:
        recipe: what is trained on what.
        widths: for the factory.
        epochs: at most so many.
        seed: of torch's stream, where ``stream`` does not go on from one; of the loaders always.
        stream: the state to start from: the oversized network's, for the slim one.
        label: of the progress bar; no bar, if None.

    Raises:
        ValueError: the model does not fit the data, or the trainer fails.
        TrainingDiverged: the loss became NaN.
    """
    settings, split = recipe.settings, recipe.split
    with isolated():
        seed_all(seed)
        if stream is not None:
            _restore(stream, recipe.device)
        model = recipe.build(tuple(widths)).to(recipe.device)
        check_fit(model, split)
        if recipe.trainer is not None:
            model = _by_user(recipe, model, widths, epochs, seed)
        kind = output_kind(model, _probe(recipe)[:2], split.task)
        records: list[EpochRecord] = []
        if recipe.trainer is None:
            budget = Budget(epochs, settings.lr, settings.optimizer, settings.batch_size,
                            settings.patience)
            steps = fit(model, _on(split.train, recipe.device), loss_for(split.task, kind), budget,
                        generator=torch_generator(seed, Purpose.LOADER),
                        validation=_on(split.validation, recipe.device)
                        if settings.patience else None)
            with _explained(recipe, model, records):
                for record in _progress(steps, epochs, label):
                    records.append(record)
        return Trained(model.eval(), kind, records, _stream(recipe.device))


def train_replicates(
    recipe: Recipe,
    widths: Sequence[int],
    epochs: int,
    main: tuple[Trained, Evaluation],
    *,
    streams: Sequence[Stream] | None = None,
    label: str = "replicates",
) -> list[Replicate]:
    """The main network as replicate 0, and ``settings.seeds − 1`` more repetitions.

    Args:
        recipe: what is trained on what.
        widths: for the factory.
        epochs: at most so many.
        main: the main network and its evaluation on the test part.
        streams: for each replicate the stream to start from; its own seed, if None.
        label: of the progress bar.
    """
    trained, evaluation = main
    settings = recipe.settings
    found = [Replicate(settings.seed, evaluation.scores, evaluation.loss, trained.stream)]
    count = min(settings.seeds, len(streams)) if streams is not None else settings.seeds
    for number in tqdm(range(1, count), desc=label, disable=None, leave=False, unit="seed"):
        seed = (settings.seed + number) % 2**32
        try:
            one = train_one(recipe, widths, epochs, seed=seed,
                            stream=streams[number] if streams is not None else None)
            result = recipe.evaluate(one.model, recipe.split.test, one.kind)
        except ValueError as error:
            kind = TrainingDiverged if isinstance(error, TrainingDiverged) else ValueError
            raise kind(f"{error} (in replicate {number}, seed {seed})") from error
        found.append(Replicate(seed, result.scores, result.loss, one.stream))
    return found


def _by_user(
    recipe: Recipe, model: nn.Module, widths: Sequence[int], epochs: int, seed: int
) -> nn.Module:
    trainer, name = recipe.trainer, str(recipe.settings.train)
    assert trainer is not None
    model = trained_by(trainer, name, model, recipe.split, epochs=epochs, seed=seed)
    model = model.to(recipe.device)
    with isolated():
        again = recipe.build(tuple(widths)).to(recipe.device)
    check_kept(name, model, again, _probe(recipe))
    return model


@contextmanager
def _explained(
    recipe: Recipe, model: nn.Module, records: Sequence[EpochRecord]
) -> Iterator[None]:
    """What the forward, the loss or the optimizer raise, in one line that names a setting."""
    try:
        yield
    except TrainingDiverged:
        raise
    except Exception as error:
        settings = recipe.settings
        if not _finite(recipe, model):
            raise TrainingDiverged(
                f"training: the outputs became NaN or infinite in epoch {len(records) + 1}; a "
                f"smaller learning rate than lr={settings.lr:g} may help") from error
        raise ValueError(f"model: {settings.model} cannot be trained with batch_size="
                         f"{settings.batch_size}: {one_line(error)}") from error


def _finite(recipe: Recipe, model: nn.Module) -> bool:
    with suppress(Exception), evaluating(model):
        return bool(torch.isfinite(model(_probe(recipe))).all())
    return True


def _probe(recipe: Recipe) -> Tensor:
    return recipe.split.train.inputs[:PROBES].to(recipe.device)


def _progress(
    steps: Iterator[EpochRecord], epochs: int, label: str | None
) -> Iterator[EpochRecord]:
    bar = tqdm(steps, total=epochs, desc=label, unit="epoch", leave=False,
               disable=None if label else True)
    for record in bar:
        if record.epoch % max(1, epochs // 20) == 0:
            bar.set_postfix(loss=f"{record.train_loss:.4f}")
        yield record


def _on(part: Part, device: torch.device) -> tuple[Tensor, Tensor]:
    return part.inputs.to(device), part.targets.to(device)


def seed_all(seed: int) -> None:
    """Seed the global generators: torch's, NumPy's, Python's."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def _stream(device: torch.device) -> Stream:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def _restore(stream: Stream, device: torch.device) -> None:
    """Go on from ``stream``; on another kind of device its own stream stays as it was seeded."""
    torch.set_rng_state(stream["cpu"])
    if device.type == "cuda" and "cuda" in stream:
        torch.cuda.set_rng_state(stream["cuda"], device)
    if device.type == "mps" and "mps" in stream:
        torch.mps.set_rng_state(stream["mps"])
