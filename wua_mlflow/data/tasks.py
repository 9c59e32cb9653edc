"""The task of targets, the kind of a model's outputs, the loss and the per-example score that fit.

Tests: ``tests/data/test_tasks.py``.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wua_mlflow.data.batches import Batch, Inputs, leaves, mapped
from wua_mlflow.data.structured import STRUCTURED, output_tensor, structured_loss
from wua_mlflow.data.tables import listed
from wua_mlflow.hooks import evaluating, unwrapped

__all__ = [
    "OutputKind", "PLAIN", "Task", "TaskSpec", "checked_output", "class_numbers", "example_scores",
    "has_classes", "infer_task", "judged_as", "loss_for", "output_kind", "predictions_of",
    "probabilities_of", "score_name",
]


Task = Literal["binary", "multiclass", "regression", "multilabel", "token_classification",
               "language_modeling", "segmentation", "custom"]
OutputKind = Literal["probabilities", "logits", "values", "next_token_logits"]
PLAIN = ("binary", "multiclass", "regression")
"""Tasks of one target an example: those of files and bundled sets."""
_JUDGED: dict[str, Task] = {"multilabel": "binary", "token_classification": "multiclass"}

_FEW = 20  # up to so many different whole numbers are classes; more are amounts
_PASS_THROUGH = ("View", "UnsafeView", "Reshape", "Squeeze", "Unsqueeze", "Alias", "Select",
                 "Slice", "ToCopy", "Clone", "Transpose", "TBackward", "Permute", "Expand", "Clamp")
"""What may stand between a sigmoid and the output: starts of the names of autograd's nodes."""
_PROBABILITY = {"binary": ("Sigmoid", "Hardsigmoid"), "multilabel": ("Sigmoid", "Hardsigmoid"),
                "multiclass": ("Softmax",)}


