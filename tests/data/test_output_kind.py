"""Whether outputs are probabilities or logits: modules, functions, views, graphs from pt2."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.networks import Ending
from wua_mlflow.data.tasks import output_kind

INPUTS = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))

BINARY = {
    "sigmoid function": (functional.sigmoid, "probabilities"),
    "sigmoid method": (lambda z: z.sigmoid(), "probabilities"),
    "sigmoid in place": (lambda z: (z * 1).sigmoid_(), "probabilities"),
    "sigmoid module": (nn.Sigmoid(), "probabilities"),
    "hard sigmoid": (functional.hardsigmoid, "probabilities"),
    "logits": (lambda z: z, "logits"),
    "sigmoid inside": (lambda z: z.sigmoid() * 4 - 2, "logits"),
    "relu": (functional.relu, "logits"),
    "squeezed sigmoid": (lambda z: z.sigmoid().squeeze(-1), "probabilities"),
    "squeezed before": (lambda z: z.squeeze(-1).sigmoid(), "probabilities"),
    "squeezed logits": (lambda z: z.squeeze(-1), "logits"),
    "reshaped": (lambda z: z.sigmoid().view(-1).reshape(-1, 1), "probabilities"),
    "flattened": (lambda z: z.sigmoid().flatten(), "probabilities"),
    "selected": (lambda z: z.sigmoid()[:, 0], "probabilities"),
    "sliced": (lambda z: z.sigmoid()[:, :1], "probabilities"),
    "transposed twice": (lambda z: z.sigmoid().t().t().clone(), "probabilities"),
    "expanded": (lambda z: z[0].sigmoid().expand(len(z), 1), "probabilities"),
    "cast": (lambda z: z.sigmoid().double().float(), "probabilities"),
    "clamped": (lambda z: z.sigmoid().clamp(1e-6, 1 - 1e-6), "probabilities"),
    "clamped logits": (lambda z: z.clamp(-10, 10), "logits"),
    "log of a sigmoid": (functional.logsigmoid, "logits"),
    "sigmoid, no graph": (torch.no_grad()(lambda z: z.sigmoid()), "probabilities"),
    "logits, no graph": (torch.no_grad()(lambda z: z * 100), "logits"),
}


@pytest.mark.parametrize("name", BINARY)
def test_kind_of_a_binary_output(name):
    ending, kind = BINARY[name]
    assert output_kind(Ending(ending), INPUTS, "binary") == kind


MULTICLASS = {
    "logits": (lambda z: z, "logits"),
    "softmax function": (lambda z: functional.softmax(z, 1), "probabilities"),
    "softmax module": (nn.Softmax(dim=1), "probabilities"),
    "log softmax": (lambda z: functional.log_softmax(z, 1), "logits"),
    "log of softmax": (lambda z: functional.softmax(z, 1).log(), "logits"),
    "a sigmoid each": (functional.sigmoid, "logits"),
    "softmax, no graph": (torch.no_grad()(lambda z: functional.softmax(z, 1)), "probabilities"),
    "sigmoids, no graph": (torch.no_grad()(functional.sigmoid), "logits"),
}


@pytest.mark.parametrize("name", MULTICLASS)
def test_kind_of_a_multiclass_output(name):
    ending, kind = MULTICLASS[name]
    assert output_kind(Ending(ending, 4), INPUTS, "multiclass") == kind


@pytest.mark.parametrize("ending", [nn.Sigmoid(), nn.Identity()])
def test_a_regression_gives_values(ending):
    assert output_kind(Ending(ending), INPUTS, "regression") == "values"


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


def test_kind_with_frozen_weights_and_of_token_numbers():
    frozen = Ending(functional.sigmoid).requires_grad_(False)
    assert output_kind(frozen, INPUTS, "binary") == "probabilities"
    tokens = nn.Sequential(nn.Embedding(9, 3), Ending(lambda z: z.mean(1).sigmoid()))
    assert output_kind(tokens, torch.tensor([[1, 2], [3, 4]]), "binary") == "probabilities"


def test_kind_of_a_compiled_model():
    compiled = torch.compile(Ending(functional.sigmoid), backend="eager")
    assert output_kind(compiled, INPUTS, "binary") == "probabilities"


@pytest.mark.parametrize(
    ("ending", "task", "outputs", "kind"),
    [
        (nn.Sigmoid(), "binary", 1, "probabilities"),
        (functional.sigmoid, "binary", 1, "probabilities"),
        (lambda z: z.sigmoid().squeeze(-1), "binary", 1, "probabilities"),
        (nn.Identity(), "binary", 1, "logits"),
        (nn.Softmax(dim=1), "multiclass", 4, "probabilities"),
        (nn.LogSoftmax(dim=1), "multiclass", 4, "logits"),
    ],
)
def test_kind_of_a_graph_reloaded_from_pt2(ending, task, outputs, kind, tmp_path):
    batch = torch.export.Dim("batch")
    exported = torch.export.export(Ending(ending, outputs).eval(), (INPUTS[:4],),
                                   dynamic_shapes={"x": {0: batch}})
    torch.export.save(exported, tmp_path / "model.pt2")
    graph = torch.export.load(tmp_path / "model.pt2").module()
    assert output_kind(graph, INPUTS, task) == kind
