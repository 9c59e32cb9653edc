"""Saved models load anywhere, without pickle, at any batch size, and compute the same.

Where a model cannot be saved so, one line says why, and no half of it is left.
"""

from __future__ import annotations

import io
import os
import random
import re
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from torch import Tensor, nn

from tests.networks import NETWORKS, cnn, mlp, rows
from wua_mlflow.tracking import models
from wua_mlflow.tracking.models import load_exported, write_tensors
from wua_mlflow.tracking.store import Store, connect, ended, new_run

ALLOW_PICKLE = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"
Run = tuple[Store, str]
MODELS = {
    **{name: NETWORKS[name] for name in ("cnn", "attention", "lstm")},
    "weight norm and dropout": (lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 6)), nn.Dropout(0.5), nn.Linear(6, 2)),
        lambda samples: rows(samples, 3)),
    "half": (lambda: mlp(3, 2).half(), lambda samples: rows(samples, 3).half()),
    "compiled part": (lambda: nn.Sequential(torch.compile(nn.Linear(3, 4), backend="eager"),
                                            nn.Linear(4, 1)), lambda samples: rows(samples, 3)),
}


class Computing(nn.Module):
    """A function of a Linear layer and its inputs."""

    def __init__(self, run: Callable[[nn.Linear, Tensor], object]) -> None:
        super().__init__()
        self.layer, self.run = nn.Linear(3, 1), run

    def forward(self, x: Tensor) -> object:
        return self.run(self.layer, x)


@pytest.fixture
def run(store_uri):
    """A store, and the id of a run that is ended afterwards."""
    store = connect("models")
    with ended(store, new_run(store, "run", {})) as run_id:
        yield store, run_id


def log(run: Run, model: nn.Module, inputs: Tensor, **shown) -> tuple[str, int]:
    store, run_id = run
    return models.log_model(store.client, run_id, store.experiment_id, model, inputs, **shown)


def only_model(run: Run):
    store, _ = run
    [model] = store.client.search_logged_models([store.experiment_id])
    return model


@pytest.mark.parametrize("name", MODELS)
def test_it_loads_without_pickle_at_any_batch_size(run, name, monkeypatch):
    """Saved in train mode, with running statistics that are not those it began with."""
    build, draw = MODELS[name]
    model, inputs = build().train(), draw(30)
    model(inputs)
    model_id, size = log(run, model, inputs)
    assert all(module.training for module in model.modules())
    monkeypatch.setenv(ALLOW_PICKLE, "false")
    loaded = mlflow.pytorch.load_model(f"models:/{model_id}")
    predict = mlflow.pyfunc.load_model(f"models:/{model_id}").predict
    model.eval()
    for batch in (1, 7, 64):
        x = draw(batch)
        with torch.no_grad():
            expected = model(x)
            torch.testing.assert_close(loaded(x), expected)
        answer = predict(x.numpy())
        assert isinstance(answer, np.ndarray) and answer.shape == tuple(expected.shape)
        np.testing.assert_allclose(answer, expected.numpy(), rtol=1e-5, atol=1e-6)
    assert size > 0


@pytest.mark.parametrize(("model", "samples"), [
    (Computing(lambda layer, x: layer(x).reshape(len(x), 1)), 9), (mlp(3, 2), 1)],
    ids=["len, which a graph not exported strictly takes for a constant", "one sample"])
def test_the_batch_size_of_the_example_is_no_constant(run, model, samples):
    loaded = load_exported(f"models:/{log(run, model, rows(samples, 3))[0]}")
    assert set(loaded.state_dict()) == set(model.state_dict())
    for batch in (1, 7, 100):
        torch.testing.assert_close(loaded(rows(batch, 3)), model(rows(batch, 3)))


