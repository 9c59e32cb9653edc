"""Predictions, losses and scores of a model for every example of some data.

Tests: ``tests/training/test_evaluation.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wua_mlflow.data.batches import NO_TARGETS, Batch, Batches, GrowingArray, mapped
from wua_mlflow.data.structured import (
    aligned_pixels,
    aligned_tokens,
    constant_overlap,
    decision_losses,
    decisions,
    image_overlap,
)
from wua_mlflow.data.tasks import (
    OutputKind,
    Task,
    checked_output,
    class_numbers,
    example_scores,
    has_classes,
    judged_as,
    loss_for,
    predictions_of,
    probabilities_of,
)
from wua_mlflow.hooks import evaluating
from wua_mlflow.imports import load_object
from wua_mlflow.verdict.scores import (
    BY_EXAMPLE,
    comparable_scores,
    default_score,
    find_score,
    value,
    value_of_comparable,
)

__all__ = [
    "Evaluation", "Objective", "evaluate", "evaluate_batches", "evaluation_of", "outputs_of",
]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One model on one part of the data; every array has shape (examples,).

    Of tasks with several decisions an example these are single decisions (labels, tokens, amounts),
    and ``groups`` says whose they are; amounts of several columns are in standard deviations of
    the targets'. A language model's and a segmentation's are scores, by token and by image.

    Attributes:
        task: the task of a single decision (``judged_as``).
        predictions: numbers of classes, or amounts; or scores.
        targets: the same; beside scores what a constant answer scores, NaN where that is not known.
        losses: by example.
        digest: of the part.
        score_name: what the model is judged by; accuracy or R², if "".
        probabilities: of a classifier: of the second of two classes, or (examples, classes).
        groups: the number of the example that each decision is of.
    """

    task: Task
    predictions: np.ndarray
    targets: np.ndarray
    losses: np.ndarray
    digest: str = ""
    score_name: str = ""
    probabilities: np.ndarray | None = None
    groups: np.ndarray | None = None

    @cached_property
    def scores(self) -> np.ndarray:
        """Numbers by example whose mean is compared, higher is better (``comparable_scores``).

        By default right or wrong; for regression 1 − squared error ÷ variance of the targets, whose
        mean is R².

        Raises:
            ValueError: predictions that have no such score.
        """
        if self.task in BY_EXAMPLE:
            return self.predictions
        if self.score_name in ("", "accuracy", "r2"):
            return example_scores(self.predictions, self.targets, self.task)
        return comparable_scores(self.score_name, self._truth, self.judged, labels=self._labels)

    @property
    def judged(self) -> np.ndarray:
        """What the score takes: the predictions, or the probabilities.

        Raises:
            ValueError: it takes probabilities, and there are none.
        """
        if not self.score_name or self.task in BY_EXAMPLE \
                or find_score(self.score_name).takes != "probabilities":
            return self.predictions
        if self.probabilities is None:
            raise ValueError(f"score: expected probabilities for {self.score_name}, but there are "
                             f"only the predicted classes")
        return self.probabilities

    @cached_property
    def score(self) -> float:
        """The score's value, scikit-learn's: accuracy or R² by default."""
        if ":" in self.score_name and self.task not in BY_EXAMPLE:
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
        return self.targets.astype(np.int64) if has_classes(self.task) else self.targets

    @property
    def _labels(self) -> np.ndarray | None:
        """Numbers of all classes, beside probabilities of them."""
        if self.probabilities is None or self.judged is not self.probabilities:
            return None
        return np.arange(2 if self.probabilities.ndim == 1 else self.probabilities.shape[1])


@dataclass(frozen=True)
class Objective:
    """What a network is trained for and judged by.

    Attributes:
        task: the task.
        kind: what its outputs are.
        score: a name, or ``package.module:function``; the task's own, if None.
        own_loss: the user's, of outputs and targets, the mean; the task's, if None.
    """

    task: Task
    kind: OutputKind
    score: str | None = None
    own_loss: Callable[[Any, Any], Tensor] | None = None

    @property
    def loss(self) -> Callable[[Any, Any], Tensor]:
        """Of outputs and targets, the mean: the user's, the task's, or the outputs' own."""
        if self.own_loss is not None:
            return self.own_loss
        return _loss_of_outputs if self.task == "custom" else loss_for(self.task, self.kind)


def _loss_of_outputs(outputs: Any, targets: Any) -> Tensor:
    value = outputs.get("loss") if isinstance(outputs, dict) else getattr(outputs, "loss", None)
    if not isinstance(value, Tensor):
        raise ValueError(f"loss: expected a function of (outputs, targets), or a model whose "
                         f"outputs have a loss, but got {type(outputs).__name__} without one")
    return value


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
        model: on any device.
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
    if len(inputs) != len(targets):
        raise ValueError(f"targets: expected one for each of {len(inputs)} inputs, but got "
                         f"{len(targets)}")
    return evaluate_batches(model, (inputs, targets), Objective(task, kind, score), digest=digest)


