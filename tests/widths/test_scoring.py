"""Scores and losses of data, as of a variant's evaluation, and all that is wrong with data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.networks import labels, mlp, rows
from wua_mlflow import device
from wua_mlflow.data.tasks import loss_for
from wua_mlflow.training.evaluation import evaluate
from wua_mlflow.widths.margin_search import scoring, tensors_of

CASES = {
    "multiclass": (mlp(4, 6, 3), labels(50, 3)),
    "binary": (mlp(4, 6, 1), labels(50, 2)),
    "regression": (mlp(4, 6, 1), rows(50, 1, seed=7)),
}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("task", CASES)
def test_the_same_as_of_a_variant(task, named):
    model, targets = CASES[task]
    inputs = rows(50, 4)
    kind = "values" if task == "regression" else "logits"
    judge = scoring(model, (inputs, targets), task=task if named else None)
    reference = evaluate(model, inputs, targets, task=task, kind=kind)
    assert judge.mean_score(model) == pytest.approx(reference.score, abs=1e-6)
    assert judge.mean_loss(judge.outputs(model)) == pytest.approx(reference.loss, rel=1e-5)
    assert judge.axis == ("R²" if task == "regression" else "accuracy")
    given = scoring(model, (inputs, targets), task=task, loss=loss_for(task, kind))
    assert given.mean_loss(given.outputs(model)) == pytest.approx(reference.loss, rel=1e-5)


def test_a_probability_is_right_above_a_half():
    model = nn.Sequential(nn.Linear(4, 1), nn.Sigmoid())
    inputs, targets = rows(50, 4), labels(50, 2)
    reference = evaluate(model, inputs, targets, task="binary", kind="probabilities")
    judge = scoring(model, (inputs, targets))
    assert judge.mean_score(model) == pytest.approx(reference.score)
    assert judge.mean_loss(judge.outputs(model)) == pytest.approx(reference.loss, rel=1e-5)


def test_the_loss_of_some_rows():
    model, targets = CASES["multiclass"]
    judge = scoring(model, (rows(50, 4), targets))
    some = torch.tensor([3, 11, 7])
    by_hand = functional.cross_entropy(model(rows(50, 4)[some]), targets[some]).item()
    assert judge.mean_loss(judge.outputs(model), some) == pytest.approx(by_hand, rel=1e-5)


def test_chunks_give_what_the_whole_gives(monkeypatch):
    model, targets = CASES["multiclass"]
    judge = scoring(model, (rows(50, 4), targets))
    whole = judge.outputs(model)
    monkeypatch.setattr(device, "MOST_ROWS", 7)
    assert torch.allclose(judge.outputs(model), whole, atol=1e-6)


def test_scores_and_losses_of_ones_own():
    model = nn.Linear(4, 5)
    inputs = rows(10, 4)
    judge = scoring(model, (inputs, inputs), loss=lambda o, t: (o[:, :4] - t).abs().mean(),
                    score=lambda o, t: -(o[:, :4] - t).abs().sum(1))
    by_hand = (model(inputs)[:, :4] - inputs).abs()
    assert judge.mean_score(model) == pytest.approx(-by_hand.sum(1).mean().item(), rel=1e-5)
    assert judge.mean_loss(judge.outputs(model)) == pytest.approx(by_hand.mean().item(), rel=1e-5)
    assert judge.axis == "mean score"


def test_arrays_and_other_dtypes_come_to_the_models():
    inputs, targets = tensors_of((np.ones((3, 2)), np.array([0, 1, 1])), nn.Linear(2, 2))
    assert inputs.dtype == torch.float32 and targets.tolist() == [0, 1, 1]


@pytest.mark.parametrize(("data", "message"), [
    (torch.rand(4, 4), r"data: expected a pair \(inputs, targets\), but got Tensor"),
    ((torch.rand(4, 4),), r"data: expected a pair \(inputs, targets\), but got 1 parts"),
    ((torch.rand(4, 4), torch.zeros(3)), "data: expected as many targets as inputs, but got 4 "
                                         "inputs and 3 targets"),
    ((torch.rand(1, 4), torch.zeros(1)), "data: expected at least two examples, but got 1"),
    ((torch.rand(0, 4), torch.zeros(0)), "data: expected at least two examples, but got 0"),
    ((torch.full((4, 4), torch.nan), torch.zeros(4)), "data: expected finite inputs, but got NaN"),
    ((torch.rand(4, 4), torch.full((4,), torch.inf)), "data: expected finite targets, but got NaN"),
    (("ab", torch.zeros(2)), r"data: expected inputs as a dense tensor of shape \(examples, ...\), "
                             "but got str"),
    ((torch.rand(4, 4), np.array(list("abcd"))), "data: expected targets as a dense tensor"),
    ((torch.tensor(1.0), torch.tensor(1.0)), "data: expected inputs as a dense tensor"),
])
def test_data_that_are_no_pair_of_tensors(data, message):
    with pytest.raises(ValueError, match=message) as raised:
        scoring(nn.Linear(4, 3), data)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("outputs", "targets", "task", "message"), [
    (3, torch.tensor([0, 1, 2, 3]), None, "data: expected class numbers of shape"),
    (3, torch.rand(4), None, "data: expected one output and one target an example in a regression "
                             "task, but got outputs of shape"),
    (1, torch.rand(4, 2), "regression", "data: expected one output and one target an example"),
    (1, torch.full((4,), 0.3), None, "data: expected at least two different targets, but got one"),
    (3, torch.zeros(4), "multi", "task: expected one of binary, multiclass, regression, but got "
                                 "'multi'"),
])
def test_targets_that_fit_no_task(outputs, targets, task, message):
    with pytest.raises(ValueError, match=message) as raised:
        scoring(nn.Linear(4, outputs), (torch.rand(4, 4), targets), task=task)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("score", "message"), [
    (lambda o, t: o.mean(), r"score: expected one number an example, shape \(4,\), but got \(\)"),
    (lambda o, t: 1.0, r"score: expected one number an example, shape \(4,\), but got float"),
    (lambda o, t: o[:, 0] * torch.nan, "score: expected finite numbers, but their mean is nan"),
])
def test_scores_that_are_none(score, message):
    model = nn.Linear(4, 3)
    judge = scoring(model, (torch.rand(4, 4), labels(4, 3)), score=score)
    with pytest.raises(ValueError, match=message):
        judge.mean_score(model)


@pytest.mark.parametrize(("loss", "message"), [
    (lambda o, t: o, r"loss: expected a finite scalar tensor, but got shape \(4, 3\)"),
    (lambda o, t: o.sum() * torch.nan, "loss: expected a finite scalar tensor, but got nan"),
    (lambda o, t: 3, "loss: expected a finite scalar tensor, but got 3"),
])
def test_losses_that_are_none(loss, message):
    model = nn.Linear(4, 3)
    judge = scoring(model, (torch.rand(4, 4), labels(4, 3)), loss=loss)
    with pytest.raises(ValueError, match=message):
        judge.mean_loss(judge.outputs(model))