def test_what_the_store_holds_of_a_model(run):
    """Its folder is enough to build it again, with safetensors and torch alone."""
    from safetensors.torch import load_file

    model, inputs = cnn(), rows(30, 3, 8, 8)
    model_id, size = log(
        run, model, inputs, params={"hidden": "10", "lr": 0.01}, tags={"wua.variant": "oversized"},
        files={"state/model.safetensors": lambda path: write_tensors(model.state_dict(), path),
               "state/structure.json": '{"rounds": []}'})
    logged = only_model(run)
    store, run_id = run
    assert (logged.model_id, logged.name, logged.status, logged.source_run_id) \
        == (model_id, "model", "READY", run_id)
    assert logged.params == {"hidden": "10", "lr": "0.01"}
    assert logged.tags["wua.variant"] == "oversized"
    outputs = store.client.get_run(run_id).outputs.model_outputs
    assert [output.model_id for output in outputs] == [model_id]
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{model_id}"))
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.*")} == {
        "conda.yaml", "python_env.yaml", "requirements.txt", "input_example.json", "data/model.pt2",
        "serving_input_example.json", "state/model.safetensors", "state/structure.json"}
    assert (folder / "data/model.pt2").stat().st_size == size
    with zipfile.ZipFile(folder / "data/model.pt2") as archive:
        assert not [name for name in archive.namelist() if name.endswith((".pkl", ".pth"))]
    assert (folder / "requirements.txt").read_text().split() == [
        f"mlflow=={mlflow.__version__}", f"torch=={torch.__version__.split('+')[0]}",
        f"numpy=={np.__version__}"]
    assert (folder / "state/structure.json").read_text() == '{"rounds": []}'
    again = cnn(seed=1)
    again.load_state_dict(load_file(folder / "state/model.safetensors"))
    torch.testing.assert_close(again.eval()(inputs), model.eval()(inputs), rtol=0, atol=0)
    info = mlflow.models.get_model_info(f"models:/{model_id}")
    assert [(spec.type.name, spec.shape) for spec in info.signature.inputs.inputs] \
        == [("float32", (-1, 3, 8, 8))]
    assert [spec.shape for spec in info.signature.outputs.inputs] == [(-1, 2)]
    loaded = mlflow.pyfunc.load_model(f"models:/{model_id}")
    np.testing.assert_array_equal(loaded.input_example, inputs[:4].numpy())
    with pytest.raises(MlflowException, match="schema"):
        loaded.predict(np.zeros((2, 1, 8, 8), np.float32))


def test_a_wrapped_model_loads_by_the_run_and_on_the_cpu_where_there_is_a_gpu_too(run, monkeypatch):
    """Left to itself, MLflow takes a GPU where it finds one, and then refuses a CPU's graph."""
    model, inputs = mlp(3, 2), rows(9, 3)
    model_id, _ = log(run, nn.DataParallel(torch.compile(model, backend="eager")), inputs)
    expected = model(inputs).detach()
    by_run = mlflow.pytorch.load_model(f"runs:/{run[1]}/model")
    torch.testing.assert_close(by_run(inputs).detach(), expected)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    loaded = mlflow.pyfunc.load_model(f"models:/{model_id}")
    np.testing.assert_allclose(loaded.predict(inputs.numpy()), expected, rtol=1e-6)
    with pytest.raises(MlflowException, match="can't be loaded on 'cuda'"):
        mlflow.pyfunc.load_model(f"models:/{model_id}", model_config={"device": "cuda"})


def test_random_streams_the_models_state_and_the_terminal_are_left_alone(run, capfd):
    """Also by a model that draws random numbers in eval mode, and warns."""
    def forward(layer, x):
        warnings.warn("of the model's own", stacklevel=1)
        return layer(x) + torch.rand(1)

    torch.manual_seed(3)
    model = Computing(forward).train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    capfd.readouterr()
    log(run, model, rows(9, 3))
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_loading_refuses_what_holds_nothing(run):
    for uri in ("models:/nothing/1", "runs:/0123/model", "no such folder"):
        with pytest.raises(ValueError, match=f"^model URI {uri}: cannot be loaded: ") as error:
            load_exported(uri)
        assert "\n" not in str(error.value)


