"""Per-example predictions, losses and scores of a model; the loss that fits its outputs.

May import: torch, numpy, hooks. Tests: ``tests/test_evaluation.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wua_mlflow.hooks import evaluating

__all__ = [
    "Evaluation",
    "OutputKind",
    "Task",
    "evaluate",
    "example_scores",
    "loss_for",
    "output_kind",
    "score_name",
]

Task = Literal["binary", "multiclass", "regression"]
OutputKind = Literal["probabilities", "logits", "values"]

_PASS_THROUGH = ("View", "Reshape", "Squeeze", "Unsqueeze", "Alias", "Select", "Slice", "ToCopy",
                 "Clone", "Transpose", "Permute")


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


def score_name(task: Task) -> str:
    """The word for the score: ``accuracy`` or ``R²``."""
    return "R²" if task == "regression" else "accuracy"


def output_kind(model: nn.Module, inputs: Tensor, task: Task) -> OutputKind:
    """Whether a binary classifier's single output is a probability or a logit.

    Read from the graph: a probability is what leaves a sigmoid, whether that is a module or a
    function call. Regression gives ``values``, multi-class ``logits`` (cross-entropy is the same
    for log-probabilities) unless a softmax comes last.

    Args:
        model: any module; its random state is left alone (eval mode).
        inputs: a few samples, shape (samples, ...).
        task: the task.
    """
    if task == "regression":
        return "values"
    with evaluating(model), torch.enable_grad():
        probe = inputs[:2].detach().clone().requires_grad_()
        node = model(probe).grad_fn
    while node is not None and node.name().startswith(_PASS_THROUGH) and node.next_functions:
        node = node.next_functions[0][0]
    last = node.name() if node is not None else ""
    return "probabilities" if last.startswith(("Sigmoid", "Softmax")) else "logits"


def loss_for(task: Task, kind: OutputKind) -> Callable[..., Tensor]:
    """The loss that fits a task and a kind of output, taking ``reduction``.

    Binary: (log-)loss of a probability or a logit; multi-class: cross-entropy; regression: squared
    error.
    """
    if task == "regression":
        return functional.mse_loss
    if task == "multiclass":
        return _nll_of_probabilities if kind == "probabilities" else functional.cross_entropy
    if kind == "probabilities":
        return functional.binary_cross_entropy
    return functional.binary_cross_entropy_with_logits


def _nll_of_probabilities(outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    logs = outputs.clamp_min(torch.finfo(outputs.dtype).tiny).log()
    return functional.nll_loss(logs, targets, reduction=reduction)


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
        targets: binary and regression: float, shape (examples, 1); multi-class: int64, shape
            (examples,).
        task: the task.
        kind: what the outputs are, from ``output_kind``.
        digest: identifies the data.

    Raises:
        ValueError: an output is NaN.
    """
    with evaluating(model):
        outputs = torch.cat([model(chunk) for chunk in inputs.split(8192)])
    if not bool(torch.isfinite(outputs).all()):
        raise ValueError("model: expected finite outputs, but got NaN or infinity")
    losses = loss_for(task, kind)(outputs, targets, reduction="none").reshape(len(inputs), -1)
    truth = targets.reshape(len(inputs), -1)[:, 0].cpu().double().numpy()
    if task == "multiclass":
        predictions = outputs.argmax(1).cpu().numpy()
    elif task == "binary":
        threshold = 0.5 if kind == "probabilities" else 0.0
        predictions = (outputs.reshape(-1) > threshold).long().cpu().numpy()
    else:
        predictions = outputs.reshape(-1).cpu().double().numpy()
    return Evaluation(
        task=task,
        predictions=predictions,
        targets=truth,
        losses=losses.mean(1).cpu().double().numpy(),
        scores=example_scores(predictions, truth, task),
        digest=digest,
    )


def example_scores(predictions: np.ndarray, targets: np.ndarray, task: Task) -> np.ndarray:
    """Scores of each example, shape (examples,): right or wrong, or a share of R²."""
    if task != "regression":
        return (predictions == targets).astype(np.float64)
    variance = targets.var()
    if variance == 0:
        raise ValueError("targets: expected at least two different values, but got one")
    return 1.0 - (targets - predictions) ** 2 / variance
