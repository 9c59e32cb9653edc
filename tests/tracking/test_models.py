"""Saved models load anywhere, without pickle, at any batch size, and compute the same."""

from __future__ import annotations

import os
import random
import zipfile
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from torch import nn

from wua_mlflow.tracking.models import load_exported, log_model, read_tensors, write_tensors
from wua_mlflow.tracking.store import connect, ended, new_run

ALLOW_PICKLE = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"


class Convolutional(nn.Module):
    """A convolution with batch norm, as a class of its own."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.convolution(x))).mean((2, 3))
        return self.head(self.dropout(x))


class Branching(nn.Module):
    """A path that hangs on the data."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else -self.layer(x)


class FixedBatch(Branching):
    """Takes batches of four alone."""

    def forward(self, x):
        return self.layer(x) + x.reshape(4, 2).sum()


class Noisy(Branching):
    """Draws random numbers in eval mode too."""

    def forward(self, x):
        return self.layer(x) + torch.rand(1)


class Pair(Branching):
    """Two outputs."""

    def forward(self, x):
        return self.layer(x), x


class Summed(Branching):
    """One output for the whole batch."""

    def forward(self, x):
        return self.layer(x).sum()


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 10), nn.ReLU(), nn.Linear(10, 1), nn.Sigmoid())


MODELS = {
    "mlp": (_mlp, (2,)),
    "cnn with batch norm and dropout": (Convolutional, (1, 8, 8)),
    "dropout": (lambda: nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 4)), (6,)),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, batch_first=True), (5, 8)),
}


@pytest.fixture
def run(store_uri):
    """A store, and the id of a run that is ended afterwards."""
    store = connect("models")
    run_id = new_run(store, "run", {})
    with ended(store, run_id):
        yield store, run_id


def _log(run, model: nn.Module, inputs: torch.Tensor, **shown) -> tuple[str, int]:
    store, run_id = run
    return log_model(store.client, run_id, store.experiment_id, model, inputs, **shown)


def _only_model(run):
    store, _ = run
    [found] = store.client.search_logged_models([store.experiment_id])
    return found


