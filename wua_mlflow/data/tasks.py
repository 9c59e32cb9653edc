"""Rows of inputs and targets: reading them from files, checking them, and the task they pose.

pandas and pyarrow are imported where a file needs them, not before. Every error is one line.
May import: numpy, torch, dotted, evaluation. Tests: ``tests/pipeline/test_tables.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wua_mlflow.data.tables import _amounts, _listed
from wua_mlflow.hooks import evaluating, unwrapped

if TYPE_CHECKING:
    pass

__all__ = [
    "OutputKind", "Task", "TaskSpec", "example_scores", "infer_task", "loss_for", "output_kind",
    "score_name",
]


_FEW = 20  # up to so many different whole numbers are classes; more are amounts


@dataclass(frozen=True)
class TaskSpec:
    """The task that targets pose; ``values``: the classes in order, none in a regression."""

    task: Task
    values: tuple[Any, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names."""
        return tuple(_class_name(value) for value in self.values)

    def encoded(self, targets: np.ndarray, *, where: str) -> np.ndarray:
        """Targets (n,) as the class's place in ``values``, int64; in a regression as float64.

        Raises:
            ValueError: a class that is not in ``values``, or text in a regression.

        >>> TaskSpec("multiclass", ("a", "b", "c")).encoded(np.array(["b", "a"]), where="test")
        array([1, 0])
        """
        if self.task == "regression":
            return _amounts(targets, where)
        place = {value: number for number, value in enumerate(self.values)}
        distinct, inverse = np.unique(targets, return_inverse=True)
        unseen = [_class_name(value) for value in distinct.tolist() if value not in place]
        if unseen:
            raise ValueError(f"data: expected only the classes {_listed(self.classes)}, but "
                             f"{where} has {_listed(unseen)}")
        return np.array([place[value] for value in distinct.tolist()], dtype=np.int64)[inverse]


def infer_task(
    targets: np.ndarray, *, task: str | None = None, whole_are_classes: bool = False
) -> TaskSpec:
    """The task that ``targets`` (n,) pose: their own, or ``task`` where it is given.

    Text, bools and whole numbers of at most 20 different values are classes, in sorted order: two
    are a binary task, more a multiclass one. Other numbers are amounts, a regression.

    Args:
        targets: as ``Rows`` holds them.
        task: binary, multiclass or regression.
        whole_are_classes: integers are classes however many different values they have.

    Raises:
        ValueError: no such task, the targets do not fit it, or they are all alike.

    >>> infer_task(np.array(["no", "yes", "no"])).classes
    ('no', 'yes')
    >>> infer_task(np.array([0.5, 1.0, 2.0])).task
    'regression'
    """
    if task is not None and task not in get_args(Task):
        raise ValueError(f"task: expected {', '.join(get_args(Task))}, but got {task!r}")
    values = np.unique(targets)
    if len(values) < 2:
        raise ValueError("target: expected at least two different values, but all are "
                         f"{_class_name(values.tolist()[0])!r}")
    if task == "regression" or (task is None and not _are_classes(values, whole_are_classes)):
        _amounts(values, "the target")
        return TaskSpec("regression")
    if task == "binary" and len(values) > 2:
        raise ValueError(f"task: binary expected two classes, but the target has {len(values)}")
    binary = len(values) == 2 and task != "multiclass"
    return TaskSpec("binary" if binary else "multiclass", tuple(values.tolist()))


def _are_classes(values: np.ndarray, whole_are_classes: bool) -> bool:
    whole = whole_are_classes and values.dtype.kind in "iu"
    return whole or values.dtype.kind not in "iuf" or (
        len(values) <= _FEW and bool((values == np.round(values)).all()))


def _class_name(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


Task = Literal["binary", "multiclass", "regression"]
OutputKind = Literal["probabilities", "logits", "values"]

_PASS_THROUGH = ("View", "UnsafeView", "Reshape", "Squeeze", "Unsqueeze", "Alias", "Select",
                 "Slice", "ToCopy", "Clone", "Transpose", "TBackward", "Permute", "Expand", "Clamp")
"""What may stand between a sigmoid and the output: starts of the names of autograd's nodes."""
_PROBABILITY = {"binary": ("Sigmoid", "Hardsigmoid"), "multiclass": ("Softmax",)}


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


def _checked(outputs: object) -> Tensor:
    if not isinstance(outputs, Tensor):
        raise ValueError(f"model: expected a tensor as output, but got {type(outputs).__name__}")
    return outputs


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
