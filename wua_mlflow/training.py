"""The built-in training loop: yields a record an epoch, logs nothing.

May import: torch. Tests: ``tests/test_training.py``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from wua_mlflow.hooks import evaluating

__all__ = ["Budget", "EpochRecord", "Loss", "TrainingDiverged", "fit"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) -> the mean loss, a scalar."""


class TrainingDiverged(ValueError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Budget:
    """How long and how to train.

    ``batch_size`` is ``"full"`` or a number of samples; ``patience`` the number of epochs without a
    better validation loss after which training stops and the best weights are kept (None: never).
    """

    epochs: int
    lr: float = 0.01
    optimizer: Literal["adam", "sgd"] = "adam"
    batch_size: int | Literal["full"] = "full"
    patience: int | None = None


@dataclass(frozen=True)
class EpochRecord:
    """Mean training loss over an epoch's batches (before each step), and the validation loss."""

    epoch: int
    train_loss: float
    validation_loss: float | None = None


def fit(
    model: nn.Module,
    train: tuple[Tensor, Tensor],
    loss: Loss,
    budget: Budget,
    *,
    generator: torch.Generator,
    validation: tuple[Tensor, Tensor] | None = None,
) -> Iterator[EpochRecord]:
    """Train ``model`` in place; exhaust the iterator to finish.

    Torch's global random stream is drawn from by the model alone (dropout); the order of the
    batches comes from ``generator``. The model ends in eval mode.

    Args:
        model: on the device of the data.
        train: inputs, shape (samples, ...), and targets.
        loss: the mean loss.
        budget: epochs, optimizer, batches, patience.
        generator: a CPU generator for the order of the samples; not used for full batches.
        validation: inputs and targets to watch; needed for ``patience``.

    Yields:
        A record an epoch.

    Raises:
        TrainingDiverged: the loss became NaN or infinite.
        ValueError: ``patience`` without validation data.
    """
    if budget.patience is not None and validation is None:
        raise ValueError("patience: expected validation data to watch, but got none")
    optimizer = _optimizer(model, budget)
    best, best_state, waited = math.inf, None, 0
    for epoch in range(1, budget.epochs + 1):
        model.train()
        train_loss = _epoch(model, train, loss, optimizer, _batches(len(train[0]), budget, generator))
        model.eval()
        if not math.isfinite(train_loss):
            raise TrainingDiverged(f"training: the loss became {train_loss} in epoch {epoch}; a "
                                   f"smaller learning rate than lr={budget.lr:g} may help")
        watched = _validation_loss(model, validation, loss)
        yield EpochRecord(epoch, train_loss, watched)
        if budget.patience is None or watched is None:
            continue
        if watched < best:
            best, best_state, waited = watched, copy.deepcopy(model.state_dict()), 0
        else:
            waited += 1
        if waited >= budget.patience:
            break
    if best_state is not None:
        model.load_state_dict(best_state)


def _optimizer(model: nn.Module, budget: Budget) -> torch.optim.Optimizer:
    if budget.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=budget.lr, momentum=0.9)
    return torch.optim.Adam(model.parameters(), lr=budget.lr)


def _batches(samples: int, budget: Budget, generator: torch.Generator) -> list[Tensor] | None:
    if budget.batch_size == "full" or budget.batch_size >= samples:
        return None
    return list(torch.randperm(samples, generator=generator).split(budget.batch_size))


def _epoch(
    model: nn.Module,
    train: tuple[Tensor, Tensor],
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    batches: list[Tensor] | None,
) -> float:
    inputs, targets = train
    total = torch.zeros((), dtype=torch.float64)
    for rows in batches if batches is not None else [None]:
        x, y = (inputs, targets) if rows is None else (inputs[rows], targets[rows])
        optimizer.zero_grad()
        batch_loss = loss(model(x), y)
        batch_loss.backward()
        optimizer.step()
        total += batch_loss.detach().cpu() * (len(x) / len(inputs))
    return total.item()


def _validation_loss(
    model: nn.Module, validation: tuple[Tensor, Tensor] | None, loss: Loss
) -> float | None:
    if validation is None:
        return None
    with evaluating(model):
        return loss(model(validation[0]), validation[1]).item()