EVIL = "open('hit', 'w').close()\n"


def pickled(folder: Path, **options: Any) -> Path:
    mlflow.pytorch.save_model(mlp(3, 4, 2), folder, serialization_format="pickle",
                              pip_requirements=["torch"], **options)
    return folder


def with_evil_pickle_module(folder: Path) -> Path:
    """MLflow imports that module before it refuses to unpickle; here from the model's own files."""
    (folder.parent / "evil_pickle.py").write_text(EVIL)
    pickled(folder, code_paths=[str(folder.parent / "evil_pickle.py")])
    (folder.parent / "evil_pickle.py").unlink()
    (folder / "data" / "pickle_module_info.txt").write_text("evil_pickle")
    return folder


def with_installed_pickle_module(folder: Path) -> Path:
    (folder.parent / "users_own.py").write_text(EVIL)
    (pickled(folder) / "data" / "pickle_module_info.txt").write_text("users_own")
    return folder


class Evil:
    def __reduce__(self) -> Any:
        return open, ("hit", "w")


def exported(folder: Path) -> Path:
    mlflow.pytorch.save_model(mlp(3, 4, 2), folder, serialization_format="pt2",
                              input_example=rows(4, 3).numpy(), pip_requirements=["torch"])
    return folder


def with_evil_state(folder: Path) -> Path:
    torch.save(Evil(), exported(folder) / "data" / "model.pth")
    (folder / "data" / "pickle_module_info.txt").write_text("pickle")
    return folder


def with_evil_archive(folder: Path) -> Path:
    content = io.BytesIO()
    torch.save(Evil(), content)
    with zipfile.ZipFile(exported(folder) / "data" / "model.pt2", "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/data/constants/evil.pt", content.getvalue())
    return folder


def pickled_pyfunc(folder: Path) -> Path:
    class Answer(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):
            return model_input

    mlflow.pyfunc.save_model(folder, python_model=Answer(), pip_requirements=["torch"])
    return folder


def elsewhere(folder: Path) -> Path:
    place = exported(folder) / "MLmodel"
    place.write_text(place.read_text().replace("model_data: data", "model_data: ../../etc"))
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("make", "reason"), [
    (pickled, "it is pickled, and unpickling runs whatever code its author put in; --trust p"),
    (with_installed_pickle_module, "it is pickled, .* --trust pickle "),
    (with_evil_pickle_module, "it brings Python files of its own, .* --trust code "),
    (with_evil_state, "it is pickled, .* --trust pickle "),
    (with_evil_archive, "it is pickled, .* --trust pickle "),
    (pickled_pyfunc, "expected a PyTorch model, but it has only .*python_function.* --trust"),
    (elsewhere, "its MLmodel names a place outside the model"),
])
@pytest.mark.parametrize("allowed", ["", "true"])
def test_what_would_run_its_authors_code_is_refused_before_it_does(
    make, reason, allowed, tmp_path, monkeypatch
):
    """Whatever MLflow's own variable says: it may be set for another tool."""
    monkeypatch.setenv(ALLOW_PICKLE, allowed)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    uri = make(tmp_path / "model").as_uri()
    path = list(sys.path)
    with pytest.raises(ValueError, match=f"^model URI {uri}: cannot be loaded: {reason}") as error:
        load_exported(uri)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "hit").exists()
    assert (sys.path, os.environ[ALLOW_PICKLE]) == (path, allowed)


def test_what_is_trusted_is_loaded(tmp_path, monkeypatch):
    monkeypatch.delenv(ALLOW_PICKLE, raising=False)
    uri = pickled(tmp_path / "model").as_uri()
    assert isinstance(load_exported(uri, pickle=True), nn.Sequential)
    assert ALLOW_PICKLE not in os.environ


