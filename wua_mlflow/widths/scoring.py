"""How a model is scored on data of any form: the mean score, and the mean loss of examples.

Tests: ``tests/widths/test_scoring.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from wua_mlflow.data.batches import Batches, Inputs, leaves, mapped
from wua_mlflow.data.structured import infer_structured
from wua_mlflow.data.tasks import (
    PLAIN,
    Task,
    checked_output,
    infer_task,
    output_kind,
    score_name,
)
from wua_mlflow.hooks import evaluating
from wua_mlflow.training.evaluation import Objective, evaluate_batches

__all__ = ["Loss", "Score", "Scoring", "batches_of", "checked_tensor", "scoring"]


Loss = Callable[[Any, Any], Tensor]
"""Of outputs and targets: the mean over the examples, a scalar."""
Score = Callable[[Any, Any], Tensor]
"""Of outputs and targets: one number an example, shape (examples,); more is better."""


class BatchOutputs(NamedTuple):
    """What a model makes of a batch, and the batch's targets."""

    outputs: Any
    targets: Any
    samples: int


@dataclass(frozen=True)
class Scoring:
    """Data with a loss and a score of a model's outputs on them; ``axis`` names the score.

    Attributes:
        batches: can be gone over again and again.
        loss: of outputs and targets.
        score: of the same, one number an example; None: the task's.
        axis: the score's name.
        objective: task and kind of outputs, where the score is the task's.
    """

    batches: Batches
    loss: Loss
    score: Score | None
    axis: str
    objective: Objective | None = None

    def example(self, model: nn.Module, count: int) -> Inputs:
        """The first inputs, on the model's device; a whole batch where it refuses so few."""
        return next(iter(self.batches)).accepted_example(model, count)

    def outputs(self, model: nn.Module) -> list[BatchOutputs]:
        """Of all batches, in eval mode; the model is left as found."""
        own = self.objective is None or self.objective.own_loss is not None
        keep: Callable[[Any], Any] = (lambda outputs: outputs) if own else checked_output
        with evaluating(model):
            return [BatchOutputs(keep(batch.call(model)), batch.targets, batch.samples)
                    for batch in self.batches]

    def mean_score(self, model: nn.Module) -> float:
        """The mean score over all examples, in float64.

        Raises:
            ValueError: the score is not one finite number an example.
        """
        if self.score is None:
            assert self.objective is not None, "the task's score"
            return float(evaluate_batches(model, self.batches, self.objective).scores.mean())
        total, examples = 0.0, 0
        with evaluating(model):
            for batch in self.batches:
                scores = self.score(batch.call(model), batch.targets)
                if not isinstance(scores, Tensor) or scores.shape != (batch.samples,):
                    shape = tuple(scores.shape) if isinstance(scores, Tensor) else \
                        type(scores).__name__
                    raise ValueError(f"score: expected one number an example, shape "
                                     f"({batch.samples},), but got {shape}")
                total += float(scores.double().sum())
                examples += batch.samples
        if not np.isfinite(total):
            raise ValueError(f"score: expected finite numbers, but their mean is "
                             f"{total / examples}")
        return total / examples

    def mean_loss(self, outputs: Sequence[BatchOutputs], rows: Tensor | None = None) -> float:
        """The mean loss of all examples, or of those at ``rows``.

        Raises:
            ValueError: the loss is no finite scalar.
        """
        total, examples, start = 0.0, 0, 0
        for batch in outputs:
            chosen = batch
            if rows is not None:
                inside = rows[(rows >= start) & (rows < start + batch.samples)] - start
                chosen = _at(batch, inside)
            start += batch.samples
            if chosen.samples:
                total += _checked_loss(self.loss(chosen.outputs, chosen.targets)) * chosen.samples
                examples += chosen.samples
        return total / max(1, examples)