def _trained(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A model in train mode, whose running statistics are not those it began with."""
    torch.manual_seed(7)
    build, shape = MODELS[name]
    model, inputs = build().train(), torch.rand(30, *shape)
    model(3 * inputs + 1)
    return model, inputs


@pytest.mark.parametrize("name", MODELS)
def test_it_loads_without_pickle_at_any_batch_size(run, name, monkeypatch):
    model, inputs = _trained(name)
    model_id, size = _log(run, model, inputs)
    assert model.training and all(module.training for module in model.modules())
    monkeypatch.setenv(ALLOW_PICKLE, "false")
    loaded = mlflow.pytorch.load_model(f"models:/{model_id}")
    predict = mlflow.pyfunc.load_model(f"models:/{model_id}").predict
    model.eval()
    for batch in (1, 7, 1000):
        x = torch.rand(batch, *inputs.shape[1:])
        with torch.no_grad():
            expected = model(x)
            torch.testing.assert_close(loaded(x), expected)
        answer = predict(x.numpy())
        assert isinstance(answer, np.ndarray) and answer.shape == tuple(expected.shape)
        np.testing.assert_allclose(answer, expected.numpy(), rtol=1e-5, atol=1e-6)
    assert size > 0


def test_what_the_store_holds_of_a_model(run):
    model, inputs = _trained("mlp")
    model_id, size = _log(run, model, inputs, params={"hidden": "10", "lr": 0.01},
                          tags={"wua.variant": "oversized"})
    held = _only_model(run)
    store, run_id = run
    assert (held.model_id, held.name, held.status, held.source_run_id) \
        == (model_id, "model", "READY", run_id)
    assert held.params == {"hidden": "10", "lr": "0.01"}
    assert held.tags["wua.variant"] == "oversized"
    outputs = store.client.get_run(run_id).outputs.model_outputs
    assert [output.model_id for output in outputs] == [model_id]
    files = {file.path for folder in (None, "data")
             for file in store.client.list_logged_model_artifacts(model_id, folder)}
    assert files == {"data", "MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt",
                     "input_example.json", "serving_input_example.json", "data/model.pt2"}
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{model_id}"))
    assert (folder / "data/model.pt2").stat().st_size == size
    with zipfile.ZipFile(folder / "data/model.pt2") as archive:
        assert not [name for name in archive.namelist() if name.endswith((".pkl", ".pth"))]
    assert (folder / "requirements.txt").read_text().split() == [
        f"mlflow=={mlflow.__version__}", f"torch=={torch.__version__.split('+')[0]}",
        f"numpy=={np.__version__}"]


def test_the_signature_and_the_example(run):
    model, inputs = _trained("cnn with batch norm and dropout")
    model_id, _ = _log(run, model, inputs)
    info = mlflow.models.get_model_info(f"models:/{model_id}")
    assert [(spec.type.name, spec.shape) for spec in info.signature.inputs.inputs] \
        == [("float32", (-1, 1, 8, 8))]
    assert [spec.shape for spec in info.signature.outputs.inputs] == [(-1, 3)]
    loaded = mlflow.pyfunc.load_model(f"models:/{model_id}")
    np.testing.assert_array_equal(loaded.input_example, inputs[:4].numpy())
    with pytest.raises(MlflowException, match="schema"):
        loaded.predict(np.zeros((2, 3, 8, 8), np.float32))


def test_it_loads_by_the_run_too(run):
    model, inputs = _trained("mlp")
    _log(run, model, inputs)
    loaded = mlflow.pytorch.load_model(f"runs:/{run[1]}/model")
    torch.testing.assert_close(loaded(inputs), model.eval()(inputs))


def test_one_sample_is_enough_of_an_example(run):
    model, inputs = _trained("mlp")
    model_id, _ = _log(run, model, inputs[:1])
    loaded = load_exported(f"models:/{model_id}")
    for batch in (1, 7, 1000):
        x = torch.rand(batch, 2)
        torch.testing.assert_close(loaded(x), model.eval()(x))


def test_inputs_that_are_whole_numbers(run):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
    model_id, _ = _log(run, model, torch.randint(10, (6, 3)))
    x = torch.randint(10, (7, 3))
    answer = mlflow.pyfunc.load_model(f"models:/{model_id}").predict(x.numpy())
    np.testing.assert_allclose(answer, model(x).detach().numpy(), rtol=1e-6)


def test_a_compiled_model_is_saved_as_what_was_compiled(run):
    model, inputs = _trained("mlp")
    model_id, _ = _log(run, torch.compile(model, backend="eager"), inputs)
    torch.testing.assert_close(load_exported(f"models:/{model_id}")(inputs), model.eval()(inputs))


@pytest.mark.parametrize("build", [_mlp, Noisy])
def test_random_streams_the_models_state_and_the_terminal_are_left_alone(run, build, capfd):
    torch.manual_seed(3)
    model, inputs = build().train(), torch.rand(9, 2)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    capfd.readouterr()
    _log(run, model, inputs)
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("build", "said"), [
    (Branching, "model: torch.export cannot save it as pt2: Could not guard on data-dependent"),
    (FixedBatch, "model: expected one that takes batches of any size, but as exported it does not"),
    (Pair, "model: expected one tensor as its output, but got tuple"),
    (Summed, r"model: expected an output of 4 rows for 4 samples, but got one of shape \(\)"),
    (lambda: nn.Linear(3, 1), "model: cannot be copied and run on the CPU: mat1 and mat2 shapes"),
])
def test_a_model_that_cannot_be_saved_is_one_line_and_failed(run, build, said, capfd):
    capfd.readouterr()
    with pytest.raises(ValueError, match=f"^{said}") as caught:
        _log(run, build(), torch.rand(9, 2))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert capfd.readouterr() == ("", "")
    store, run_id = run
    assert _only_model(run).status == "FAILED"
    assert store.client.get_run(run_id).outputs.model_outputs == []


@pytest.mark.parametrize(("inputs", "said"), [
    (torch.rand(0, 2), "inputs: expected at least one sample, but got none"),
    (torch.rand(5, 2, dtype=torch.bfloat16), "bfloat16"),
])
def test_inputs_that_no_example_can_be_made_of(run, inputs, said):
    with pytest.raises(ValueError, match=said):
        _log(run, _mlp().to(inputs.dtype), inputs)
    assert _only_model(run).status == "FAILED"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_a_model_that_is_not_all_there_is_failed(run, monkeypatch, stop):
    def stops(*_):
        raise stop

    monkeypatch.setattr(MlflowClient, "log_model_artifacts", stops)
    with pytest.raises(stop):
        _log(run, _mlp(), torch.rand(9, 2))
    assert _only_model(run).status == "FAILED"


def test_loading_refuses_pickle_unless_it_is_allowed(run, tmp_path, monkeypatch):
    monkeypatch.delenv(ALLOW_PICKLE, raising=False)
    mlflow.pytorch.save_model(_mlp(), tmp_path / "pickled", serialization_format="pickle",
                              pip_requirements=["torch"])
    uri = (tmp_path / "pickled").as_uri()
    with pytest.raises(ValueError, match=f"^model URI {uri}: cannot be loaded: .*pickle") as caught:
        load_exported(uri)
    assert "\n" not in str(caught.value)
    assert ALLOW_PICKLE not in os.environ
    monkeypatch.setenv(ALLOW_PICKLE, "true")
    assert isinstance(load_exported(uri), nn.Sequential)


@pytest.mark.parametrize("uri", ["models:/nothing/1", "runs:/0123/model", "no such folder"])
def test_a_uri_that_holds_nothing_is_one_line(run, uri):
    with pytest.raises(ValueError, match=f"^model URI {uri}: cannot be loaded: ") as caught:
        load_exported(uri)
    assert "\n" not in str(caught.value)


def test_tensors_come_back_as_they_were(tmp_path):
    torch.manual_seed(0)
    weight = torch.rand(4, 3)
    tensors = {"weight": nn.Parameter(weight), "tied": weight, "transposed": weight.T,
               "half": weight.half(), "count": torch.tensor(5), "flags": weight > 0.5,
               "stream": torch.get_rng_state(), "empty": torch.empty(0, 2)}
    write_tensors(tensors, tmp_path / "t.safetensors")
    read = read_tensors(tmp_path / "t.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor.detach())