@dataclass(frozen=True)
class TaskSpec:
    """A task, and its classes' values in the order of the outputs (none in a regression).

    ``columns`` are labels or amounts an example; ``next_token`` says that a language model's
    outputs at a position are of the next one's target.
    """

    task: Task
    values: tuple[Any, ...] = ()
    columns: int = 1
    next_token: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names."""
        return tuple(_class_name(value) for value in self.values)

    def encode(self, targets: np.ndarray, *, where: str) -> np.ndarray:
        """Targets (n,) as the class's place in ``values``, int64; in a regression as float64.

        Raises:
            ValueError: a class that is not in ``values``, or text in a regression.

        >>> TaskSpec("multiclass", ("a", "b", "c")).encode(np.array(["b", "a"]), where="test")
        array([1, 0])
        """
        if self.task == "regression":
            return _amounts(targets, where)
        place = {value: number for number, value in enumerate(self.values)}
        distinct, inverse = np.unique(targets, return_inverse=True)
        unknown = [_class_name(value) for value in distinct.tolist() if value not in place]
        if unknown:
            raise ValueError(f"data: expected only the classes {listed(self.classes)}, but "
                             f"{where} has {listed(unknown)}")
        return np.array([place[value] for value in distinct.tolist()], dtype=np.int64)[inverse]

    def for_outputs(self, count: int) -> TaskSpec:
        """The task with its classes numbered as a classifier of ``count`` outputs has them.

        Whole numbers below ``count`` are the outputs' places, whichever of them the targets have;
        other classes must be as many as the outputs, and stay in their order.

        Raises:
            ValueError: the classes cannot be those of the outputs.

        >>> TaskSpec("binary", (0, 2)).for_outputs(3).values
        (0, 1, 2)
        """
        if all(isinstance(value, int | float) and value in range(count) for value in self.values):
            return TaskSpec("multiclass", tuple(range(count)))
        if len(self.values) != count:
            raise ValueError(f"data: expected a class for each of the model's {count} outputs, but "
                             f"the test data have {len(self.values)}")
        return TaskSpec("multiclass", self.values)


def infer_task(
    targets: np.ndarray, *, task: str | None = None, whole_are_classes: bool = False,
    outputs: int | None = None,
) -> TaskSpec:
    """The task of ``targets``: as they look, or ``task`` where it is given.

    Text, bools and whole numbers of at most 20 different values are classes, in sorted order: two
    are a binary task, more a multiclass one. Other numbers are amounts, a regression.

    Beside a model's outputs the targets are numbers as its loss takes them: whole numbers (n,)
    beside several outputs are classes, 0 and 1 a binary task, all else a regression.

    Args:
        targets: (n,), as ``Rows`` holds them; beside ``outputs`` also (n, 1).
        task: binary, multiclass or regression.
        whole_are_classes: integers are classes however many different values they have.
        outputs: how many outputs an example the model has, where the model is there already.

    Raises:
        ValueError: no such task, the targets do not fit it, or they are all alike.

    >>> infer_task(np.array(["no", "yes", "no"])).classes
    ('no', 'yes')
    >>> infer_task(np.array([0.5, 1.0, 2.0])).task
    'regression'
    >>> infer_task(np.array([3, 1, 2]), outputs=1).task
    'regression'
    """
    if task is not None and task not in get_args(Task):
        raise ValueError(f"task: expected one of {', '.join(get_args(Task))}, but got {task!r}")
    if task is not None and task not in PLAIN:
        raise ValueError(f"task: expected one of {', '.join(PLAIN)} for one target an example, but "
                         f"got {task!r}")
    if outputs is not None:
        return _task_beside(targets, outputs, task)
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


def _task_beside(targets: np.ndarray, outputs: int, task: str | None) -> TaskSpec:
    if task is None and outputs > 1 and targets.ndim == 1 and targets.dtype.kind in "biu":
        task = "multiclass"
    if task == "multiclass":
        return TaskSpec("multiclass", tuple(range(outputs)))
    if task == "binary" or (task is None and bool(np.isin(targets, (0, 1)).all())):
        return TaskSpec("binary", (0, 1))
    return TaskSpec("regression")


def _are_classes(values: np.ndarray, whole_are_classes: bool) -> bool:
    whole = whole_are_classes and values.dtype.kind in "iu"
    return whole or values.dtype.kind not in "iuf" or (
        len(values) <= _FEW and bool((values == np.round(values)).all()))


def _class_name(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _amounts(targets: np.ndarray, where: str) -> np.ndarray:
    if targets.dtype.kind not in "biuf":
        raise ValueError(f"target: expected numbers in a regression, but {where} has text, such "
                         f"as {reprlib.repr(targets.tolist()[0])}")
    return targets.astype(np.float64)


def output_kind(
    model: nn.Module, inputs: Inputs, task: Task, *, next_token: bool = False
) -> OutputKind:
    """Whether a classifier's outputs are probabilities or logits.

    Read from the graph: a probability is what leaves a sigmoid, whether that is a module or a
    function call. Regression gives ``values``, multi-class ``logits`` (cross-entropy is the same
    for log-probabilities) unless a softmax comes last. Where the forward turns gradients off there
    is no graph, and the values decide: all in 0..1, and of sum 1 over several classes. Tokens and
    pixels have logits.

    Args:
        model: any module; its random state is left alone (eval mode).
        inputs: a few samples: a tensor of shape (samples, ...), a tuple of arguments, or a dict of
            keyword arguments.
        task: the task.
        next_token: whether a language model's outputs are of the next position's target.

    Raises:
        ValueError: the output is no tensor, and holds none.

    >>> x = torch.rand(4, 2)
    >>> output_kind(nn.Sequential(nn.Linear(2, 1), nn.Sigmoid()), x, "binary")
    'probabilities'
    """
    if task == "regression":
        return "values"
    if task not in _PROBABILITY:
        return "next_token_logits" if next_token else "logits"
    if isinstance(inputs, Tensor):
        inputs = inputs[:2]
    batch = _as_batch(mapped(inputs, Tensor, _probe_of))
    model = unwrapped(model)
    with evaluating(model), torch.enable_grad():
        outputs = checked_output(model(*batch.args, **batch.kwargs))
    node = outputs.grad_fn
    if node is None:
        return _kind_by_values(outputs, task)
    while node.name().startswith(_PASS_THROUGH) and node.next_functions[0][0] is not None:
        node = node.next_functions[0][0]
    return "probabilities" if node.name().startswith(_PROBABILITY[task]) else "logits"


def _as_batch(inputs: Inputs) -> Batch:
    args = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, dict) else (inputs,)
    kwargs = inputs if isinstance(inputs, dict) else {}
    return Batch(args, kwargs, None, len(leaves(inputs, Tensor)[0]))


def _probe_of(tensor: Tensor) -> Tensor:
    probe = tensor.detach().clone()
    return probe.requires_grad_() if probe.is_floating_point() else probe


def _kind_by_values(outputs: Tensor, task: Task) -> OutputKind:
    likely = bool(((outputs >= 0) & (outputs <= 1)).all())
    if task == "multiclass":
        likely = likely and bool((outputs.sum(1) - 1).abs().max() < 1e-3)
    return "probabilities" if likely else "logits"


def checked_output(outputs: object) -> Tensor:
    """The tensor of a model's outputs (``structured.output_tensor``).

    Raises:
        ValueError: there is none.
    """
    return output_tensor(outputs)


def loss_for(task: Task, kind: OutputKind) -> Callable[..., Tensor]:
    """The loss of (outputs, targets) that fits a task and a kind of output, the mean.

    Binary: (log-)loss of a probability or a logit; multi-class: cross-entropy; regression: squared
    error; several decisions an example: ``structured.structured_loss``. The outputs may be of any
    form that holds a tensor. Of the first three it takes ``reduction``.

    Raises:
        ValueError: ``custom``, whose loss is the user's.
    """
    if task == "custom":
        raise ValueError("loss: expected a function of (outputs, targets) for a custom task, but "
                         "got none")
    if task in STRUCTURED:
        return lambda outputs, targets: structured_loss(
            output_tensor(outputs), targets, task, kind)
    base = _plain_loss(task, kind)

    def loss(outputs: Any, targets: Tensor, reduction: str = "mean") -> Tensor:
        outputs = output_tensor(outputs)
        if task == "multiclass":
            return base(outputs, class_numbers(targets), reduction=reduction)
        if targets.shape != outputs.shape:
            targets = _of_outputs(targets, outputs)
        return base(outputs, targets.to(outputs.dtype), reduction=reduction)

    return loss


def class_numbers(targets: Tensor) -> Tensor:
    """Targets of shape (n,) or (n, 1), of any dtype, as cross-entropy takes them: int64, (n,)."""
    return targets.reshape(len(targets)).long() if targets.shape[1:] in ((), (1,)) else targets


def _of_outputs(targets: Tensor, outputs: Tensor) -> Tensor:
    """Targets in the outputs' shape, where there are as many."""
    if targets.numel() != outputs.numel():
        raise ValueError(f"model: expected outputs of the targets' shape {tuple(targets.shape)}, "
                         f"but got {tuple(outputs.shape)}")
    return targets.reshape(outputs.shape)