def evaluate_batches(
    model: nn.Module, data: Any, objective: Objective, *, digest: str = ""
) -> Evaluation:
    """The same of data in batches, of any task; nothing is kept of a batch but what is judged.

    Args:
        model: on any device.
        data: as ``Batches`` takes it.
        objective: task, loss and score.
        digest: identifies the data.

    Raises:
        ValueError: as ``evaluate``, or the user's loss or score fails.
    """
    arrays: dict[str, GrowingArray] = {}
    seen = 0

    def judge(batch: Batch, outputs: Any) -> None:
        nonlocal seen
        part = _judged(outputs, batch, objective)
        if "groups" in part:
            part["groups"] = part["groups"] + seen
        seen += batch.samples
        for name, rows in part.items():
            arrays.setdefault(name, GrowingArray()).add(rows)

    _go_over(model, data, judge)
    return _evaluation({name: array.rows for name, array in arrays.items()}, objective, digest)


def evaluation_of(
    outputs: Tensor, targets: Tensor, *, task: Task, kind: OutputKind, digest: str = "",
    score: str | None = None,
) -> Evaluation:
    """The evaluation of a model's outputs; arguments and errors as of ``evaluate``."""
    objective = Objective(task, kind, score)
    batch = Batch((), {}, targets, len(targets))
    return _evaluation(_judged(outputs, batch, objective), objective, digest)


def outputs_of(model: nn.Module, inputs: Any) -> Tensor:
    """The outputs of all inputs, in eval mode, without gradients, in chunks.

    The inputs stay as they are, also where the model writes into what it is given.

    Args:
        model: any module whose outputs hold a tensor.
        inputs: as ``Batches`` takes them.

    Raises:
        ValueError: there are no inputs, or an output is no tensor, NaN or infinite.
    """
    tensors: list[Tensor] = []
    _go_over(model, inputs, lambda _, outputs: tensors.append(checked_output(outputs)))
    return torch.cat(tensors)


def _go_over(model: nn.Module, data: Any, visit: Callable[[Batch, Any], None]) -> None:
    """Show a function each batch and what the model makes of it, in eval mode."""
    seen = 0
    with evaluating(model):
        for batch in data if isinstance(data, Batches) else Batches(data, model):
            outputs = batch.call(model)
            if not bool(torch.isfinite(checked_output(outputs)).all()):
                raise ValueError("model: expected finite outputs, but got NaN or infinity")
            visit(batch, outputs)
            seen += batch.samples
    if not seen:
        raise ValueError("inputs: expected at least one example, but got none")


def _judged(outputs: Any, batch: Batch, objective: Objective) -> dict[str, np.ndarray]:
    """The arrays of an ``Evaluation``, of one batch; ``groups`` are places in the batch."""
    if objective.task == "custom":
        return _judged_by_user(outputs, batch, objective)
    if batch.targets is NO_TARGETS:
        raise ValueError("data: expected targets in the batches, (inputs, targets) or dicts with "
                         "labels, but got inputs alone")
    tensor, targets = checked_output(outputs), batch.targets
    if objective.task == "segmentation":
        return _judged_images(tensor, targets, objective)
    if objective.task in ("binary", "multiclass", "regression"):
        return _judged_examples(tensor, targets, objective)
    found = decisions(tensor, targets, objective.task, objective.kind)
    losses = decision_losses(found, objective.task, objective.kind).cpu().double().numpy()
    groups = found.examples.cpu().numpy()
    if objective.task == "language_modeling":
        if objective.score is not None and ":" in objective.score:
            logits, aligned = aligned_tokens(tensor, targets, objective.task, objective.kind)
            return _by_function(aligned, logits.argmax(-1), objective,
                                np.bincount(groups, losses, len(targets)))
        return {"predictions": -losses, "targets": found.targets.cpu().numpy(), "losses": losses,
                "groups": groups}
    part = _judged_examples(found.outputs, found.targets, Objective(
        judged_as(objective.task), objective.kind, objective.score))
    return {**part, "losses": losses, "groups": groups}


