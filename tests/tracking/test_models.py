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
from torch import nn

from tests.tracking import saving
from tests.tracking.saving import (
    MODELS,
    Branching,
    Convolutional,
    Recurrent,
    log,
    mlp,
    only_model,
    trained,
)
from wua_mlflow.tracking.models import load_exported, read_tensors, write_tensors

ALLOW_PICKLE = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"
run = saving.run


class Noisy(Branching):
    """Draws random numbers in eval mode too."""

    def forward(self, x):
        return self.layer(x) + torch.rand(1)


class Counting(Branching):
    """Its batch size would be a constant of the graph, were it not exported strictly."""

    def forward(self, x):
        return self.layer(x).reshape(len(x), 1)


def test_a_batch_size_read_by_len_is_no_constant(run):
    model = Counting()
    loaded = load_exported(f"models:/{log(run, model, torch.rand(9, 2))[0]}")
    assert set(loaded.state_dict()) == set(model.state_dict())
    for batch in (1, 7, 100):
        x = torch.rand(batch, 2)
        torch.testing.assert_close(loaded(x), model(x))


@pytest.mark.parametrize("name", MODELS)
def test_it_loads_without_pickle_at_any_batch_size(run, name, monkeypatch):
    model, inputs = trained(name)
    model_id, size = log(run, model, inputs)
    assert model.training and all(module.training for module in model.modules())
    monkeypatch.setenv(ALLOW_PICKLE, "false")
    loaded = mlflow.pytorch.load_model(f"models:/{model_id}")
    predict = mlflow.pyfunc.load_model(f"models:/{model_id}").predict
    model.eval()
    for batch in (1, 7, 1000):
        x = torch.rand(batch, *inputs.shape[1:], dtype=inputs.dtype)
        with torch.no_grad():
            expected = model(x)
            torch.testing.assert_close(loaded(x), expected)
        answer = predict(x.numpy())
        assert isinstance(answer, np.ndarray) and answer.shape == tuple(expected.shape)
        np.testing.assert_allclose(answer, expected.numpy(), rtol=1e-5, atol=1e-6)
    assert size > 0


def test_what_the_store_holds_of_a_model(run):
    model, inputs = trained("mlp")
    model_id, size = log(run, model, inputs, params={"hidden": "10", "lr": 0.01},
                          tags={"wua.variant": "oversized"})
    held = only_model(run)
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


def test_one_sample_is_enough_of_an_example(run):
    model, inputs = trained("mlp")
    model_id, _ = log(run, model, inputs[:1])
    loaded = load_exported(f"models:/{model_id}")
    for batch in (1, 7, 1000):
        x = torch.rand(batch, 2)
        torch.testing.assert_close(loaded(x), model.eval()(x))


def test_inputs_that_are_whole_numbers(run):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
    model_id, _ = log(run, model, torch.randint(10, (6, 3)))
    x = torch.randint(10, (7, 3))
    answer = mlflow.pyfunc.load_model(f"models:/{model_id}").predict(x.numpy())
    np.testing.assert_allclose(answer, model(x).detach().numpy(), rtol=1e-6)


@pytest.mark.parametrize(("kind", "options"), [
    (nn.LSTM, {}), (nn.GRU, {"num_layers": 2, "bidirectional": True, "dropout": 0.5}),
])
def test_recurrent_models_at_any_batch_size(run, kind, options):
    torch.manual_seed(0)
    model = Recurrent(kind, **options)
    model_id, _ = log(run, model, torch.randint(20, (9, 5)))
    predict = mlflow.pyfunc.load_model(f"models:/{model_id}").predict
    model.eval()
    for batch in (1, 3, 64):
        x = torch.randint(20, (batch, 5))
        np.testing.assert_allclose(predict(x.numpy()), model(x).detach(), rtol=1e-5, atol=1e-6)


def test_it_loads_by_the_run_and_on_the_cpu_where_there_is_a_gpu_too(run, monkeypatch):
    """Left to itself, MLflow takes a GPU where it finds one, and then refuses a graph of the CPU's.
    """
    model, inputs = trained("mlp")
    model_id, _ = log(run, model, inputs)
    expected = model.eval()(inputs).detach()
    by_run = mlflow.pytorch.load_model(f"runs:/{run[1]}/model")
    torch.testing.assert_close(by_run(inputs).detach(), expected)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    loaded = mlflow.pyfunc.load_model(f"models:/{model_id}")
    np.testing.assert_allclose(loaded.predict(inputs.numpy()), expected, rtol=1e-6)
    with pytest.raises(MlflowException, match="can't be loaded on 'cuda'"):
        mlflow.pyfunc.load_model(f"models:/{model_id}", model_config={"device": "cuda"})


def test_signature_example_and_a_folder_that_is_enough_to_build_it_again(run):
    """With safetensors and torch alone: neither MLflow nor this package reads these files."""
    from safetensors.torch import load_file

    model, inputs = trained("cnn with batch norm and dropout")
    model_id, size = log(run, model, inputs, files={
        "state/model.safetensors": lambda path: write_tensors(model.state_dict(), path),
        "state/structure.json": '{"rounds": []}'})
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{model_id}"))
    assert (folder / "state/structure.json").read_text() == '{"rounds": []}'
    assert (folder / "data/model.pt2").stat().st_size == size
    again = Convolutional()
    again.load_state_dict(load_file(folder / "state/model.safetensors"))
    exported = load_exported(f"models:/{model_id}")
    torch.testing.assert_close(again.eval()(inputs), model.eval()(inputs), rtol=0, atol=0)
    torch.testing.assert_close(again(inputs), exported(inputs))
    info = mlflow.models.get_model_info(f"models:/{model_id}")
    assert [(spec.type.name, spec.shape) for spec in info.signature.inputs.inputs] \
        == [("float32", (-1, 1, 8, 8))]
    assert [spec.shape for spec in info.signature.outputs.inputs] == [(-1, 3)]
    loaded = mlflow.pyfunc.load_model(f"models:/{model_id}")
    np.testing.assert_array_equal(loaded.input_example, inputs[:4].numpy())
    with pytest.raises(MlflowException, match="schema"):
        loaded.predict(np.zeros((2, 3, 8, 8), np.float32))


@pytest.mark.parametrize("wrap", [
    lambda model: torch.compile(model, backend="eager"), nn.DataParallel,
    lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
])
def test_a_wrapped_model_is_saved_as_what_is_inside(run, wrap):
    model, inputs = trained("mlp")
    model_id, _ = log(run, wrap(model), inputs)
    torch.testing.assert_close(load_exported(f"models:/{model_id}")(inputs), model.eval()(inputs))


@pytest.mark.parametrize("build", [mlp, Noisy])
def test_random_streams_the_models_state_and_the_terminal_are_left_alone(run, build, capfd):
    torch.manual_seed(3)
    model, inputs = build().train(), torch.rand(9, 2)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    capfd.readouterr()
    log(run, model, inputs)
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_loading_refuses_pickle_unless_it_is_allowed(run, tmp_path, monkeypatch):
    monkeypatch.delenv(ALLOW_PICKLE, raising=False)
    mlflow.pytorch.save_model(mlp(), tmp_path / "pickled", serialization_format="pickle",
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