def _at(batch: BatchOutputs, rows: Tensor) -> BatchOutputs:
    def select(tensor: Tensor) -> Tensor:
        per_example = tensor.dim() and len(tensor) == batch.samples
        return tensor[rows.to(tensor.device)] if per_example else tensor

    outputs = batch.outputs
    if is_dataclass(outputs) and not isinstance(outputs, Mapping | type):
        outputs = replace(outputs, **{each.name: mapped(getattr(outputs, each.name), Tensor, select)
                                      for each in fields(outputs)})
    return BatchOutputs(mapped(outputs, Tensor, select),
                        mapped(batch.targets, Tensor, select), len(rows))


def _checked_loss(value: Any) -> float:
    if not isinstance(value, Tensor) or value.numel() != 1 or not bool(torch.isfinite(value)):
        shown = value if not isinstance(value, Tensor) or value.numel() == 1 else \
            f"shape {tuple(value.shape)}"
        raise ValueError(f"loss: expected a finite scalar tensor, but got {shown}")
    return float(value)


def scoring(
    model: nn.Module, data: Any, *, task: Task | None = None, loss: Loss | None = None,
    score: Score | str | None = None, batch_to_inputs: Callable[[Any], Any] | None = None,
) -> Scoring:
    """The data in batches for the model, with the score and the loss of their task.

    Args:
        model: any module whose outputs hold a tensor.
        data: inputs and targets, each of shape (examples, ...); or a Dataset, a DataLoader or a
            list of batches with targets, as ``analyze`` takes them.
        task: read from outputs and targets, if None: whole-number targets of shape (examples,)
            beside outputs of several columns are classes; targets that are 0 and 1 alone beside one
            column, a binary task; others, a regression; several targets an example are what
            ``data.structured.infer_structured`` says.
        loss: that of the task, if None: cross-entropy, squared error.
        score: a function, or the name of one as in ``compare``; that of the task, if None: right
            or wrong, or an example's share of R².
        batch_to_inputs: as of ``analyze``.

    Raises:
        ValueError: one line; data that are no pair of one length, fewer than two examples, NaN, an
            unknown task, or outputs and targets that fit none.

    >>> model = nn.Linear(2, 3)
    >>> scoring(model, (torch.rand(4, 2), torch.tensor([0, 2, 1, 1]))).axis
    'accuracy'
    """
    batches = batches_of(data, model, batch_to_inputs)
    first = next(iter(batches))
    if loss is not None and callable(score) and task in (None, "custom"):
        return Scoring(batches, loss, score, "mean score")
    structure = infer_structured(first.example(first.samples), first.targets,
                                 task)
    with evaluating(model):
        outputs = checked_output(first.call(model))
    found: Task = _plain_task(batches, outputs, task) \
        if structure is None or task in PLAIN else structure.task
    next_token = structure is not None and structure.next_token
    kind = output_kind(model, first.accepted_example(model, 2), found, next_token=next_token)
    own_loss = _reshaping(loss, found) if loss else None
    if score is None or isinstance(score, str):
        objective = Objective(found, kind, score, own_loss)
        return Scoring(batches, objective.loss, None, score or score_name(found), objective)
    objective = Objective(found, kind, own_loss=own_loss)
    return Scoring(batches, objective.loss, score, "mean score", objective)


def _plain_task(batches: Batches, outputs: Tensor, task: Task | None) -> Task:
    """The task of one target an example; raises where they do not fit the outputs."""
    targets = torch.cat([batch.targets for batch in batches])
    columns = outputs.shape[1] if outputs.dim() == 2 else 1
    task = infer_task(_array(targets), task=task, outputs=columns).task
    if task != "multiclass":
        targets = targets.reshape(len(targets), -1).to(outputs.dtype)
    _check_fit(outputs, targets, task)
    return task


