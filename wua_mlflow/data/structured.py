"""Tasks of several decisions an example: labels, tokens, pixels; and a model's outputs of any form.

What is judged are single decisions, each a binary or a multi-class one, which belong to their
example; or a score by token (log-likelihood) or by image (intersection over union).
Tests: ``tests/data/test_structured.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from wua_mlflow.data.batches import NO_TARGETS, Inputs, leaves

__all__ = [
    "IGNORED", "STRUCTURED", "Decisions", "Structure", "constant_overlap", "decision_losses",
    "decisions", "image_overlap", "infer_structured", "output_tensor", "structured_loss",
    "aligned_pixels", "aligned_tokens",
]


STRUCTURED = ("multilabel", "token_classification", "language_modeling", "segmentation")
"""Tasks of several decisions an example."""
IGNORED = -100
"""A target that does not count, as torch's and Hugging Face's losses have it."""
VOID = 255
"""And in segmentation, where there are no so many classes."""


def output_tensor(outputs: Any) -> Tensor:
    """The tensor of a model's outputs: itself, ``logits``, ``out``, or the first with samples.

    Args:
        outputs: a tensor, a tuple or list, a mapping, a dataclass, or an object with ``logits``.

    Raises:
        ValueError: there is none.

    >>> output_tensor({"loss": torch.tensor(1.0), "logits": torch.zeros(2, 3)}).shape
    torch.Size([2, 3])
    """
    if isinstance(outputs, Tensor):
        return outputs
    for name in ("logits", "out"):
        value = outputs.get(name) if isinstance(outputs, Mapping) else \
            getattr(outputs, name, None)
        if isinstance(value, Tensor):
            return value
    if is_dataclass(outputs) and not isinstance(outputs, type | Mapping):
        outputs = [getattr(outputs, field.name) for field in fields(outputs)]
    for tensor in leaves(outputs, Tensor):
        if tensor.dim():
            return tensor  # type: ignore[no-any-return]
    raise ValueError(f"model: expected a tensor as output, or one among several, but got "
                     f"{type(outputs).__name__}")


class Decisions(NamedTuple):
    """The single decisions of a batch.

    ``outputs`` are (decisions, classes), or (decisions, 1) of binary ones; ``targets`` (decisions,)
    or (decisions, 1) float; ``examples`` (decisions,) the place of each one's example in the batch.
    """

    outputs: Tensor
    targets: Tensor
    examples: Tensor


def decisions(outputs: Tensor, targets: Tensor, task: str, kind: str) -> Decisions:
    """The decisions that count, of tokens and labels.

    Args:
        outputs: of ``multilabel`` (samples, labels); of tokens (samples, positions, classes), or
            with the classes second.
        targets: (samples, labels), or (samples, positions), ``IGNORED`` where none counts.
        task: ``multilabel``, ``token_classification`` or ``language_modeling``.
        kind: ``next_token_logits``: the outputs of a position are of the next one's target.

    Raises:
        ValueError: shapes that do not fit.

    >>> outputs, targets = torch.zeros(1, 3, 5), torch.tensor([[2, 4, -100]])
    >>> found = decisions(outputs, targets, "token_classification", "logits")
    >>> found.outputs.shape, found.targets.tolist(), found.examples.tolist()
    (torch.Size([2, 5]), [2, 4], [0, 0])
    """
    samples = torch.arange(len(targets), device=targets.device)
    if task == "multilabel":
        if outputs.shape != targets.shape:
            raise _misfit(outputs, targets, task, tuple(targets.shape))
        return Decisions(outputs.reshape(-1, 1), targets.reshape(-1, 1).to(outputs.dtype),
                         samples.repeat_interleave(targets.shape[1]))
    outputs, targets = aligned_tokens(outputs, targets, task, kind)
    counts = targets != IGNORED
    examples = samples[:, None].expand(targets.shape)[counts]
    return Decisions(outputs[counts], targets[counts].long(), examples)


def aligned_tokens(
    outputs: Tensor, targets: Tensor, task: str, kind: str
) -> tuple[Tensor, Tensor]:
    """Outputs (samples, positions, classes) beside the targets (samples, positions) they are of.

    Raises:
        ValueError: shapes that do not fit.
    """
    if outputs.dim() == 3 and outputs.shape[:2] != targets.shape \
            and (outputs.shape[0], outputs.shape[2]) == targets.shape:
        outputs = outputs.transpose(1, 2)
    if outputs.dim() != 3 or outputs.shape[:2] != targets.shape:
        raise _misfit(outputs, targets, task, (*targets.shape, "classes"))
    if kind == "next_token_logits":
        return outputs[:, :-1], targets[:, 1:]
    return outputs, targets


def structured_loss(outputs: Tensor, targets: Tensor, task: str, kind: str) -> Tensor:
    """The mean loss over the decisions of a batch, a scalar; 0 where none counts.

    Binary cross-entropy over labels, cross-entropy over tokens or pixels that count.

    >>> float(structured_loss(torch.zeros(2, 3), torch.zeros(2, 3), "multilabel", "logits"))
    0.6931471824645996
    """
    if task == "segmentation":
        logits, classes = aligned_pixels(outputs, targets)
        total = functional.cross_entropy(logits, classes, ignore_index=IGNORED, reduction="sum")
        return total / (classes != IGNORED).sum().clamp_min(1)
    found = decisions(outputs, targets, task, kind)
    return decision_losses(found, task, kind).sum() / max(1, len(found.targets))


def decision_losses(found: Decisions, task: str, kind: str) -> Tensor:
    """The loss of each decision, shape (decisions,)."""
    if task != "multilabel":
        return functional.cross_entropy(found.outputs, found.targets, reduction="none")
    loss = functional.binary_cross_entropy if kind == "probabilities" else \
        functional.binary_cross_entropy_with_logits
    return loss(found.outputs, found.targets, reduction="none").reshape(-1)


class Overlap(NamedTuple):
    """Of images: score and loss, shape (images,), and pixels by class, shape (images, classes)."""

    iou: Tensor
    losses: Tensor
    pixels: Tensor


def image_overlap(outputs: Tensor, targets: Tensor) -> Overlap:
    """The mean intersection over union of each image, over the classes in target or prediction.

    Args:
        outputs: logits, shape (images, classes, height, width), or with one channel for two
            classes; of a smaller size they are interpolated to the targets', as in training.
        targets: class numbers, shape (images, height, width) or with one channel; ``IGNORED`` and
            (below 256 classes) ``VOID`` do not count.

    >>> target = torch.tensor([[[0, 1], [1, 1]]])
    >>> logits = functional.one_hot(torch.tensor([[[0, 0], [1, 1]]]), 2).permute(0, 3, 1, 2)
    >>> [round(value, 3) for value in image_overlap(logits.float(), target).iou.tolist()]
    [0.583]
    """
    logits, classes = aligned_pixels(outputs, targets)
    counts = classes != IGNORED
    number = logits.shape[1]
    guessed = functional.one_hot(logits.argmax(1), number).bool() & counts[..., None]
    true = functional.one_hot(classes.clamp_min(0), number).bool() & counts[..., None]
    both, either = ((guessed & true).sum((1, 2)), (guessed | true).sum((1, 2)))
    present = either > 0
    iou = torch.where(present, both / either.clamp_min(1), 0.0).sum(1) / \
        present.sum(1).clamp_min(1)
    losses = functional.cross_entropy(logits, classes, ignore_index=IGNORED, reduction="none")
    of_image = losses.flatten(1).sum(1) / counts.flatten(1).sum(1).clamp_min(1)
    return Overlap(iou, of_image, true.sum((1, 2)))


def constant_overlap(pixels: np.ndarray) -> np.ndarray:
    """What the class that most pixels have scores as the answer to every image's pixels.

    Args:
        pixels: by image and class, shape (images, classes).

    >>> constant_overlap(np.array([[3, 1], [4, 0]])).tolist()
    [0.375, 1.0]
    """
    commonest = int(pixels.sum(axis=0).argmax())
    present = pixels > 0
    present[:, commonest] = True
    of_commonest = pixels[:, commonest] / np.maximum(pixels.sum(axis=1), 1)
    return np.asarray(of_commonest / present.sum(axis=1))


def aligned_pixels(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (images, classes, height, width) and class numbers (images, height, width).

    The logits in the targets' size, ``IGNORED`` where a pixel does not count.
    """
    if targets.dim() == 4 and targets.shape[1] == 1:
        targets = targets[:, 0]
    if outputs.dim() != 4 or targets.dim() != 3 or len(outputs) != len(targets):
        raise _misfit(outputs, targets, "segmentation", (len(targets), "classes", "height",
                                                         "width"))
    if outputs.shape[1] == 1:
        outputs = torch.cat([torch.zeros_like(outputs), outputs], 1)
    if outputs.shape[2:] != targets.shape[1:]:
        outputs = functional.interpolate(outputs, size=targets.shape[1:], mode="bilinear",
                                         align_corners=False)
    classes = targets.long()
    if outputs.shape[1] <= VOID:
        classes = torch.where(classes == VOID, IGNORED, classes)
    return outputs, classes