def _plain_loss(task: Task, kind: OutputKind) -> Callable[..., Tensor]:
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


def predictions_of(outputs: Tensor, task: Task, kind: OutputKind) -> np.ndarray:
    """A model's predictions, shape (examples,): class numbers, or amounts in float64.

    >>> predictions_of(torch.tensor([[-1.0], [2.0]]), "binary", "logits").tolist()
    [0, 1]
    """
    if task == "multiclass":
        return outputs.argmax(1).cpu().numpy()
    values = outputs.reshape(-1).cpu()
    if task == "binary":
        return (values > (0.5 if kind == "probabilities" else 0.0)).long().numpy()
    return values.double().numpy()


def probabilities_of(outputs: Tensor, task: Task, kind: OutputKind) -> np.ndarray | None:
    """A classifier's probabilities, float64: (examples,) of the second of two classes, or
    (examples, classes) of sum 1; None in a regression.

    >>> probabilities_of(torch.tensor([[0.0]]), "binary", "logits").tolist()
    [0.5]
    """
    if task == "regression":
        return None
    values = outputs.double().cpu()
    if task == "binary":
        values = values.reshape(-1)
        return (values if kind == "probabilities" else values.sigmoid()).numpy()
    values = values.clamp_min(0) if kind == "probabilities" else values.softmax(1)
    return (values / values.sum(1, keepdim=True)).numpy()


def example_scores(predictions: np.ndarray, targets: np.ndarray, task: Task) -> np.ndarray:
    """The score of each example, shape (examples,); the mean is accuracy, or R².

    Of classes 1 or 0 for right or wrong; of amounts 1 − squared error ÷ variance of the targets.

    Raises:
        ValueError: regression, and all targets are equal.

    >>> example_scores(np.array([1, 0]), np.array([1, 1]), "binary").tolist()
    [1.0, 0.0]
    """
    if task != "regression":
        return np.asarray(predictions == targets, dtype=np.float64)
    if targets.min() == targets.max():
        raise ValueError("targets: expected at least two different values, but got one")
    return np.asarray(1.0 - (targets - predictions) ** 2 / targets.var())


def score_name(task: Task) -> str:
    """The word for the score: ``accuracy``, ``R²``, ``perplexity`` or ``iou``."""
    return {"regression": "R²", "language_modeling": "perplexity", "segmentation": "iou"}.get(
        task, "accuracy")


def judged_as(task: Task) -> Task:
    """The task of a single decision: binary of a label, multi-class of a token; else itself.

    >>> judged_as("multilabel"), judged_as("regression")
    ('binary', 'regression')
    """
    return _JUDGED.get(task, task)


def has_classes(task: Task) -> bool:
    """Whether single decisions are right or wrong.

    >>> has_classes("token_classification"), has_classes("language_modeling")
    (True, False)
    """
    return judged_as(task) in ("binary", "multiclass")
