"""Per-example predictions, losses and scores of a model; the loss that fits its outputs.

May import: torch, numpy, chunks, hooks. Tests: ``tests/test_evaluation.py``,
``tests/test_output_kind.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wua_mlflow.chunks import rows_at_once
from wua_mlflow.hooks import evaluating, unwrapped

__all__ = [
    "Evaluation",
    "OutputKind",
    "Task",
    "evaluate",
    "example_scores",
    "loss_for",
    "output_kind",
    "outputs_of",
    "score_name",
]

Task = Literal["binary", "multiclass", "regression"]
OutputKind = Literal["probabilities", "logits", "values"]

_PASS_THROUGH = ("View", "UnsafeView", "Reshape", "Squeeze", "Unsqueeze", "Alias", "Select",
                 "Slice", "ToCopy", "Clone", "Transpose", "TBackward", "Permute", "Expand", "Clamp")
"""What may stand between a sigmoid and the output: starts of the names of autograd's nodes."""
_PROBABILITY = {"binary": ("Sigmoid", "Hardsigmoid"), "multiclass": ("Softmax",)}


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
    for log-probabilities) unless a softmax comes last. Where the forward turns gradients off there
    is no graph, and the values decide: all in 0..1, and of sum 1 over several classes.

    Args:
        model: any module; its random state is left alone (eval mode).
        inputs: a few samples, shape (samples, ...).
        task: the task.

    Raises:
        ValueError: the output is no tensor.

    >>> x = torch.rand(4, 2)
    >>> output_kind(nn.Sequential(nn.Linear(2, 1), nn.Sigmoid()), x, "binary")
    'probabilities'
    """
    if task == "regression":
        return "values"
    probe = inputs[:2].detach().clone()
    if probe.is_floating_point():
        probe.requires_grad_()
    model = unwrapped(model)
    with evaluating(model), torch.enable_grad():
        outputs = _checked(model(probe))
    node = outputs.grad_fn
    if node is None:
        return _kind_by_values(outputs, task)
    while node.name().startswith(_PASS_THROUGH) and node.next_functions[0][0] is not None:
        node = node.next_functions[0][0]
    return "probabilities" if node.name().startswith(_PROBABILITY[task]) else "logits"


def _kind_by_values(outputs: Tensor, task: Task) -> OutputKind:
    likely = bool(((outputs >= 0) & (outputs <= 1)).all())
    if task == "multiclass":
        likely = likely and bool((outputs.sum(1) - 1).abs().max() < 1e-3)
    return "probabilities" if likely else "logits"


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
        losses=losses.cpu().double().numpy(),
        scores=example_scores(predictions, truth, task),
        digest=digest,
    )


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
        outputs = torch.cat([_checked(model(part.clone())) for part in inputs.split(chunk)])
    if not bool(torch.isfinite(outputs).all()):
        raise ValueError("model: expected finite outputs, but got NaN or infinity")
    return outputs


def _checked(outputs: object) -> Tensor:
    if not isinstance(outputs, Tensor):
        raise ValueError(f"model: expected a tensor as output, but got {type(outputs).__name__}")
    return outputs


def _check_shapes(outputs: Tensor, targets: Tensor, task: Task) -> None:
    fits = outputs.dim() == 2 and len(outputs) == len(targets) and (
        targets.dim() == 1 if task == "multiclass" else outputs.shape == targets.shape
        and outputs.shape[1] == 1)
    if not fits:
        wanted = "(examples, classes)" if task == "multiclass" else "(examples, 1)"
        raise ValueError(f"model: expected outputs of shape {wanted} for {len(targets)} targets in "
                         f"this {task} task, but got {tuple(outputs.shape)}")


def example_scores(predictions: np.ndarray, targets: np.ndarray, task: Task) -> np.ndarray:
    """Scores of each example, shape (examples,): right or wrong, or a share of R².

    Raises:
        ValueError: regression, and all targets are equal.

    >>> example_scores(np.array([1, 0]), np.array([1, 1]), "binary").tolist()
    [1.0, 0.0]
    """
    if task != "regression":
        return (predictions == targets).astype(np.float64)
    if targets.min() == targets.max():
        raise ValueError("targets: expected at least two different values, but got one")
    return np.asarray(1.0 - (targets - predictions) ** 2 / targets.var())