def test_every_torch_load_of_the_package_reads_weights_alone():
    """And nothing else of it unpickles."""
    package = Path(models.__file__).parents[1]
    for file in package.rglob("*.py"):
        text = file.read_text()
        assert "allow_pickle=True" not in text and not re.search(r"\bpickle\.loads?\(", text), file
        for call in re.findall(r"torch\.load\(.*", text):
            assert call.endswith("weights_only=True)"), (file, call)


def test_tensors_come_back_as_they_were(tmp_path):
    torch.manual_seed(0)
    weight = torch.rand(4, 3)
    tensors = {"weight": nn.Parameter(weight), "tied": weight, "transposed": weight.T,
               "half": weight.half(), "count": torch.tensor(5), "flags": weight > 0.5,
               "stream": torch.get_rng_state(), "empty": torch.empty(0, 2)}
    write_tensors(tensors, tmp_path / "t.safetensors")
    read = models.read_tensors(tmp_path / "t.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor.detach())


REFUSED = [
    (lambda layer, x: layer(x) if x.sum() > 0 else -layer(x),
     "model: torch.export cannot save it as pt2: Could not guard on data-dependent"),
    (lambda layer, x: layer(x) + x.reshape(4, 3).sum(),
     "model: expected one that takes batches of any size, but as exported it does not"),
    (lambda layer, x: (layer(x), x), "model: expected one tensor as its output, but got tuple"),
    (lambda layer, x: layer(x).sum(),
     r"model: expected an output of 4 rows for 4 samples, but got one of shape \(\)"),
    (lambda layer, x: layer(x).squeeze(),
     r"model: expected an output of 1 rows for 1 samples, but got one of shape \(\)"),
    (lambda layer, x: layer(x) if torch.compiler.is_compiling() else -layer(x),
     "model: torch.export makes something of it that computes another result"),
    (lambda layer, x: layer(x[:, :2]), "model: cannot be copied and run on the CPU: mat1 and mat2"),
]


@pytest.mark.parametrize(("compute", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_a_model_that_cannot_be_saved_is_one_line_and_failed(run, compute, message, capfd):
    capfd.readouterr()
    with pytest.raises(models.NotExportable, match=f"^{message}") as caught:
        log(run, Computing(compute), torch.rand(9, 3))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert capfd.readouterr() == ("", "")
    store, run_id = run
    assert only_model(run).status == "FAILED"
    assert store.client.get_run(run_id).outputs.model_outputs == []


@pytest.mark.parametrize(("model", "inputs", "message"), [
    (mlp(3, 2), torch.rand(0, 3), "^inputs: expected at least one sample, but got none"),
    (mlp(3, 2).bfloat16(), rows(5, 3).bfloat16(), "bfloat16"),
    (nn.Bilinear(2, 2, 1), (rows(9, 2), rows(9, 2)), "^model: MLflow serves models of one input "
                                                     "tensor, but this one takes a tuple$")])
def test_inputs_that_no_example_can_be_made_of(run, model, inputs, message):
    with pytest.raises(ValueError, match="^model: expected a torch.nn.Module that runs in Python"):
        log(run, torch.jit.ScriptModule(), rows(9, 3))  # before anything is logged
    with pytest.raises(ValueError, match=message):
        log(run, model, inputs)
    assert only_model(run).status == "FAILED"


@pytest.mark.parametrize(("stop", "within"), [(KeyboardInterrupt, "upload"), (OSError, "file")])
def test_a_model_that_is_not_all_there_is_failed(run, monkeypatch, stop, within):
    """A full disk is no fault of the model."""
    def stops(*_):
        raise stop

    if within == "upload":
        monkeypatch.setattr(MlflowClient, "log_model_artifacts", stops)
    with pytest.raises(stop):
        log(run, mlp(3, 2), rows(9, 3), files={"a": stops if within == "file" else "text"})
    assert only_model(run).status == "FAILED"
