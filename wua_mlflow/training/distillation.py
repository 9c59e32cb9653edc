"""Distillation: a loss that aims at the targets and at the outputs of a larger, trained network.

Tests: ``tests/training/test_distillation.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from wua_mlflow.data.structured import STRUCTURED, decisions, output_tensor
from wua_mlflow.data.tasks import OutputKind, Task, judged_as

__all__ = ["distillation_loss"]


SHARE, TEMPERATURE = 0.5, 2.0
Aims = tuple[Tensor, Tensor]
"""(targets, outputs of the teacher), by sample."""


def distillation_loss(
    loss: Callable[[Any, Any], Tensor], task: Task, kind: OutputKind, *,
    share: float = SHARE, temperature: float = TEMPERATURE,
) -> Callable[[Any, Aims], Tensor]:
    """(1 − share) · loss + share · the distance to the teacher (Hinton et al. 2015, section 2).

    The distance of classifiers is T² · KL(teacher ‖ student) of the probabilities at temperature T
    (T = 1 where the outputs are probabilities), of each decision where an example has several; of
    regressions and of tasks of the user's own the mean squared difference.

    Args:
        loss: of (outputs, targets), the mean.
        task: the task.
        kind: what the outputs of both networks are.
        share: of the distance, in [0, 1].
        temperature: above 0.

    Returns:
        A loss of (outputs, (targets, teacher's outputs)).

    >>> aim = distillation_loss(functional.cross_entropy, "multiclass", "logits", share=1.0)
    >>> outputs = torch.tensor([[2.0, -1.0]])
    >>> float(aim(outputs, (torch.tensor([1]), outputs)))
    0.0
    """
    if kind == "probabilities":
        temperature = 1.0

    def total(outputs: Any, aims: Aims) -> Tensor:
        targets, teacher = aims
        tensor = output_tensor(outputs)
        if task in ("regression", "custom"):
            distance = functional.mse_loss(tensor, teacher)
        else:
            log_p, log_q = (_log_probabilities(
                _by_decision(each, targets, task, kind), judged_as(task), kind, temperature)
                for each in (tensor, teacher))
            distance = temperature**2 * functional.kl_div(log_p, log_q, reduction="batchmean",
                                                          log_target=True)
        return (1 - share) * loss(outputs, targets) + share * distance

    return total


def _by_decision(outputs: Tensor, targets: Tensor, task: Task, kind: OutputKind) -> Tensor:
    """Shape (decisions, classes), or (decisions, 1) of binary ones."""
    if task == "segmentation":
        if outputs.shape[1] == 1:
            outputs = torch.cat([torch.zeros_like(outputs), outputs], 1)
        return outputs.movedim(1, -1).flatten(0, -2)
    return decisions(outputs, targets, task, kind).outputs if task in STRUCTURED else outputs


def _log_probabilities(outputs: Tensor, task: Task, kind: OutputKind, temperature: float) -> Tensor:
    """Shape (samples, classes); a binary classifier's single output becomes two."""
    if kind == "probabilities":
        both = torch.cat([1 - outputs, outputs], 1) if task == "binary" else outputs
        return both.clamp_min(torch.finfo(outputs.dtype).tiny).log()
    if task == "binary":
        outputs = torch.cat([torch.zeros_like(outputs), outputs], 1)
    return functional.log_softmax(outputs / temperature, dim=1)
