"""Predictions, losses and scores of a model for every example of some data.

Tests: ``tests/training/test_evaluation.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from wua_mlflow.data.tasks import (
    OutputKind,
    Task,
    checked_output,
    example_scores,
    loss_for,
    predictions_of,
)
from wua_mlflow.device import rows_at_once
from wua_mlflow.hooks import evaluating

__all__ = ["Evaluation", "evaluate", "outputs_of"]


@dataclass(frozen=True)
class Evaluation:
    """One model on one part of the data; every array has shape (examples,).

    ``scores`` are such that their mean is the score: 1 or 0 for right or wrong; for regression
    1 − squared error ÷ variance of the targets, whose mean is R². ``digest`` is the part's.
    """

    task: Task
    predictions: np.ndarray
    targets: np.ndarray
    losses: np.ndarray
    scores: np.ndarray
    digest: str = ""

    @property
    def score(self) -> float:
        """Accuracy, or R²."""
        return float(self.scores.mean())

    @property
    def loss(self) -> float:
        """Mean loss."""
        return float(self.losses.mean())


def evaluate(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    task: Task,
    kind: OutputKind,
    digest: str = "",
) -> Evaluation:
    """Predictions, losses and scores of every example, in eval mode and without gradients.

    Args:
        model: on the device of the data.
        inputs: shape (examples, ...).
        targets: binary and regression: float, shape (examples, 1) or (examples,), as the outputs;
            multi-class: int64, shape (examples,), the outputs having shape (examples, classes).
        task: the task.
        kind: what the outputs are, from ``output_kind``.
        digest: identifies the data.

    Raises:
        ValueError: no examples, outputs that do not fit the targets, or an output that is NaN or
            infinite.

    >>> model = nn.Sequential(nn.Linear(2, 3))
    >>> x, y = torch.rand(8, 2), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    >>> result = evaluate(model, x, y, task="multiclass", kind="logits")
    >>> result.predictions.shape, 0 <= result.score <= 1
    ((8,), True)
    """
    outputs = outputs_of(model, inputs)
    if task != "multiclass":
        outputs = outputs.reshape(len(outputs), -1)
        targets = targets.reshape(len(targets), -1).to(outputs.dtype)
    _check_shapes(outputs, targets, task)
    losses = loss_for(task, kind)(outputs, targets, reduction="none").reshape(-1)
    truth = targets.reshape(-1).cpu().double().numpy()
    predictions = predictions_of(outputs, task, kind)
    return Evaluation(task, predictions, truth, losses.cpu().double().numpy(),
                      example_scores(predictions, truth, task), digest)


def outputs_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """The outputs of all inputs, in eval mode, without gradients, in chunks.

    The inputs stay as they are, also where the model writes into what it is given.

    Raises:
        ValueError: there are no inputs, or an output is no tensor, NaN or infinite.
    """
    if not len(inputs):
        raise ValueError("inputs: expected at least one example, but got none")
    chunk = rows_at_once(inputs.shape)
    with evaluating(model):
        outputs = torch.cat([checked_output(model(part.clone())) for part in inputs.split(chunk)])
    if not bool(torch.isfinite(outputs).all()):
        raise ValueError("model: expected finite outputs, but got NaN or infinity")
    return outputs


def _check_shapes(outputs: Tensor, targets: Tensor, task: Task) -> None:
    fits = outputs.dim() == 2 and len(outputs) == len(targets) and (
        targets.dim() == 1 if task == "multiclass" else outputs.shape == targets.shape
        and outputs.shape[1] == 1)
    if not fits:
        wanted = "(examples, classes)" if task == "multiclass" else "(examples, 1)"
        raise ValueError(f"model: expected outputs of shape {wanted} for {len(targets)} targets in "
                         f"this {task} task, but got {tuple(outputs.shape)}")
