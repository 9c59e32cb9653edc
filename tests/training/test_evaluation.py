"""Kinds of output, losses and scores, against scikit-learn and closed formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics
import torch
from torch import nn
from torch.nn import functional

from tests.networks import Ending
from wua_mlflow.data.tasks import example_scores, loss_for, score_name
from wua_mlflow.training.evaluation import evaluate

INPUTS = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))


def binary_targets() -> torch.Tensor:
    return (torch.rand(40, 1, generator=torch.Generator().manual_seed(2)) > 0.4).float()


@pytest.mark.parametrize("kind", ["probabilities", "logits"])
@pytest.mark.parametrize("squeezed", [False, True])
def test_a_binary_classifier_is_scored_as_scikit_learn_does(kind, squeezed):
    plain = Ending(nn.Identity())
    probabilities = torch.sigmoid(plain(INPUTS)).detach().double().numpy().ravel()
    y = binary_targets()
    model = Ending(functional.sigmoid if kind == "probabilities" else nn.Identity())
    if squeezed:
        model = nn.Sequential(model, nn.Flatten(0))
        y = y[:, 0]
    result = evaluate(model, INPUTS, y, task="binary", kind=kind, digest="abc")
    truth = binary_targets().numpy().ravel()
    assert result.predictions.tolist() == (probabilities > 0.5).astype(int).tolist()
    assert result.score == sklearn.metrics.accuracy_score(truth, probabilities > 0.5)
    assert result.loss == pytest.approx(sklearn.metrics.log_loss(truth, probabilities), rel=1e-6)
    by_hand = -np.where(truth == 1, np.log(probabilities), np.log1p(-probabilities))
    assert result.losses == pytest.approx(by_hand, rel=1e-5)
    assert result.targets.tolist() == truth.tolist()
    assert (result.scores.shape, result.losses.shape) == ((40,), (40,))
    assert (result.task, result.digest) == ("binary", "abc")


@pytest.mark.parametrize(("ending", "kind"), [
    (nn.Identity(), "logits"), (nn.Softmax(dim=1), "probabilities")])
def test_a_multiclass_classifier_is_scored_as_scikit_learn_does(ending, kind):
    probabilities = functional.softmax(Ending(nn.Identity(), 4)(INPUTS), 1).detach().double()
    y = torch.randint(4, (40,), generator=torch.Generator().manual_seed(3))
    result = evaluate(Ending(ending, 4), INPUTS, y, task="multiclass", kind=kind)
    predicted = probabilities.argmax(1)
    assert result.predictions.tolist() == predicted.tolist()
    assert result.score == sklearn.metrics.accuracy_score(y, predicted)
    expected = sklearn.metrics.log_loss(y, probabilities.numpy() / probabilities.numpy().sum(
        1, keepdims=True), labels=range(4))
    assert result.loss == pytest.approx(expected, rel=1e-6)
    assert result.losses == pytest.approx(
        -np.log(probabilities.numpy()[np.arange(40), y]), rel=1e-5)


@pytest.mark.parametrize("squeezed", [False, True])
def test_a_regression_is_scored_as_scikit_learn_does(squeezed):
    model = Ending(nn.Identity())
    y = INPUTS.sum(1, keepdim=True) + 0.1 * binary_targets()
    outputs = model(INPUTS).detach().double().numpy().ravel()
    truth = y.double().numpy().ravel()
    if squeezed:  # (n,) beside targets of (n, 1): no n × n differences
        model = nn.Sequential(model, nn.Flatten(0))
    result = evaluate(model, INPUTS, y, task="regression", kind="values")
    assert result.score == pytest.approx(sklearn.metrics.r2_score(truth, outputs), abs=1e-6)
    assert result.loss == pytest.approx(np.mean((truth - outputs) ** 2), rel=1e-6)
    assert result.losses == pytest.approx((truth - outputs) ** 2, rel=1e-4)
    assert result.scores == pytest.approx(1 - (truth - outputs) ** 2 / truth.var(), rel=1e-4)


@pytest.mark.parametrize(("task", "kind"), [
    ("binary", "probabilities"), ("binary", "logits"), ("regression", "values")])
def test_a_float64_model_takes_float32_targets(task, kind):
    model = Ending(functional.sigmoid if kind == "probabilities" else nn.Identity())
    single = evaluate(model, INPUTS, binary_targets(), task=task, kind=kind)
    double = evaluate(model.double(), INPUTS.double(), binary_targets(), task=task, kind=kind)
    assert double.losses == pytest.approx(single.losses, rel=1e-4)
    assert double.score == pytest.approx(single.score, rel=1e-5)


def test_the_model_is_evaluated_in_eval_mode_and_left_as_found():
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 1))
    model[1].running_mean.fill_(0.3)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    first = evaluate(model, INPUTS, binary_targets(), task="binary", kind="logits")
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    expected = functional.binary_cross_entropy_with_logits(model.eval()(INPUTS), binary_targets())
    assert first.loss == pytest.approx(expected.item(), rel=1e-6)
    loss = loss_for("multiclass", "probabilities")(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert 80 < loss.item() < math.inf, "certain but wrong"
    wrong = evaluate(Ending(lambda z: z * 0), INPUTS, torch.ones(40, 1), task="binary",
                     kind="probabilities")
    assert wrong.score == 0.0 and math.isfinite(wrong.loss)


def test_large_sets_go_through_in_parts():
    sizes = []
    inputs = torch.rand(9001, 3, generator=torch.Generator().manual_seed(5))
    y = (inputs.sum(1, keepdim=True) > 1.5).float()
    whole = Ending(nn.Identity())(inputs)
    result = evaluate(Ending(lambda z: sizes.append(len(z)) or z), inputs, y, task="binary",
                      kind="logits")
    assert sum(sizes) == 9001
    assert max(sizes) < 9001
    assert result.predictions.tolist() == (whole > 0).long()[:, 0].tolist()


@pytest.mark.parametrize(("task", "model", "targets", "message"), [
    ("binary", Ending(nn.Identity(), 2), torch.zeros(40, 1),
     r"model: expected outputs of shape \(examples, 1\) for 40 targets .* \(40, 2\)"),
    ("regression", Ending(nn.Identity()), torch.zeros(40, 2), r"of shape \(examples, 2\)"),
    ("regression", Ending(nn.Identity()), torch.zeros(39, 1), "40 inputs, but got 39"),
    ("multiclass", Ending(nn.Identity(), 4), torch.zeros(40, 2), r"\(examples, classes\)"),
    ("multiclass", Ending(nn.Identity(), 4), torch.zeros(41), "40 inputs, but got 41"),
    ("binary", Ending(lambda z: z * math.nan), torch.zeros(40, 1),
     "model: expected finite outputs, but got NaN or infinity"),
    ("binary", Ending(lambda z: z + math.inf), torch.zeros(40, 1), "finite outputs"),
    ("binary", Ending(lambda z: ("z", None)), torch.zeros(40, 1),
     "model: expected a tensor as output, or one among several, but got tuple"),
    ("binary", Ending(nn.Identity()), torch.zeros(0, 1),
     "inputs: expected at least one example, but got none"),
])
def test_outputs_that_do_not_fit(task, model, targets, message):
    inputs = INPUTS[:len(targets) and 40]
    with pytest.raises(ValueError, match=message):
        evaluate(model, inputs, targets, task=task, kind="logits")


def test_example_scores_by_hand():
    right = example_scores(np.array([0, 2, 1]), np.array([0.0, 1.0, 1.0]), "multiclass")
    assert right.tolist() == [1.0, 0.0, 1.0]
    parts = example_scores(np.array([1.0, 2.0]), np.array([0.0, 2.0]), "regression")
    assert parts.tolist() == [0.0, 1.0]  # variance 1
    for targets in ([0.1, 0.1, 0.1], [5.0]):
        with pytest.raises(ValueError, match="targets: expected at least two different values"):
            example_scores(np.zeros(len(targets)), np.array(targets), "regression")
    assert [score_name(task) for task in ("binary", "multiclass", "regression")] == [
        "accuracy", "accuracy", "R²"]
