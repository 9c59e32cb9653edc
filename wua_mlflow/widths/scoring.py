"""What is kept when units go: the mean score and the mean loss on the data that were given.

May import: torch, numpy, evaluation, hooks. Tests: ``tests/widths/test_scoring.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wua_mlflow.evaluation import Task, loss_for, output_kind, outputs_of, score_name

__all__ = ["Loss", "Score", "Scoring", "scoring", "tensors_of"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of outputs and targets: the mean over the examples, a scalar."""
Score = Callable[[Tensor, Tensor], Tensor]
"""Of outputs and targets: one number an example, shape (examples,); more is better."""


@dataclass(frozen=True)
class Scoring:
    """Data, and how a model's outputs on them are judged; ``axis`` names the score."""

    inputs: Tensor
    targets: Tensor
    loss: Loss
    score: Score
    axis: str

    def outputs(self, model: nn.Module) -> Tensor:
        """Shape (examples, ...), in eval mode and in chunks; the model is left as found."""
        return outputs_of(model, self.inputs)

    def mean_score(self, model: nn.Module) -> float:
        """The mean over all examples, in float64.

        Raises:
            ValueError: the score is not one finite number an example.
        """
        scores = self.score(self.outputs(model), self.targets)
        if not isinstance(scores, Tensor) or scores.shape != (len(self.inputs),):
            shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(f"score: expected one number an example, shape "
                             f"({len(self.inputs)},), but got {shape}")
        mean = float(scores.double().mean())
        if not np.isfinite(mean):
            raise ValueError(f"score: expected finite numbers, but their mean is {mean}")
        return mean

    def mean_loss(self, outputs: Tensor, rows: Tensor | None = None) -> float:
        """Of all examples, or of those at ``rows``.

        Raises:
            ValueError: the loss is no finite scalar.
        """
        targets = self.targets
        if rows is not None:
            outputs, targets = outputs[rows], targets[rows]
        value = self.loss(outputs, targets)
        if not isinstance(value, Tensor) or value.numel() != 1 or not bool(torch.isfinite(value)):
            shown = value if not isinstance(value, Tensor) or value.numel() == 1 else \
                f"shape {tuple(value.shape)}"
            raise ValueError(f"loss: expected a finite scalar tensor, but got {shown}")
        return float(value)


def scoring(
    model: nn.Module,
    data: Any,
    *,
    task: Task | None = None,
    loss: Loss | None = None,
    score: Score | None = None,
) -> Scoring:
    """The data on the model's device, with the score and the loss that fit.

    Args:
        model: any module whose output is a tensor.
        data: inputs and targets, each of shape (examples, ...).
        task: read from outputs and targets, if None: whole-number targets of shape (examples,)
            beside outputs of several columns are classes; targets that are 0 and 1 alone beside one
            column, a binary task; others, a regression.
        loss: that of the task, if None: cross-entropy, squared error.
        score: that of the task, if None: right or wrong, or an example's share of R².

    Raises:
        ValueError: one line; data that are no pair of one length, fewer than two examples, NaN, an
            unknown task, or outputs and targets that fit none.

    >>> model = nn.Linear(2, 3)
    >>> scoring(model, (torch.rand(4, 2), torch.tensor([0, 2, 1, 1]))).axis
    'accuracy'
    """
    inputs, targets = tensors_of(data, model)
    if task is not None and task not in get_args(Task):
        raise ValueError(f"task: expected one of {', '.join(get_args(Task))}, but got {task!r}")
    if task is None and loss is not None and score is not None:
        return Scoring(inputs, targets, loss, score, "mean score")
    outputs = outputs_of(model, inputs[:2])
    task = task or _task(outputs, targets)
    if task != "multiclass":
        targets = targets.reshape(len(targets), -1).to(outputs.dtype)
    _check_fit(outputs, targets, task)
    kind = output_kind(model, inputs, task)
    half = 0.5 if kind == "probabilities" else 0.0
    return Scoring(
        inputs, targets, loss=_in_columns(loss or loss_for(task, kind), task),
        score=score or _score_for(task, targets, half),
        axis="mean score" if score else score_name(task))


