"""Labels, tokens, pixels: their decisions, losses and scores against scikit-learn and by hand."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import Tensor
from torch.nn import functional

from wua_mlflow.data.batches import NO_TARGETS
from wua_mlflow.data.structured import (
    IGNORED,
    Structure,
    constant_overlap,
    decision_losses,
    decisions,
    image_overlap,
    infer_structured,
    output_tensor,
    structured_loss,
)


def made(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=made(seed))


def whole(high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(high, shape, generator=made(seed))


@dataclass
class Named:
    loss: Tensor
    logits: Tensor


@dataclass
class Unnamed:
    hidden: None
    scores: Tensor


X = rand(4, 3)


@pytest.mark.parametrize("outputs", [
    X, (X, rand(2, 2)), [X], {"logits": X, "hidden": rand(9)}, {"out": X, "aux": rand(4, 3)},
    Named(torch.tensor(1.0), X), Unnamed(None, X), (torch.tensor(0.3), X),
    SimpleNamespace(logits=X), {"distance": X}, ({"deep": [X]},)], ids=str.__class__)
def test_the_tensor_among_outputs_of_any_form(outputs):
    assert output_tensor(outputs) is X


@pytest.mark.parametrize("outputs", ["text", None, {}, (torch.tensor(1.0),), object()])
def test_outputs_without_a_tensor(outputs):
    with pytest.raises(ValueError, match="^model: expected a tensor as output.*but got \\w+$"):
        output_tensor(outputs)


@pytest.mark.parametrize("classes_second", [False, True])
@pytest.mark.parametrize("kind", ["logits", "next_token_logits"])
def test_tokens_are_those_that_count(kind, classes_second):
    logits, targets = rand(5, 7, 4), whole(4, 5, 7, seed=1)
    targets[0, 3:], targets[4] = IGNORED, IGNORED
    given = logits.transpose(1, 2) if classes_second else logits
    found = decisions(given, targets, "token_classification", kind)
    by_hand = [(logits[i, t - (kind != "logits")], int(targets[i, t]), i)
               for i in range(5) for t in range(kind != "logits", 7) if targets[i, t] != IGNORED]
    assert torch.equal(found.outputs, torch.stack([row for row, *_ in by_hand]))
    assert found.targets.tolist() == [target for _, target, _ in by_hand]
    assert found.examples.tolist() == [example for *_, example in by_hand]
    losses = decision_losses(found, "token_classification", kind)
    assert losses.mean().item() == pytest.approx(metrics.log_loss(
        found.targets, found.outputs.softmax(1).numpy(), labels=range(4)), rel=1e-5)
    assert structured_loss(given, targets, "token_classification", kind).item() == \
        pytest.approx(losses.mean().item())


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_labels_are_binary_decisions(kind):
    logits, targets = rand(6, 3), whole(2, 6, 3, seed=2)
    outputs = logits.sigmoid() if kind == "probabilities" else logits
    found = decisions(outputs, targets, "multilabel", kind)
    assert found.examples.tolist() == [i for i in range(6) for _ in range(3)]
    expected = functional.binary_cross_entropy_with_logits(logits, targets.float())
    assert structured_loss(outputs, targets, "multilabel", kind).item() == \
        pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("outputs", "targets", "task"), [
    (rand(6, 2), whole(2, 6, 3), "multilabel"), (rand(6, 3), whole(4, 6, 3), "language_modeling"),
    (rand(6, 4, 4), whole(4, 6, 3), "token_classification"),
    (rand(6, 4, 4), whole(4, 6, 3, 3), "segmentation")])
def test_outputs_that_do_not_fit(outputs, targets, task):
    with pytest.raises(ValueError, match=f"^model: expected outputs of shape .* {task} task"):
        structured_loss(outputs, targets, task, "logits")


@pytest.mark.parametrize("channel", [False, True])
def test_overlap_is_scikit_learns(channel):
    logits, targets = rand(3, 4, 6, 5), whole(3, 3, 6, 5, seed=3)
    targets[0, :2], targets[1, 0] = IGNORED, 255
    found = image_overlap(logits, targets[:, None] if channel else targets)
    for i in range(3):
        counts = (targets[i] != IGNORED) & (targets[i] != 255)
        true, guessed = targets[i][counts].numpy(), logits[i].argmax(0)[counts].numpy()
        present = np.unique(np.concatenate([true, guessed]))
        assert found.iou[i].item() == pytest.approx(metrics.jaccard_score(
            true, guessed, labels=present, average="macro"))
        assert found.pixels[i].tolist() == np.bincount(true, minlength=4).tolist()
        probabilities = logits[i].softmax(0)[:, counts].T.double()
        probabilities /= probabilities.sum(1, keepdim=True)
        assert found.losses[i].item() == pytest.approx(metrics.log_loss(
            true, probabilities.numpy(), labels=range(4)), rel=1e-4)
    of_constant = constant_overlap(found.pixels.numpy())
    commonest = torch.zeros(3, 4, 6, 5)
    commonest[:, found.pixels.sum(0).argmax()] = 1
    assert of_constant == pytest.approx(image_overlap(commonest, targets).iou.numpy())


@pytest.mark.parametrize(("outputs", "targets", "task"), [
    (rand(2, 3, 4), torch.full((2, 3), IGNORED), "token_classification"),
    (rand(2, 3, 4), torch.full((2, 3), IGNORED), "language_modeling"),
    (rand(2, 3, 4, 4), torch.full((2, 4, 4), 255), "segmentation")])
def test_a_batch_in_which_nothing_counts_has_no_loss_and_no_gradient(outputs, targets, task):
    outputs.requires_grad_()
    loss = structured_loss(outputs, targets, task, "logits")
    loss.backward()
    assert loss.item() == 0 and not outputs.grad.any()


def test_one_channel_and_smaller_outputs():
    targets = torch.zeros(2, 8, 8, dtype=torch.long)
    targets[:, :, 4:] = 1
    one = torch.where(targets[:, None, ::4, ::4] == 1, 5.0, -5.0)
    found = image_overlap(one, targets)
    assert found.iou.tolist() == [1.0, 1.0], "interpolated to the targets' size"
    assert structured_loss(one, targets, "segmentation", "logits").item() == \
        pytest.approx(found.losses.mean().item(), rel=1e-5)


IDS = whole(50, 4, 9)
PADDED = torch.where(torch.arange(9) < 6, IDS, IGNORED)
NEXT = torch.cat([IDS[:, 1:], torch.full((4, 1), IGNORED)], 1)


@pytest.mark.parametrize(("inputs", "targets", "found"), [
    (rand(4, 3), whole(3, 4), None), (rand(4, 3), rand(4), None), (rand(4, 3), rand(4, 1), None),
    (rand(4, 3), whole(2, 4, 5), Structure("multilabel", 5)),
    (rand(4, 3), whole(2, 4, 5).float(), Structure("multilabel", 5)),
    (rand(4, 3), rand(4, 2), Structure("regression", 2)),
    (IDS, IDS, Structure("language_modeling", next_token=True)),
    ({"input_ids": IDS, "attention_mask": IDS > 0}, PADDED,
     Structure("language_modeling", next_token=True)),
    (IDS, NEXT, Structure("language_modeling")),
    (IDS, whole(2, 4, 9, seed=4), Structure("token_classification")),
    (rand(4, 9, 2), whole(5, 4, 9), Structure("token_classification")),
    (rand(4, 3, 8, 8), whole(5, 4, 8, 8), Structure("segmentation")),
    (rand(4, 3, 8, 8), whole(2, 4, 1, 8, 8).float(), Structure("segmentation"))])
def test_tasks_as_targets_look(inputs, targets, found):
    assert infer_structured(inputs, targets) == found


@pytest.mark.parametrize(("targets", "task", "message"), [
    (NO_TARGETS, None, "^data: expected targets as tensors in the batches.* got none; .*custom"),
    ({"boxes": X}, None, "but got dict; "), (torch.eye(4), None, "exactly one of 4 labels"),
    (rand(4, 3, 3), None, "expected classes by pixel .* but got amounts; .*--task custom"),
    (whole(5, 4, 9), "multiclass", "^task: expected one of targets of shape \\(9,\\) an example")])
def test_targets_of_no_task(targets, task, message):
    with pytest.raises(ValueError, match=message):
        infer_structured(X, targets, task)


def test_a_task_that_is_given():
    assert infer_structured(X, {"boxes": X}, "custom") == Structure("custom")
    assert infer_structured(X, torch.eye(4), "multilabel") == Structure("multilabel", 4)
    assert infer_structured({"ids": IDS}, whole(50, 4, 9, seed=5), "language_modeling") == \
        Structure("language_modeling", next_token=True), "as Hugging Face's models take labels"
