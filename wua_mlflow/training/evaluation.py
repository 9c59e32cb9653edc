"""Predictions, losses and scores of a model for every example of some data.

Tests: ``tests/training/test_evaluation.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

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
    probabilities_of,
)
from wua_mlflow.device import rows_at_once
from wua_mlflow.hooks import evaluating
from wua_mlflow.verdict.scores import comparable_scores, find_score, value, value_of_comparable

__all__ = ["Evaluation", "evaluate", "evaluation_of", "outputs_of"]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One model on one part of the data; every array has shape (examples,).

    Attributes:
        task: the task.
        predictions: numbers of classes, or amounts.
        targets: the same.
        losses: by example.
        digest: of the part.
        score_name: what the model is judged by; accuracy or R², if "".
        probabilities: of a classifier: of the second of two classes, or (examples, classes).
    """

    task: Task
    predictions: np.ndarray
    targets: np.ndarray
    losses: np.ndarray
    digest: str = ""
    score_name: str = ""
    probabilities: np.ndarray | None = None

    @cached_property
    def scores(self) -> np.ndarray:
        """Numbers by example whose mean is compared, higher is better (``comparable_scores``).

        By default right or wrong; for regression 1 − squared error ÷ variance of the targets, whose
        mean is R².

        Raises:
            ValueError: predictions that have no such score.
        """
        if self.score_name in ("", "accuracy", "r2"):
            return example_scores(self.predictions, self.targets, self.task)
        return comparable_scores(self.score_name, self._truth, self.judged, labels=self._labels)

    @property
    def judged(self) -> np.ndarray:
        """What the score takes: the predictions, or the probabilities.

        Raises:
            ValueError: it takes probabilities, and there are none.
        """
        if not self.score_name or find_score(self.score_name).takes != "probabilities":
            return self.predictions
        if self.probabilities is None:
            raise ValueError(f"score: expected probabilities for {self.score_name}, but there are "
                             f"only the predicted classes")
        return self.probabilities

    @cached_property
    def score(self) -> float:
        """The score's value, scikit-learn's: accuracy or R² by default."""
        if ":" in self.score_name:
            return value(self.score_name, self._truth, self.judged)
        return value_of_comparable(self.score_name, self.scores)

    @property
    def accuracy(self) -> float:
        """The share of right classes."""
        return float((self.predictions == self.targets).mean())

    @property
    def loss(self) -> float:
        """Mean loss."""
        return float(self.losses.mean())

    @property
    def _truth(self) -> np.ndarray:
        """The targets, classes as whole numbers."""
        return self.targets if self.task == "regression" else self.targets.astype(np.int64)

    @property
    def _labels(self) -> np.ndarray | None:
        """Numbers of all classes, beside probabilities of them."""
        if self.probabilities is None or self.judged is not self.probabilities:
            return None
        return np.arange(2 if self.probabilities.ndim == 1 else self.probabilities.shape[1])


def evaluate(  # noqa: PLR0913 - what is tested, on what, by what
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    task: Task,
    kind: OutputKind,
    digest: str = "",
    score: str | None = None,
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
        score: what the model is judged by (``verdict/scores.py``); accuracy or R², if None.

    Raises:
        ValueError: no examples, outputs that do not fit the targets, or an output that is NaN or
            infinite.

    >>> model = nn.Sequential(nn.Linear(2, 3))
    >>> x, y = torch.rand(8, 2), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    >>> result = evaluate(model, x, y, task="multiclass", kind="logits")
    >>> result.predictions.shape, 0 <= result.score <= 1
    ((8,), True)
    """
    return evaluation_of(outputs_of(model, inputs), targets, task=task, kind=kind, digest=digest,
                         score=score)


def evaluation_of(
    outputs: Tensor, targets: Tensor, *, task: Task, kind: OutputKind, digest: str = "",
    score: str | None = None,
) -> Evaluation:
    """The evaluation of a model's outputs; arguments and errors as of ``evaluate``."""
    if task != "multiclass":
        outputs = outputs.reshape(len(outputs), -1)
        targets = targets.reshape(len(targets), -1).to(outputs.dtype)
    _check_shapes(outputs, targets, task)
    losses = loss_for(task, kind)(outputs, targets, reduction="none").reshape(-1)
    truth = targets.reshape(-1).cpu().double().numpy()
    if task == "regression" and truth.min() == truth.max():
        raise ValueError("targets: expected at least two different values, but got one")
    return Evaluation(task, predictions_of(outputs, task, kind), truth,
                      losses.cpu().double().numpy(), digest, score or "",
                      probabilities_of(outputs, task, kind))


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