def tensors_of(data: Any, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Inputs and targets on the model's device, floating-point inputs in its dtype.

    Raises:
        ValueError: one line; see ``scoring``.
    """
    if not isinstance(data, tuple | list) or len(data) != 2:
        got = f"{len(data)} parts" if isinstance(data, tuple | list) else type(data).__name__
        raise ValueError(f"data: expected a pair (inputs, targets), but got {got}")
    inputs, targets = (_tensor(part, name) for part, name in zip(data, ("inputs", "targets"),
                                                                 strict=True))
    if len(inputs) != len(targets):
        raise ValueError(f"data: expected as many targets as inputs, but got {len(inputs)} inputs "
                         f"and {len(targets)} targets")
    if len(inputs) < 2:
        raise ValueError(f"data: expected at least two examples, but got {len(inputs)}")
    place = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    dtype = place.dtype if inputs.is_floating_point() else inputs.dtype
    return inputs.to(place.device, dtype), targets.to(place.device)


def _tensor(part: Any, name: str) -> Tensor:
    if isinstance(part, np.ndarray) and part.dtype.kind in "fiub":
        part = torch.from_numpy(np.array(part))
    if not isinstance(part, Tensor) or part.layout is not torch.strided or not part.dim():
        raise ValueError(f"data: expected {name} as a dense tensor of shape (examples, ...), but "
                         f"got {type(part).__name__}")
    if part.is_floating_point() and not bool(torch.isfinite(part).all()):
        raise ValueError(f"data: expected finite {name}, but got NaN or infinity")
    return part.detach()


def _task(outputs: Tensor, targets: Tensor) -> Task:
    if outputs.dim() == 2 and outputs.shape[1] > 1 and targets.dim() == 1 \
            and not targets.is_floating_point():
        return "multiclass"
    if bool(((targets == 0) | (targets == 1)).all()):
        return "binary"
    return "regression"


def _check_fit(outputs: Tensor, targets: Tensor, task: Task) -> None:
    columns = outputs.reshape(len(outputs), -1).shape[1]
    if task == "multiclass":
        fits = outputs.dim() == 2 and targets.dim() == 1 and not targets.is_floating_point()
        fits = fits and 0 <= int(targets.min()) <= int(targets.max()) < columns
    else:
        fits = columns == 1 and targets.shape[1] == 1
    if not fits:
        wanted = "class numbers of shape (examples,) for outputs of shape (examples, classes)" \
            if task == "multiclass" else "one output and one target an example"
        raise ValueError(f"data: expected {wanted} in a {task} task, but got outputs of shape "
                         f"{tuple(outputs.shape)} and targets of shape {tuple(targets.shape)}; "
                         "give score and loss for any other kind")
    if task == "regression" and bool((targets == targets[0]).all()):
        raise ValueError("data: expected at least two different targets, but got one")


def _in_columns(loss: Callable[..., Tensor], task: Task) -> Loss:
    """Outputs of a binary task or a regression are given the targets' shape."""
    if task == "multiclass":
        return loss
    return lambda outputs, targets: loss(outputs.reshape(len(outputs), -1), targets)


def _score_for(task: Task, targets: Tensor, half: float) -> Score:
    if task == "multiclass":
        return lambda outputs, targets: (outputs.argmax(1) == targets).double()
    if task == "binary":
        return lambda outputs, targets: (
            (outputs.reshape(-1) > half) == (targets.reshape(-1) > 0.5)).double()
    variance = targets.double().var(correction=0)

    def share_of_r2(outputs: Tensor, targets: Tensor) -> Tensor:
        errors = functional.mse_loss(outputs.reshape(-1).double(), targets.reshape(-1).double(),
                                     reduction="none")
        return 1 - errors / variance

    return share_of_r2