def _judged_examples(
    outputs: Tensor, targets: Tensor, objective: Objective
) -> dict[str, np.ndarray]:
    """Of one target an example, or amounts in several columns."""
    task, kind = objective.task, objective.kind
    if task == "multiclass":
        targets = class_numbers(targets)
    else:
        outputs = outputs.reshape(len(outputs), -1)
        targets = targets.reshape(len(targets), -1).to(outputs.dtype)
    _check_shapes(outputs, targets, task)
    losses = loss_for(task, kind)(outputs, targets, reduction="none").cpu().double()
    if task == "regression" and outputs.shape[1] > 1:
        return {"predictions": outputs.cpu().double().numpy(), "losses": losses.numpy(),
                "targets": targets.cpu().double().numpy()}
    part = {"predictions": predictions_of(outputs, task, kind),
            "targets": targets.reshape(-1).cpu().double().numpy(),
            "losses": losses.reshape(-1).numpy()}
    probabilities = probabilities_of(outputs, task, kind)
    return part if probabilities is None else {**part, "probabilities": probabilities}


def _judged_images(
    outputs: Tensor, targets: Tensor, objective: Objective
) -> dict[str, np.ndarray]:
    found = image_overlap(outputs, targets)
    losses = found.losses.cpu().double().numpy()
    if objective.score is not None and ":" in objective.score:
        logits, classes = aligned_pixels(outputs, targets)
        return _by_function(classes, logits.argmax(1), objective, losses)
    return {"predictions": found.iou.cpu().double().numpy(), "losses": losses,
            "pixels": found.pixels.cpu().numpy()}


def _judged_by_user(outputs: Any, batch: Batch, objective: Objective) -> dict[str, np.ndarray]:
    loss = float(objective.loss(outputs, batch.targets))
    return _by_function(batch.targets, outputs, objective, np.full(batch.samples, loss))


def _by_function(
    targets: Any, predictions: Any, objective: Objective, losses: np.ndarray
) -> dict[str, np.ndarray]:
    """What the user's score makes of a batch: one number an example."""
    name = objective.score or ""
    if ":" not in name:
        raise ValueError("score: expected package.module:function of (targets, predictions), one "
                         f"number an example, for a {objective.task} task, but got {name or None}")
    arrays = mapped((targets, predictions), Tensor, lambda tensor: tensor.cpu().numpy())
    scores = np.asarray(load_object(name, argument="score")(*arrays), dtype=np.float64)
    if scores.shape != losses.shape or not np.isfinite(scores).all():
        got = f"the shape {scores.shape}" if scores.shape != losses.shape else "NaN or infinity"
        raise ValueError(f"score: expected {name} to give a finite number for each of "
                         f"{len(losses)} examples, but got {got}")
    return {"predictions": scores, "targets": np.full(len(scores), np.nan), "losses": losses}


def _evaluation(
    arrays: dict[str, np.ndarray], objective: Objective, digest: str
) -> Evaluation:
    task = judged_as(objective.task)
    if objective.task == "language_modeling" and "groups" in arrays:
        arrays["targets"] = _unigram_scores(arrays["targets"])
    if "pixels" in arrays:
        arrays["targets"] = constant_overlap(arrays.pop("pixels"))
    if task == "regression":
        arrays = _one_column(arrays)
    default = default_score(task) if task in BY_EXAMPLE else ""
    return Evaluation(task, digest=digest, score_name=objective.score or default, **arrays)


def _unigram_scores(tokens: np.ndarray) -> np.ndarray:
    """The log-likelihood of each token where all are guessed by how often they come."""
    _, places, counts = np.unique(tokens, return_inverse=True, return_counts=True)
    return np.asarray(np.log(counts / len(tokens))[places])


def _one_column(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Amounts of several columns in the targets' standard deviations, one after the other.

    So R² is the mean of the columns' own.
    """
    targets = arrays["targets"].reshape(len(arrays["targets"]), -1)
    if (targets.min(axis=0) == targets.max(axis=0)).any():
        raise ValueError("targets: expected at least two different values, but got one")
    columns = targets.shape[1]
    if columns == 1:
        return arrays
    mean, spread = targets.mean(axis=0), targets.std(axis=0)
    return {"predictions": ((arrays["predictions"] - mean) / spread).reshape(-1),
            "targets": ((targets - mean) / spread).reshape(-1),
            "losses": arrays["losses"].reshape(-1),
            "groups": np.repeat(np.arange(len(targets)), columns)}


def _check_shapes(outputs: Tensor, targets: Tensor, task: Task) -> None:
    fits = outputs.dim() == 2 and len(outputs) == len(targets) and (
        targets.dim() == 1 if task == "multiclass" else outputs.shape == targets.shape
        and (outputs.shape[1] == 1 or task == "regression"))
    if not fits:
        columns = targets.shape[1] if task == "regression" and targets.dim() > 1 else 1
        wanted = "(examples, classes)" if task == "multiclass" else f"(examples, {columns})"
        raise ValueError(f"model: expected outputs of shape {wanted} for {len(targets)} targets in "
                         f"this {task} task, but got {tuple(outputs.shape)}")