def batches_of(
    data: Any, model: nn.Module, batch_to_inputs: Callable[[Any], Any] | None = None
) -> Batches:
    """The data as batches on the model's device, floating-point inputs in its dtype.

    Raises:
        ValueError: one line; see ``scoring``.
    """
    pair = isinstance(data, tuple | list) and any(
        isinstance(part, Tensor | np.ndarray) for part in data)
    streamed = hasattr(data, "__iter__") or hasattr(data, "__getitem__")
    if pair or not streamed or isinstance(data, str | dict | Tensor | np.ndarray) \
            or isinstance(data, tuple | list) and not data:
        data = _tensors_of(data)
    batches = Batches(data, model, batch_to_inputs)
    if batches.once:
        raise ValueError("data: expected batches that can be gone over again, but got an iterator; "
                         "give a DataLoader or a list")
    return batches


def _tensors_of(data: Any) -> tuple[Any, Tensor]:
    if not isinstance(data, tuple | list) or len(data) != 2:
        got = f"{len(data)} parts" if isinstance(data, tuple | list) else type(data).__name__
        raise ValueError(f"data: expected a pair (inputs, targets), a Dataset, a DataLoader or a "
                         f"list of batches, but got {got}")
    inputs = mapped(data[0], (Tensor, np.ndarray), lambda part: checked_tensor(part, "inputs")) \
        if isinstance(data[0], tuple | dict) else checked_tensor(data[0], "inputs")
    targets = checked_tensor(data[1], "targets")
    count = len(leaves(inputs, Tensor)[0])
    if count != len(targets):
        raise ValueError(f"data: expected as many targets as inputs, but got {count} inputs "
                         f"and {len(targets)} targets")
    if count < 2:
        raise ValueError(f"data: expected at least two examples, but got {count}")
    return inputs, targets


def checked_tensor(part: Any, name: str) -> Tensor:
    """A tensor or array as a dense, finite tensor of shape (examples, ...).

    Raises:
        ValueError: it is none.
    """
    if isinstance(part, np.ndarray) and part.dtype.kind in "fiub":
        part = torch.from_numpy(np.array(part))
    if not isinstance(part, Tensor) or part.layout is not torch.strided or not part.dim():
        raise ValueError(f"data: expected {name} as a dense tensor of shape (examples, ...), but "
                         f"got {type(part).__name__}")
    if part.is_floating_point() and not bool(torch.isfinite(part).all()):
        raise ValueError(f"data: expected finite {name}, but got NaN or infinity")
    return part.detach()


def _array(targets: Tensor) -> np.ndarray:
    return (targets.double() if targets.is_floating_point() else targets).cpu().numpy()


def _check_fit(outputs: Tensor, targets: Tensor, task: Task) -> None:
    columns = outputs.reshape(len(outputs), -1).shape[1]
    if task == "multiclass":
        fits = outputs.dim() == 2 and targets.dim() == 1 and not targets.is_floating_point()
        fits = fits and 0 <= int(targets.min()) <= int(targets.max()) < columns
    else:
        fits = columns == targets.shape[1] and (columns == 1 or task == "regression")
    if not fits:
        wanted = "class numbers of shape (examples,) for outputs of shape (examples, classes)" \
            if task == "multiclass" else "one output and one target an example"
        raise ValueError(f"data: expected {wanted} in a {task} task, but got outputs of shape "
                         f"{tuple(outputs.shape)} and targets of shape {tuple(targets.shape)}; "
                         "give score and loss for any other kind")
    if task == "regression" and bool((targets == targets[0]).all(0).any()):
        raise ValueError("data: expected at least two different targets, but got one")


def _reshaping(loss: Loss, task: Task) -> Loss:
    """The user's loss with outputs and targets in one shape, for one target an example."""
    if task not in ("binary", "regression"):
        return loss

    def reshaped(outputs: Any, targets: Tensor) -> Tensor:
        tensor = checked_output(outputs)
        tensor = tensor.reshape(len(tensor), -1)
        return loss(tensor, targets.reshape(len(tensor), -1).to(tensor.dtype))

    return reshaped
