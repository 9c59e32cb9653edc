"""One analysis as the settings ask for it: the criteria, the loss, the null, the effective rank.

May import: torch, analysis, dotted, evaluation, importance, usage, the pipeline's data and models.
Tests: ``tests/pipeline/test_analysing.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from wua_mlflow.analysis import analyze
from wua_mlflow.config import Settings
from wua_mlflow.dotted import load_object
from wua_mlflow.evaluation import OutputKind, loss_for, output_kind
from wua_mlflow.gradients import Loss
from wua_mlflow.importance import CRITERIA, Criterion, needs
from wua_mlflow.pipeline.data import DataSplit
from wua_mlflow.pipeline.models import check_fit, naming
from wua_mlflow.usage import ModelUsage

__all__ = ["criteria_of", "first_criterion", "inputs_of", "loss_of", "measured"]


def first_criterion(settings: Settings) -> str:
    """The criterion whose figures become the run's metrics."""
    return settings.criterion.partition(",")[0]


def criteria_of(settings: Settings) -> list[str | Criterion]:
    """The criteria that are asked for: names, and the user's functions.

    Raises:
        ValueError: one line; a function cannot be imported, or asks for what is not there.
    """
    return [name if name in CRITERIA else _theirs(name) for name in settings.criterion.split(",")]


def _theirs(name: str) -> Criterion:
    rule = load_object(name, argument="criterion")
    if rule in CRITERIA.values():
        return rule
    needs(rule)
    return _named(rule, f"criterion: {name} failed")


def inputs_of(settings: Settings) -> Callable[[Any], Any] | None:
    """The user's function from a batch to the model's inputs, if there is one.

    Raises:
        ValueError: one line; it cannot be imported.
    """
    name = settings.batch_to_inputs
    return None if name is None else _named(load_object(name, argument="batch_to_inputs"),
                                            f"batch_to_inputs: {name} failed")


def _named(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    """The user's function, its errors in one line that begins with ``what``."""
    @functools.wraps(function)
    def call(*values: Any, **named: Any) -> Any:
        with naming(what, ours=False):
            return function(*values, **named)

    return call


def loss_of(
    settings: Settings,
    model: nn.Module,
    split: DataSplit | None,
    device: torch.device,
    *,
    kind: OutputKind | None = None,
) -> Loss | None:
    """The loss of the settings, else the task's own where a criterion needs gradients.

    Args:
        settings: ``loss`` and ``criterion``.
        model: on ``device``.
        split: the data, where their task is known.
        device: the model's.
        kind: what the model's outputs are, if that is known.

    Raises:
        ValueError: one line; it cannot be imported, or the outputs do not fit the task.
    """
    if settings.loss is not None:
        return _named(load_object(settings.loss, argument="loss"), f"loss: {settings.loss} failed")
    asked = [CRITERIA[rule] if isinstance(rule, str) else rule for rule in criteria_of(settings)]
    if split is None or not any("gradient" in needs(rule) for rule in asked):
        return None
    if kind is None:
        check_fit(model, split)
        kind = output_kind(model, split.train.inputs[:2].to(device), split.task)
    return loss_for(split.task, kind)


def measured(
    model: nn.Module, batches: Any, settings: Settings, loss: Loss | None, *,
    layers: Sequence[str] | None = None, batch_to_inputs: Callable[[Any], Any] | None = None,
) -> dict[str, ModelUsage]:
    """The usage by criterion, in the order asked for; several processes get the same.

    ``layers`` and ``batch_to_inputs`` are as for ``analyze``, which is told the rest by the
    settings.

    Raises:
        ValueError: as ``analyze``.
    """
    return analyze(model, batches, criterion=criteria_of(settings), null=settings.null_draws,
                   seed=settings.seed, loss=loss, effective_rank=settings.effective_rank,
                   layers=layers, batch_to_inputs=batch_to_inputs)
