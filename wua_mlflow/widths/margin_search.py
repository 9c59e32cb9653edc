"""The smallest widths whose mean score stays within a margin, and how a model is scored.

Tests: ``tests/widths/test_margin_search.py``, ``tests/widths/test_scoring.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wua_mlflow.data.tasks import (
    OutputKind,
    Task,
    example_scores,
    infer_task,
    loss_for,
    output_kind,
    predictions_of,
    score_name,
)
from wua_mlflow.pruning.unit_groups import UnitGroup
from wua_mlflow.training.evaluation import outputs_of
from wua_mlflow.widths.results import Curve, LayerWidth

__all__ = [
    "GRID_SIZE", "Loss", "MarginSearch", "Score", "Scoring", "scoring", "tensors_of", "width_path",
]


Loss = Callable[[Tensor, Tensor], Tensor]
"""Of outputs and targets: the mean over the examples, a scalar."""
Score = Callable[[Tensor, Tensor], Tensor]
"""Of outputs and targets: one number an example, shape (examples,); more is better."""


@dataclass(frozen=True)
class Scoring:
    """Data with a loss and a score of a model's outputs on them; ``axis`` names the score."""

    inputs: Tensor
    targets: Tensor
    loss: Loss
    score: Score
    axis: str

    def outputs(self, model: nn.Module) -> Tensor:
        """Shape (examples, ...), in eval mode and in chunks; the model is left as found."""
        return outputs_of(model, self.inputs)

    def mean_score(self, model: nn.Module) -> float:
        """The mean score over all examples, in float64.

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
        """The mean loss of all examples, or of those at ``rows``.

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
    model: nn.Module, data: Any, *, task: Task | None = None, loss: Loss | None = None,
    score: Score | None = None,
) -> Scoring:
    """The data on the model's device, with the score and the loss of their task.

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
    if task is None and loss is not None and score is not None:
        return Scoring(inputs, targets, loss, score, "mean score")
    outputs = outputs_of(model, inputs[:2])
    columns = outputs.shape[1] if outputs.dim() == 2 else 1
    task = infer_task(_array(targets), task=task, outputs=columns).task
    if task != "multiclass":
        targets = targets.reshape(len(targets), -1).to(outputs.dtype)
    _check_fit(outputs, targets, task)
    kind = output_kind(model, inputs, task)
    return Scoring(
        inputs, targets, loss=_reshaping(loss or loss_for(task, kind), task),
        score=score or _score_for(task, kind),
        axis="mean score" if score else score_name(task))


def tensors_of(data: Any, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Inputs and targets on the model's device, floating-point inputs in its dtype.

    Raises:
        ValueError: one line; see ``scoring``.
    """
    if not isinstance(data, tuple | list) or len(data) != 2:
        got = f"{len(data)} parts" if isinstance(data, tuple | list) else type(data).__name__
        raise ValueError(f"data: expected a pair (inputs, targets), but got {got}")
    inputs, targets = _checked_tensor(data[0], "inputs"), _checked_tensor(data[1], "targets")
    if len(inputs) != len(targets):
        raise ValueError(f"data: expected as many targets as inputs, but got {len(inputs)} inputs "
                         f"and {len(targets)} targets")
    if len(inputs) < 2:
        raise ValueError(f"data: expected at least two examples, but got {len(inputs)}")
    weights = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    dtype = weights.dtype if inputs.is_floating_point() else inputs.dtype
    return inputs.to(weights.device, dtype), targets.to(weights.device)


def _checked_tensor(part: Any, name: str) -> Tensor:
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
        fits = columns == 1 and targets.shape[1] == 1
    if not fits:
        wanted = "class numbers of shape (examples,) for outputs of shape (examples, classes)" \
            if task == "multiclass" else "one output and one target an example"
        raise ValueError(f"data: expected {wanted} in a {task} task, but got outputs of shape "
                         f"{tuple(outputs.shape)} and targets of shape {tuple(targets.shape)}; "
                         "give score and loss for any other kind")
    if task == "regression" and bool((targets == targets[0]).all()):
        raise ValueError("data: expected at least two different targets, but got one")


def _reshaping(loss: Callable[..., Tensor], task: Task) -> Loss:
    """The loss with outputs in the targets' shape, for a binary task or a regression."""
    if task == "multiclass":
        return loss
    return lambda outputs, targets: loss(outputs.reshape(len(outputs), -1), targets)


def _score_for(task: Task, kind: OutputKind) -> Score:
    def score(outputs: Tensor, targets: Tensor) -> Tensor:
        truth = _array(targets.reshape(-1) > 0.5 if task == "binary" else targets.reshape(-1))
        return torch.from_numpy(example_scores(predictions_of(outputs, task, kind), truth, task))

    return score


GRID_SIZE = 16
"""At most so many widths are tried before bisection."""
_SLACK = 1e-9
"""In floating point 21/40 − 0.05 is more than 19/40."""

