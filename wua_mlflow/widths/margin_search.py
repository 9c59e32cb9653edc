"""What is kept when units go: the mean score and the mean loss on the data that were given.

May import: torch, numpy, evaluation, hooks. Tests: ``tests/widths/test_scoring.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from wua_mlflow.training.evaluation import outputs_of
from wua_mlflow.widths.results import Curve, LayerWidth

__all__ = [
    "GroupSize", "Loss", "MOST_ON_THE_GRID", "MarginSearch", "Score", "Scoring", "narrowest",
    "scoring", "tensors_of", "width_path",
]


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
        inputs, targets, loss=_in_columns(loss or loss_for(task, kind), task),
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


def _in_columns(loss: Callable[..., Tensor], task: Task) -> Loss:
    """Outputs of a binary task or a regression are given the targets' shape."""
    if task == "multiclass":
        return loss
    return lambda outputs, targets: loss(outputs.reshape(len(outputs), -1), targets)


def _score_for(task: Task, kind: OutputKind) -> Score:
    def score(outputs: Tensor, targets: Tensor) -> Tensor:
        truth = _array(targets.reshape(-1) > 0.5 if task == "binary" else targets.reshape(-1))
        return torch.from_numpy(example_scores(predictions_of(outputs, task, kind), truth, task))

    return score


MOST_ON_THE_GRID = 16
"""At most so many widths are tried before bisection."""
_SLACK = 1e-9
"""In floating point 21/40 − 0.05 is more than 19/40."""

Probe = Callable[[Mapping[str, int]], float]
"""The mean score where groups keep so many units; those that are not named keep all."""


@dataclass(frozen=True)
class GroupSize:
    """A group's name, its units, and the layers that they belong to."""

    name: str
    units: int
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class MarginSearch:
    """How far down widths go: by at most ``margin`` below ``baseline``, the probe's whole score."""

    probe: Probe
    baseline: float
    margin: float
    axis: str

    def alone(self, span: GroupSize) -> LayerWidth:
        """The width of one group, where every other one keeps all its units."""
        index, scores = _smallest(
            lambda number: self.probe({span.name: number + 1}), span.units,
            self.baseline, self._threshold)
        curve = self._curve([number + 1 for number in scores], scores)
        return LayerWidth(span.name, span.units, index + 1, curve, index + 1, span.layers)

    def together(self, found: Sequence[LayerWidth], spans: Sequence[GroupSize]) -> tuple[
            tuple[LayerWidth, ...], Curve]:
        """Widths of all groups at once, on the way from all units to what each keeps alone.

        What each group loses alone adds up, so those widths together may cost more than the
        margin; and none can be below its own, which alone costs as much as is allowed. Between the
        two the way is the one on which every group has gone the same share of its own way, in
        logarithms: which layer gives much and which little is what the exact curves of each say,
        not a comparison of importances over layers. The widths kept are those of the smallest
        network on it that was tried, it and all larger ones being within the margin.
        """
        ways = width_path({one.layer: one.alone for one in found}, spans)
        index, scores = _smallest(lambda number: self.probe(ways[number]), len(ways),
                                  self.baseline, self._threshold)
        curve = self._curve([sum(ways[number].values()) for number in scores], scores)
        layers = tuple(LayerWidth(one.layer, one.units, ways[index][one.layer], one.curve,
                                  one.alone, one.layers) for one in found)
        return layers, curve

    @property
    def _threshold(self) -> float:
        return self.baseline - self.margin

    def _curve(self, widths: Sequence[int], scores: Mapping[int, float]) -> Curve:
        return Curve(tuple(widths), tuple(scores.values()), self.baseline, self._threshold,
                     self.axis)


def narrowest(
    descent: MarginSearch, spans: Sequence[GroupSize], *, jointly: bool
) -> tuple[tuple[LayerWidth, ...], Curve | None]:
    """The width of each group alone, or of all together.

    >>> probe = lambda widths: 1.0 - 0.1 * (widths.get("a", 4) < 2) - 0.1 * (widths.get("b", 4) < 3)
    >>> descent = MarginSearch(probe, 1.0, 0.05, "accuracy")
    >>> layers, _ = narrowest(descent, [GroupSize("a", 4), GroupSize("b", 4)], jointly=True)
    >>> [one.width for one in layers]
    [2, 3]
    """
    found = tuple(descent.alone(span) for span in spans)
    if not jointly or len(found) < 2:
        return found, None
    return descent.together(found, spans)


def width_path(alone: Mapping[str, int], spans: Sequence[GroupSize]) -> list[dict[str, int]]:
    """Widths of all groups from ``alone`` up to all units, each step at least one unit wider.

    A group that has gone the share t of its way keeps at least units · (alone ÷ units)ᵗ units.

    >>> width_path({"a": 1, "b": 2}, [GroupSize("a", 4), GroupSize("b", 2)])
    [{'a': 1, 'b': 2}, {'a': 2, 'b': 2}, {'a': 3, 'b': 2}, {'a': 4, 'b': 2}]
    """
    marks = sorted(
        (math.log(span.units / width) / math.log(span.units / alone[span.name]), span.name, width)
        for span in spans for width in range(alone[span.name], span.units))
    ways = [{span.name: span.units for span in spans}]
    last = None
    for share, name, width in marks:
        if last is not None and math.isclose(share, last, abs_tol=1e-12):
            ways[-1] = {**ways[-1], name: width}
        else:
            ways.append({**ways[-1], name: width})
        last = share
    return ways[::-1]


def _smallest(
    score: Callable[[int], float], count: int, baseline: float, threshold: float
) -> tuple[int, dict[int, float]]:
    """The smallest index from which on every one that was tried reaches the threshold.

    Up to ``MOST_ON_THE_GRID``, geometrically spaced where there are more, are tried first; then
    those between the largest that fails and the next that was tried, by bisection. The last one is
    the baseline, and is not tried.

    Returns:
        The index, and the score of each that was tried, ascending.
    """
    grid = range(count) if count <= MOST_ON_THE_GRID else [
        int(number) - 1 for number in np.unique(np.geomspace(1, count, MOST_ON_THE_GRID).round())]
    scores = {number: score(number) for number in grid if number < count - 1}
    scores[count - 1] = baseline
    reached = {number: value >= threshold - _SLACK for number, value in scores.items()}
    low = max((number for number, fine in reached.items() if not fine), default=-1)
    high = min(number for number in scores if number > low)
    while high - low > 1:
        middle = (low + high) // 2
        scores[middle] = score(middle)
        if scores[middle] >= threshold - _SLACK:
            high = middle
        else:
            low = middle
    return high, dict(sorted(scores.items()))
