"""The task beside a model's outputs, its classes numbered by them, and predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wua_mlflow.data.tasks import TaskSpec, infer_task, predictions_of


@pytest.mark.parametrize(("targets", "outputs", "task"), [
    ([0, 2, 1], 3, "multiclass"), ([0, 1, 1], 2, "multiclass"), ([0, 0, 0], 2, "multiclass"),
    ([0.0, 1.0, 1.0], 2, "binary"), ([[0], [1], [1]], 1, "binary"), ([0, 1, 1], 1, "binary"),
    ([True, False, True], 1, "binary"), ([0, 2, 1], 1, "regression"),
    ([[0], [2], [1]], 3, "regression"), ([0.5, 1.0, 0.0], 1, "regression"),
])
def test_targets_beside_outputs_are_taken_as_a_loss_takes_them(
    targets: list[object], outputs: int, task: str
) -> None:
    spec = infer_task(np.array(targets), outputs=outputs)
    assert spec.task == task
    assert spec.values == {"multiclass": tuple(range(outputs)), "binary": (0, 1),
                           "regression": ()}[task]


def test_a_task_that_is_given_stays() -> None:
    for task in ("binary", "multiclass", "regression"):
        assert infer_task(np.array([0.5, 2.0]), task=task, outputs=4).task == task


@pytest.mark.parametrize(("values", "count", "expected"), [
    ((0, 2), 3, (0, 1, 2)), ((0.0, 1.0), 2, (0, 1)), (("a", "b"), 2, ("a", "b")),
    ((1, 2, 3), 3, (1, 2, 3)), ((-1, 1), 2, (-1, 1)), ((0.5, 1.0), 2, (0.5, 1.0)),
])
def test_classes_in_the_order_of_the_outputs(
    values: tuple[object, ...], count: int, expected: tuple[object, ...]
) -> None:
    assert TaskSpec("multiclass", values).for_outputs(count) == TaskSpec("multiclass", expected)


@pytest.mark.parametrize("values", [("a", "b"), (1, 3), (-1, 0)])
def test_classes_that_cannot_be_the_outputs(values: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match="^data: expected a class for each of the model's 3 "
                                         "outputs, but the test data have 2$"):
        TaskSpec("binary", values).for_outputs(3)


def test_predictions() -> None:
    logits = torch.tensor([[0.4], [-0.1], [0.6]])
    assert predictions_of(logits, "binary", "logits").tolist() == [1, 0, 1]
    assert predictions_of(logits, "binary", "probabilities").tolist() == [0, 0, 1]
    amounts = predictions_of(logits, "regression", "values")
    assert amounts.dtype == np.float64
    assert amounts == pytest.approx([0.4, -0.1, 0.6])
    scores = torch.tensor([[0.1, 0.7, 0.2], [3.0, -1.0, 2.0]])
    assert predictions_of(scores, "multiclass", "logits").tolist() == [1, 0]