def _misfit(
    outputs: Tensor, targets: Tensor, task: str, expected: tuple[object, ...]
) -> ValueError:
    shape = str(tuple(expected)).replace("'", "")
    return ValueError(f"model: expected outputs of shape {shape} for targets of shape "
                      f"{tuple(targets.shape)} in this {task} task, but got "
                      f"{tuple(outputs.shape)}")


class Structure(NamedTuple):
    """The task of structured targets; ``next_token``: outputs are of the next position's target;
    ``columns``: labels or amounts an example."""

    task: Any
    columns: int = 1
    next_token: bool = False


def infer_structured(inputs: Inputs, targets: Any, task: str | None = None) -> Structure | None:
    """The task of a batch whose examples have several targets, as they look; None of one each.

    Amounts of several columns are a regression; zeros and ones of several columns ``multilabel``;
    whole numbers by position ``language_modeling`` where they are the inputs' own token ids, or
    the next ones, else ``token_classification``; classes by pixel ``segmentation``.

    Args:
        inputs: of the batch.
        targets: of the batch; a tensor, or anything else that a loss of the user's own takes.
        task: where it is given.

    Raises:
        ValueError: targets that are no tensor, or of another form than the task's.

    >>> ids = torch.tensor([[5, 6, 7]])
    >>> infer_structured(ids, ids)
    Structure(task='language_modeling', columns=1, next_token=True)
    """
    if task == "custom":
        return Structure("custom")
    if not isinstance(targets, Tensor):
        got = "none" if targets is NO_TARGETS else type(targets).__name__
        raise ValueError(f"data: expected targets as tensors in the batches, (inputs, targets) or "
                         f"dicts with labels, but got {got}; with a loss and a score of your own: "
                         f"--task custom --loss package.module:function --score "
                         f"package.module:function")
    if targets.dim() < 2 or targets.shape[1:] == (1,):
        return None
    found = _as_it_looks(inputs, targets)
    if task is None and found.task == "multilabel" and bool((targets.sum(1) == 1).all()):
        raise ValueError(f"data: expected class numbers, but each example has exactly one of "
                         f"{targets.shape[1]} labels; give targets.argmax(1), or --task multilabel")
    if task is None or task == found.task:
        return found
    if task not in STRUCTURED and not (task == "regression" and targets.dim() == 2):
        raise ValueError(f"task: expected one of targets of shape {tuple(targets.shape[1:])} an "
                         f"example, such as {found.task}, but got {task!r}")
    columns = targets.shape[1] if task in ("multilabel", "regression") else 1
    return Structure(task, columns, task == "language_modeling" and isinstance(inputs, dict))


def _as_it_looks(inputs: Inputs, targets: Tensor) -> Structure:
    whole = not targets.is_floating_point()
    tokens = [tensor for tensor in leaves(inputs, Tensor)
              if tensor.shape[:2] == targets.shape and not tensor.is_floating_point()]
    two_values = bool(((targets == 0) | (targets == 1)).all())
    if targets.dim() > 2 and not whole and not two_values:
        raise ValueError(f"data: expected classes by pixel as targets of shape "
                         f"{tuple(targets.shape[1:])} an example, but got amounts; with a loss and "
                         f"a score of your own: --task custom --loss package.module:function "
                         f"--score package.module:function")
    if targets.dim() > 2:
        return Structure("segmentation")
    if not whole or (two_values and not tokens):
        return Structure("multilabel" if two_values else "regression", targets.shape[1])
    for ids in tokens[:1]:
        counts = targets != IGNORED
        if bool(counts.any()) and bool((ids == targets)[counts].all()):
            return Structure("language_modeling", next_token=True)
        following = counts[:, :-1]
        if bool(following.any()) and bool((ids[:, 1:] == targets[:, :-1])[following].all()):
            return Structure("language_modeling")
    return Structure("token_classification")
