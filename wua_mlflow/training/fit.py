"""The built-in training loop: yields a record an epoch, logs nothing.

Tests: ``tests/training/test_fit.py``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wua_mlflow.data.batches import Batch
from wua_mlflow.device import rows_at_once
from wua_mlflow.hooks import evaluating

__all__ = ["Budget", "EpochRecord", "Epochs", "Loss", "TrainingDiverged", "fit"]


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam, "sgd": partial(torch.optim.SGD, momentum=0.9)}
Loss = Callable[[Any, Any], Tensor]
"""(outputs, targets) -> the mean loss, a scalar."""
Targets = Tensor | tuple[Tensor, ...]
"""By sample; several tensors reach the loss as a tuple."""
Epochs = Callable[[], Iterable[Batch]]
"""Gives the batches of the next epoch, on the model's device."""


class TrainingDiverged(ValueError):  # noqa: N818 - says what happened; the name is public
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Budget:
    """How long and how to train.

    ``batch_size`` is ``"full"`` or a number of samples; ``patience`` the number of epochs without a
    better validation loss after which training stops and the best weights are kept (None: never).

    Raises:
        ValueError: a count below 1, a learning rate that is not finite and positive, or an unknown
            optimizer.
    """

    epochs: int
    lr: float = 0.01
    optimizer: Literal["adam", "sgd"] = "adam"
    batch_size: int | Literal["full"] = "full"
    patience: int | None = None

    def __post_init__(self) -> None:
        counts = {"epochs": self.epochs, "patience": 1 if self.patience is None else self.patience,
                  "batch_size": 1 if self.batch_size == "full" else self.batch_size}
        for name, count in counts.items():
            if not isinstance(count, Integral) or count < 1:
                raise ValueError(f"{name}: expected a whole number of at least 1, but got {count}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr: expected a finite number above 0, but got {self.lr}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, "
                             f"but got '{self.optimizer}'")


@dataclass(frozen=True)
class EpochRecord:
    """Mean training loss over an epoch's batches (before each step), and the validation loss."""

    epoch: int
    train_loss: float
    validation_loss: float | None = None


def fit(  # noqa: PLR0913 - what is trained, how, and what is watched
    model: nn.Module,
    train: tuple[Tensor, Targets] | Epochs,
    loss: Loss,
    budget: Budget,
    *,
    generator: torch.Generator,
    validation: tuple[Tensor, Targets] | Iterable[Batch] | None = None,
    watched: Callable[[nn.Module], float] | None = None,
) -> Iterator[EpochRecord]:
    """Train ``model`` in place; exhaust the iterator to finish.

    Torch's global random stream is drawn from by the model alone (dropout); the order of the
    batches comes from ``generator``. The model ends in eval mode.

    Args:
        model: on the device of the data.
        train: inputs, shape (samples, ...), and targets, or a tuple of such; or a function that
            gives the batches of an epoch, which then are as large as they come.
        loss: the mean loss.
        budget: epochs, optimizer, batches, patience.
        generator: a CPU generator for the order of the samples; not used for full batches.
        validation: inputs and targets to watch, or batches that can be gone over again; needed for
            ``patience``.
        watched: what ``patience`` waits for a lower value of, after each epoch; the validation
            loss, if None.

    Yields:
        A record an epoch.

    Raises:
        TrainingDiverged: the training or the validation loss became NaN or infinite.
        ValueError: no training data, or ``patience`` without validation data.

    >>> x = torch.rand(20, 2)
    >>> epochs = fit(nn.Linear(2, 1), (x, x.sum(1, keepdim=True)), nn.functional.mse_loss,
    ...              Budget(epochs=3), generator=torch.Generator())
    >>> [record.epoch for record in epochs]
    [1, 2, 3]
    """
    if budget.patience is not None and validation is None:
        raise ValueError("patience: expected validation data to watch, but got none")
    if not callable(train) and not len(train[0]):
        raise ValueError("train: expected at least one sample, but got none")
    optimizer = OPTIMIZERS[budget.optimizer](model.parameters(), lr=budget.lr)
    best, best_state, waited = math.inf, None, 0
    for epoch in range(1, budget.epochs + 1):
        model.train()
        batches = train() if callable(train) else _batches(train, budget, generator)
        train_loss = _epoch(model, batches, loss, optimizer)
        model.eval()
        validation_loss = _validation_loss(model, validation, loss)
        for what, value in (("loss", train_loss), ("validation loss", validation_loss or 0.0)):
            if not math.isfinite(value):
                raise TrainingDiverged(f"training: the {what} became {value} in epoch {epoch}; a "
                                       f"smaller learning rate than lr={budget.lr:g} may help")
        yield EpochRecord(epoch, train_loss, validation_loss)
        if budget.patience is None or validation_loss is None:
            continue
        watching = validation_loss if watched is None else watched(model)
        if watching < best:
            best, best_state, waited = watching, copy.deepcopy(model.state_dict()), 0
        else:
            waited += 1
        if waited >= budget.patience:
            break
    if best_state is not None:
        model.load_state_dict(best_state)


def _batches(
    train: tuple[Tensor, Targets], budget: Budget, generator: torch.Generator
) -> Iterator[Batch]:
    """The batches of an epoch, of tensors in memory."""
    inputs, targets = train
    samples = len(inputs)
    size = samples if budget.batch_size == "full" else min(budget.batch_size, samples)
    order: Sequence[Tensor] = [torch.arange(samples)] if size == samples else \
        torch.randperm(samples, generator=generator).split(size)
    for rows in order:
        yield Batch((inputs[rows],), {}, _at(targets, rows), len(rows))


def _epoch(
    model: nn.Module, batches: Iterable[Batch], loss: Loss, optimizer: torch.optim.Optimizer
) -> float:
    losses, samples = [], []
    for batch in batches:
        optimizer.zero_grad()
        batch_loss = loss(model(*batch.args, **batch.kwargs), batch.targets)
        batch_loss.backward()
        optimizer.step()
        losses.append(batch_loss.detach())  # read after the epoch: a GPU is not waited for
        samples.append(batch.samples)
    if not samples:
        raise ValueError("train: expected at least one sample, but got none")
    by_sample = torch.stack(losses).cpu().double() * torch.tensor(samples)
    return by_sample.sum().item() / sum(samples)


def _validation_loss(
    model: nn.Module, validation: tuple[Tensor, Targets] | Iterable[Batch] | None, loss: Loss
) -> float | None:
    if validation is None:
        return None
    if not isinstance(validation, tuple):
        total = samples = 0.0
        with evaluating(model):
            for batch in validation:
                total += float(loss(batch.call(model), batch.targets)) * batch.samples
                samples += batch.samples
        return total / max(1.0, samples)
    inputs, targets = validation
    chunks = torch.arange(len(inputs), device=inputs.device).split(rows_at_once(inputs.shape))
    with evaluating(model):
        return sum(loss(model(inputs[rows]), _at(targets, rows)).item() * (len(rows) / len(inputs))
                   for rows in chunks)


def _at(targets: Targets, rows: Tensor) -> Targets:
    if isinstance(targets, Tensor):
        return targets[rows]
    return tuple(tensor[rows] for tensor in targets)
