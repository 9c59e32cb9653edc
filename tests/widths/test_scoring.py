"""Scores and losses of data, as of a variant's evaluation, and all that is wrong with data."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.networks import labels, mlp, rows
from wua_mlflow import device
from wua_mlflow.data.structured import output_tensor
from wua_mlflow.data.tasks import loss_for
from wua_mlflow.training.evaluation import evaluate
from wua_mlflow.widths.scoring import batches_of, scoring

CASES = {
    "multiclass": (mlp(4, 6, 3), labels(50, 3), "logits"),
    "binary": (mlp(4, 6, 1), labels(50, 2), "logits"),
    "binary, by a half": (nn.Sequential(nn.Linear(4, 1), nn.Sigmoid()), labels(50, 2),
                          "probabilities"),
    "regression": (mlp(4, 6, 1), rows(50, 1, seed=7), "values")}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("task", CASES)
def test_the_same_as_of_a_variant(task, named):
    model, targets, kind = CASES[task]
    inputs, name = rows(50, 4), task.partition(",")[0]
    reference = evaluate(model, inputs, targets, task=name, kind=kind)
    for options in ({}, {"loss": loss_for(name, kind)}):
        judge = scoring(model, (inputs, targets), task=name if named else None, **options)
        assert judge.mean_score(model) == pytest.approx(reference.score, abs=1e-6)
        assert judge.mean_loss(judge.outputs(model)) == pytest.approx(reference.loss, rel=1e-5)
        assert judge.axis == ("R²" if task == "regression" else "accuracy")


def test_some_rows_and_chunks(monkeypatch):
    model, targets, _ = CASES["multiclass"]
    judge, some = scoring(model, (rows(50, 4), targets)), torch.tensor([3, 11, 7])
    outputs = judge.outputs(model)
    by_hand = functional.cross_entropy(model(rows(50, 4)[some]), targets[some]).item()
    assert judge.mean_loss(outputs, some) == pytest.approx(by_hand, rel=1e-5)
    monkeypatch.setattr(device, "MOST_ROWS", 7)
    in_chunks = judge.outputs(model)
    assert len(in_chunks) > len(outputs) == 1
    whole = torch.cat([batch.outputs for batch in in_chunks])
    assert torch.allclose(whole, outputs[0].outputs, atol=1e-6)
    assert judge.mean_loss(in_chunks, some) == pytest.approx(by_hand, rel=1e-5)


def test_scores_and_losses_of_ones_own():
    model, inputs = nn.Linear(4, 5), rows(10, 4)
    judge = scoring(model, (inputs, inputs), loss=lambda o, t: (o[:, :4] - t).abs().mean(),
                    score=lambda o, t: -(o[:, :4] - t).abs().sum(1))
    by_hand = (model(inputs)[:, :4] - inputs).abs()
    assert judge.mean_score(model) == pytest.approx(-by_hand.sum(1).mean().item(), rel=1e-5)
    assert judge.mean_loss(judge.outputs(model)) == pytest.approx(by_hand.mean().item(), rel=1e-5)
    assert judge.axis == "mean score"


@dataclass
class Named:
    loss: torch.Tensor
    logits: torch.Tensor


@pytest.mark.parametrize("form", [
    lambda z: z, lambda z: {"logits": z, "loss": z.sum()}, lambda z: Named(z.sum(), z)])
@pytest.mark.parametrize("own", [False, True])
def test_some_rows_of_outputs_of_any_form(form, own):
    class Net(nn.Linear):
        def forward(self, x):
            return form(super().forward(x))

    torch.manual_seed(0)
    model, targets, rows_ = Net(4, 3), labels(50, 3), torch.tensor([2, 40, 7])
    judge = scoring(model, (rows(50, 4), targets), task="multiclass", loss=loss_for(
        "multiclass", "logits") if own else None)
    logits = output_tensor(model(rows(50, 4)))
    assert judge.mean_loss(judge.outputs(model), rows_) == pytest.approx(
        functional.cross_entropy(logits[rows_], targets[rows_]).item(), rel=1e-5)


def test_a_score_by_its_name():
    model, targets, _ = CASES["multiclass"]
    judge = scoring(model, (rows(50, 4), targets), score="f1_macro")
    reference = evaluate(model, rows(50, 4), targets, task="multiclass", kind="logits",
                         score="f1_macro")
    assert judge.axis == "f1_macro"
    assert judge.mean_score(model) == pytest.approx(reference.score)


def test_arrays_and_other_dtypes_come_to_the_models():
    batch, = batches_of((np.ones((3, 2)), np.array([0, 1, 1])), nn.Linear(2, 2))
    assert batch.first.dtype == torch.float32 and batch.targets.tolist() == [0, 1, 1]


FOUR = torch.rand(4, 4)


@pytest.mark.parametrize(("data", "message"), [
    (FOUR, r"data: expected a pair \(inputs, targets\), .* but got Tensor"),
    ((FOUR,), r"data: expected a pair \(inputs, targets\), .* but got 1 parts"),
    ((FOUR, torch.zeros(3)), "data: expected as many targets as inputs, but got 4 inputs and 3 "
                             "targets"),
    ((FOUR[:1], torch.zeros(1)), "data: expected at least two examples, but got 1"),
    ((FOUR * torch.nan, torch.zeros(4)), "data: expected finite inputs, but got NaN"),
    ((FOUR, torch.full((4,), torch.inf)), "data: expected finite targets, but got NaN"),
    (("ab", torch.zeros(2)), r"data: expected inputs as a dense tensor of shape \(examples, ...\), "
                             "but got str"),
    ((FOUR, np.array(list("abcd"))), "data: expected targets as a dense tensor"),
    ((torch.tensor(1.0), torch.tensor(1.0)), "data: expected inputs as a dense tensor"),
    ((FOUR, torch.tensor([0, 1, 2, 3])), "data: expected class numbers of shape"),
    ((FOUR, torch.rand(4)), "data: expected one output and one target an example in a regression "
                            "task, but got outputs of shape")])
def test_data_that_fit_no_task(data, message):
    with pytest.raises(ValueError, match=message) as raised:
        scoring(nn.Linear(4, 3), data)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("outputs", "targets", "task", "message"), [
    (1, torch.rand(4, 2), "regression", "data: expected one output and one target an example"),
    (1, torch.full((4,), 0.3), None, "data: expected at least two different targets, but got one"),
    (3, torch.zeros(4), "multi", "task: expected one of binary, multiclass, .*, but got 'multi'")])
def test_targets_that_do_not_fit(outputs, targets, task, message):
    with pytest.raises(ValueError, match=message) as raised:
        scoring(nn.Linear(4, outputs), (FOUR, targets), task=task)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("options", "message"), [
    ({"score": lambda o, t: o.mean()},
     r"score: expected one number an example, shape \(4,\), but got \(\)"),
    ({"score": lambda o, t: 1.0},
     r"score: expected one number an example, shape \(4,\), but got float"),
    ({"score": lambda o, t: o[:, 0] * torch.nan},
     "score: expected finite numbers, but their mean is nan"),
    ({"loss": lambda o, t: o}, r"loss: expected a finite scalar tensor, but got shape \(4, 3\)"),
    ({"loss": lambda o, t: o.sum() * torch.nan},
     "loss: expected a finite scalar tensor, but got nan"),
    ({"loss": lambda o, t: 3}, "loss: expected a finite scalar tensor, but got 3")])
def test_scores_and_losses_that_are_none(options, message):
    model = nn.Linear(4, 3)
    judge = scoring(model, (FOUR, labels(4, 3)), **options)
    with pytest.raises(ValueError, match=message):
        judge.mean_score(model)
        judge.mean_loss(judge.outputs(model))
