"""The task of targets, classes by outputs, predictions; probabilities or logits of every kind."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.networks import Ending
from wua_mlflow.data.tasks import TaskSpec, infer_task, output_kind, predictions_of

INPUTS = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("targets", "outputs", "task"), [
    ([0, 2, 1], 3, "multiclass"), ([0, 1, 1], 2, "multiclass"), ([0.0, 1.0, 1.0], 2, "binary"),
    ([[0], [1], [1]], 1, "binary"), ([0, 1, 1], 1, "binary"), ([True, False, True], 1, "binary"),
    ([0, 2, 1], 1, "regression"), ([[0], [2], [1]], 3, "regression"),
    ([0.5, 1.0, 0.0], 1, "regression"),
])
def test_targets_beside_outputs_are_taken_as_a_loss_takes_them(targets, outputs, task):
    values = {"multiclass": tuple(range(outputs)), "binary": (0, 1), "regression": ()}
    assert infer_task(np.array(targets), outputs=outputs) == TaskSpec(task, values[task])
    for forced in values:
        assert infer_task(np.array([0.5, 2.0]), task=forced, outputs=4).task == forced


@pytest.mark.parametrize(("values", "count", "expected"), [
    ((0, 2), 3, (0, 1, 2)), ((0.0, 1.0), 2, (0, 1)), (("a", "b"), 2, ("a", "b")),
    ((1, 2, 3), 3, (1, 2, 3)), ((-1, 1), 2, (-1, 1)), ((0.5, 1.0), 2, (0.5, 1.0)),
    (("a", "b"), 3, None), ((1, 3), 3, None), ((-1, 0), 3, None),
])
def test_classes_in_the_order_of_the_outputs(values, count, expected):
    if expected:
        assert TaskSpec("multiclass", values).for_outputs(count) == TaskSpec("multiclass", expected)
        return
    with pytest.raises(ValueError, match="^data: expected a class for each of the model's 3 "
                                         "outputs, but the test data have 2$"):
        TaskSpec("binary", values).for_outputs(count)


def test_predictions():
    logits = torch.tensor([[0.4], [-0.1], [0.6]])
    assert predictions_of(logits, "binary", "logits").tolist() == [1, 0, 1]
    assert predictions_of(logits, "binary", "probabilities").tolist() == [0, 0, 1]
    amounts = predictions_of(logits, "regression", "values")
    assert amounts.dtype == np.float64
    assert amounts == pytest.approx([0.4, -0.1, 0.6])
    scores = torch.tensor([[0.1, 0.7, 0.2], [3.0, -1.0, 2.0]])
    assert predictions_of(scores, "multiclass", "logits").tolist() == [1, 0]


KINDS = {
    "binary probabilities": {
        "function": functional.sigmoid, "in place": lambda z: (z * 1).sigmoid_(),
        "module": nn.Sigmoid(), "hard": functional.hardsigmoid,
        "squeezed": lambda z: z.sigmoid().squeeze(-1),
        "squeezed before": lambda z: z.squeeze(-1).sigmoid(),
        "reshaped": lambda z: z.sigmoid().view(-1).reshape(-1, 1),
        "flattened": lambda z: z.sigmoid().flatten(), "selected": lambda z: z.sigmoid()[:, 0],
        "sliced": lambda z: z.sigmoid()[:, :1], "transposed": lambda z: z.sigmoid().t().t().clone(),
        "expanded": lambda z: z[0].sigmoid().expand(len(z), 1),
        "cast": lambda z: z.sigmoid().double().float(),
        "clamped": lambda z: z.sigmoid().clamp(1e-6, 1 - 1e-6),
        "no graph": torch.no_grad()(lambda z: z.sigmoid())},
    "binary logits": {
        "plain": lambda z: z, "sigmoid inside": lambda z: z.sigmoid() * 4 - 2,
        "relu": functional.relu, "squeezed": lambda z: z.squeeze(-1),
        "clamped": lambda z: z.clamp(-10, 10), "log of a sigmoid": functional.logsigmoid,
        "no graph": torch.no_grad()(lambda z: z * 100)},
    "multiclass probabilities": {
        "function": lambda z: functional.softmax(z, 1), "module": nn.Softmax(dim=1),
        "no graph": torch.no_grad()(lambda z: functional.softmax(z, 1))},
    "multiclass logits": {
        "plain": lambda z: z, "log softmax": lambda z: functional.log_softmax(z, 1),
        "log of softmax": lambda z: functional.softmax(z, 1).log(),
        "a sigmoid each": functional.sigmoid,
        "sigmoids, no graph": torch.no_grad()(functional.sigmoid)},
    "regression values": {"plain": lambda z: z, "sigmoid": functional.sigmoid},
}


@pytest.mark.parametrize(("expected", "name"), [
    (expected, name) for expected, endings in KINDS.items() for name in endings])
def test_kind_of_an_output(expected, name):
    task, kind = expected.split()
    model = Ending(KINDS[expected][name], 4 if task == "multiclass" else 1)
    assert output_kind(model, INPUTS, task) == kind


def test_kind_leaves_the_model_its_gradients_and_the_random_stream_alone():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 1),
                          nn.Sigmoid())
    state = {key: value.clone() for key, value in model.state_dict().items()}
    stream = torch.get_rng_state()
    assert output_kind(model, INPUTS, "binary") == "probabilities"
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), stream)
    assert not INPUTS.requires_grad
    assert output_kind(Ending(lambda z: (z.sigmoid(), z)), INPUTS, "binary") == "probabilities"
    with pytest.raises(ValueError, match="^model: expected a tensor as output, .* but got tuple$"):
        output_kind(Ending(lambda z: ("z",)), INPUTS, "binary")


def test_kind_with_frozen_weights_of_token_numbers_and_of_compiled_and_exported_models(tmp_path):
    frozen = Ending(functional.sigmoid).requires_grad_(False)
    tokens = nn.Sequential(nn.Embedding(9, 3), Ending(lambda z: z.mean(1).sigmoid()))
    for model, inputs in ((frozen, INPUTS), (tokens, torch.tensor([[1, 2], [3, 4]])),
                          (torch.compile(Ending(functional.sigmoid), backend="eager"), INPUTS)):
        assert output_kind(model, inputs, "binary") == "probabilities"
    for ending, task, outputs, kind in (
        (lambda z: z.sigmoid().squeeze(-1), "binary", 1, "probabilities"),
        (nn.Identity(), "binary", 1, "logits"),
        (nn.Softmax(dim=1), "multiclass", 4, "probabilities"),
    ):
        exported = torch.export.export(Ending(ending, outputs).eval(), (INPUTS[:4],),
                                       dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
        torch.export.save(exported, tmp_path / "model.pt2")
        assert output_kind(torch.export.load(tmp_path / "model.pt2").module(), INPUTS, task) == kind