Probe = Callable[[Mapping[str, int]], float]
"""The mean score where groups keep so many units; those that are not named keep all."""


@dataclass(frozen=True)
class MarginSearch:
    """Searches the smallest widths whose score is at most ``margin`` below ``baseline``.

    Attributes:
        probe: the mean score of widths.
        baseline: the score of all units.
        margin: how much of it may be lost.
        axis: what the score is.
    """

    probe: Probe
    baseline: float
    margin: float
    axis: str

    def search(
        self, groups: Sequence[UnitGroup], *, jointly: bool
    ) -> tuple[tuple[LayerWidth, ...], Curve | None]:
        """The width of each group alone, or of all together.

        >>> def probe(widths):
        ...     return 1 - 0.1 * (widths.get("a", 4) < 2) - 0.1 * (widths.get("b", 4) < 3)
        >>> groups = [UnitGroup(name, (name,), (), 4) for name in "ab"]
        >>> layers, _ = MarginSearch(probe, 1.0, 0.05, "accuracy").search(groups, jointly=True)
        >>> [layer.width for layer in layers]
        [2, 3]
        """
        layers = tuple(map(self._alone, groups))
        return self._together(layers, groups) if jointly and len(layers) > 1 else (layers, None)

    def _alone(self, group: UnitGroup) -> LayerWidth:
        """The width of one group, where every other one keeps all its units."""
        index, scores = self._smallest(lambda index: self.probe({group.name: index + 1}),
                                       group.units)
        curve = self._curve([index + 1 for index in scores], scores)
        return LayerWidth(group.name, group.units, index + 1, curve, index + 1, group.layers)

    def _together(
        self, layers: Sequence[LayerWidth], groups: Sequence[UnitGroup]
    ) -> tuple[tuple[LayerWidth, ...], Curve]:
        """Widths of all groups at once, on the path from what each keeps alone to all units.

        What each group loses alone adds up, so those widths together may cost more than the
        margin; and none can be below its own, which alone costs as much as is allowed. Between the
        two the path is the one on which every group has gone the same share of its own way, in
        logarithms: which layer gives much and which little is what the exact curves of each say,
        not a comparison of importances over layers. The widths kept are those of the smallest
        network on it that was tried, it and all larger ones being within the margin.
        """
        path = width_path({layer.layer: layer.alone for layer in layers}, groups)
        index, scores = self._smallest(lambda index: self.probe(path[index]), len(path))
        curve = self._curve([sum(path[index].values()) for index in scores], scores)
        return tuple(replace(layer, width=path[index][layer.layer]) for layer in layers), curve

    def _curve(self, widths: Sequence[int], scores: Mapping[int, float]) -> Curve:
        return Curve(tuple(widths), tuple(scores.values()), self.baseline,
                     self.baseline - self.margin, self.axis)

    def _smallest(self, score: Callable[[int], float], count: int) -> tuple[int, dict[int, float]]:
        """The smallest index from which on every one that was tried is within the margin.

        Up to ``GRID_SIZE``, geometrically spaced where there are more, are tried first; then those
        between the largest that fails and the next that was tried, by bisection. The last one is
        the baseline, and is not tried.

        Returns:
            The index, and the score of each that was tried, ascending.
        """
        grid = range(count) if count <= GRID_SIZE else [
            int(width) - 1 for width in np.unique(np.geomspace(1, count, GRID_SIZE).round())]
        scores = {index: score(index) for index in grid if index < count - 1}
        scores[count - 1] = self.baseline
        least = self.baseline - self.margin - _SLACK
        low = max((index for index, value in scores.items() if value < least), default=-1)
        high = min(index for index in scores if index > low)
        while high - low > 1:
            middle = (low + high) // 2
            scores[middle] = score(middle)
            if scores[middle] >= least:
                high = middle
            else:
                low = middle
        return high, dict(sorted(scores.items()))


def width_path(alone: Mapping[str, int], groups: Sequence[UnitGroup]) -> list[dict[str, int]]:
    """Widths of all groups from ``alone`` up to all units, each step at least one unit wider.

    A group that has gone the share t of its way keeps at least units · (alone ÷ units)ᵗ units.

    >>> groups = [UnitGroup("a", ("a",), (), 4), UnitGroup("b", ("b",), (), 2)]
    >>> width_path({"a": 1, "b": 2}, groups)
    [{'a': 1, 'b': 2}, {'a': 2, 'b': 2}, {'a': 3, 'b': 2}, {'a': 4, 'b': 2}]
    """
    steps = sorted(
        (math.log(group.units / width) / math.log(group.units / alone[group.name]), group.name,
         width)
        for group in groups for width in range(alone[group.name], group.units))
    path = [{group.name: group.units for group in groups}]
    last_share = None
    for share, name, width in steps:
        if last_share is not None and math.isclose(share, last_share, abs_tol=1e-12):
            path[-1] = {**path[-1], name: width}
        else:
            path.append({**path[-1], name: width})
        last_share = share
    return path[::-1]
