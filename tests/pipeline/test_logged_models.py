"""``wua analyze --model-uri``: models that others logged, and those of our own runs."""

from __future__ import annotations

import json
import shutil
import warnings

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.models import get_model_info, infer_signature
from mlflow.tracking import MlflowClient
from sklearn.linear_model import LogisticRegression
from torch import nn

import wua_mlflow as wua
from tests.pipeline.slimming_cases import folder_with_store
from wua_mlflow.cli.main import main
from wua_mlflow.config import load_settings
from wua_mlflow.data.datasets import load_data
from wua_mlflow.pipeline import analyze, workflow
from wua_mlflow.tracking.runs import runs
from wua_mlflow.tracking.store import connect

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*Any type hint", "ignore:.*LeafSpec:FutureWarning")
COLUMNS = ["a", "b", "c"]
DATA = ("--data", "rows.csv", "--target", "y", "--null-draws", "0")


def table(seed: int) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    rows = pd.DataFrame(draw.normal(3, 2, (200, 3)), columns=COLUMNS)
    return rows.assign(y=np.where(rows["a"] > 3, "yes", "no"))


@pytest.fixture(scope="module")
def made(tmp_path_factory, migrated_database):
    """A folder with a store: URIs of a graph, a pickled module and a model that is none of
    PyTorch's, each registered; the network; a variant's run and the URI of its model."""
    folder = tmp_path_factory.mktemp("logged")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    example = table(0)[COLUMNS].to_numpy(np.float32)
    table(0).to_csv(folder / "own.csv", index=False)
    with folder_with_store(folder, migrated_database), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's advice on logging models
        with mlflow.start_run():
            for name, form in (("graph", "pt2"), ("pickled", "pickle")):
                mlflow.pytorch.log_model(
                    net, name=name, input_example=example[:3], serialization_format=form,
                    pip_requirements=["torch"], registered_model_name=name)
            mlflow.pytorch.log_model(
                net, name="one_row", input_example=example[:1], serialization_format="pt2",
                pip_requirements=["torch"], registered_model_name="one_row")
            mlflow.sklearn.log_model(
                LogisticRegression().fit(table(0)[COLUMNS], table(0)["y"]), name="other",
                signature=infer_signature(table(0)[COLUMNS]), pip_requirements=[],
                serialization_format="cloudpickle", registered_model_name="other")
        run_id = workflow.train_run(connect("ours"), load_settings(None, {
            "data": str(folder / "own.csv"), "target": "y", "hidden": 4, "epochs": 1,
            "seeds": 1})).run_id
        (output,) = MlflowClient().get_run(run_id).outputs.model_outputs
    return folder, net, run_id, f"models:/{output.model_id}"


@pytest.fixture
def store(made, store_uri, tmp_path, monkeypatch):
    monkeypatch.setattr(analyze, "fidelity_metrics", lambda *_: ({}, ""))
    shutil.copy(made[0] / "mlflow.db", tmp_path / "mlflow.db")
    table(1).to_csv("rows.csv", index=False)
    return MlflowClient()


def analyzed(*words: str):
    """The newest variant's run after the command."""
    assert main(["analyze", *words]) == 0
    return MlflowClient().get_run(runs(limit=1)["run_id"].iloc[0])


def logged_metrics(client: MlflowClient, uri: str) -> dict[str, float]:
    model_id = get_model_info(uri).model_id
    return {each.key: each.value for each in client.get_logged_model(model_id).metrics}


def test_a_graph_has_the_usage_of_its_module_on_rows_as_they_are(store, made, capsys):
    """Both the run's and the LoggedModel's; the run names the model as its input."""
    run = analyzed("--model-uri", "models:/graph/1", *DATA)
    rows = load_data("rows.csv", target="y", seed=42, standardise=False).train.inputs
    usage = wua.analyze(made[1], rows)
    assert run.data.metrics["usage/effective_weights"] == pytest.approx(usage.effective_weights)
    assert run.data.metrics["flops/forward"] == 2 * (3 * 5 + 5 * 2)
    assert run.data.metrics["params/total"] == 3 * 5 + 5 + 5 * 2 + 2
    assert logged_metrics(store, "models:/graph/1") == pytest.approx(run.data.metrics)
    model_id = get_model_info("models:/graph/1").model_id
    assert [each.model_id for each in run.inputs.model_inputs] == [model_id]
    (rows,) = run.inputs.dataset_inputs
    of_rows = {each.key for each in store.get_logged_model(model_id).metrics
               if (each.dataset_name, each.dataset_digest) == (
                   rows.dataset.name, rows.dataset.digest)}
    assert of_rows >= {"usage/entropy", "params/analyzed"} and "params/total" not in of_rows
    assert run.info.run_name == "models:/graph/1"
    assert {name: run.data.params[name] for name in ("run_id", "target")} == {
        "run_id": "models:/graph/1", "target": "y"}
    assert not {"model", "state", "hidden"} & set(run.data.params)
    layers = json.loads(mlflow.artifacts.load_text(
        f"{run.info.artifact_uri}/usage/layers.json"))
    assert [row[0] for row in layers["data"]] == ["0"]
    assert "models:/graph/1" in capsys.readouterr().out


@pytest.mark.slow
def test_its_layers_criteria_and_data_are_said_as_of_any_model(store, made, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "their_batches.py").write_text(
        "import torch\ndef batches(seed):\n    torch.manual_seed(seed)\n"
        "    return [{'x': torch.rand(8, 3)} for _ in range(3)]\n")
    run = analyzed("--model-uri", "models:/graph/1", "--data", "their_batches:batches",
                   "--layers", "0,2", "--criterion", "wanda", "--null-draws", "0")
    torch.manual_seed(42)
    rows = torch.cat([torch.rand(8, 3) for _ in range(3)])
    usage = wua.analyze(made[1], rows, criterion="wanda", layers=["0", "2"])
    assert run.data.metrics["usage/entropy"] == pytest.approx(usage.entropy)


@pytest.mark.slow
def test_a_pickled_one_where_that_is_trusted(store, capsys):
    words = ["analyze", "--model-uri", "models:/pickled/1", *DATA]
    assert main(words) == 1
    assert capsys.readouterr().err == (
        "wua: model URI models:/pickled/1: cannot be loaded: it is pickled, and unpickling runs "
        "whatever code its author put in; --trust pickle loads it all the same\n")
    assert runs().empty or "models:/pickled/1" not in set(runs()["name"])
    assert main([*words, "--trust", "pickle"]) == 0


def test_one_of_ours_is_its_variants_network(store, made, capsys):
    """Without data it adds to that run; beside a file, whose rows become what it takes, it does
    not."""
    _, _, run_id, uri = made
    before = logged_metrics(store, uri)
    assert main(["analyze", "--model-uri", uri, "--null-draws", "0"]) == 0
    own = store.get_run(run_id).data.metrics
    assert own["layers/fc1/units"] == 4
    assert logged_metrics(store, uri) == pytest.approx(
        {**before, **{key: own[key] for key in own if key.startswith(("usage/", "layers/"))},
         "params/analyzed": own["params/analyzed"]})
    run = analyzed("--model-uri", uri, *DATA)
    assert run.info.run_id != run_id
    assert run.data.metrics["layers/fc1/units"] == 4
    assert run.data.metrics["usage/entropy"] != own["usage/entropy"]
    assert store.get_run(run_id).data.metrics == own
    assert main(["analyze", "--model-uri", uri, "--data", "wine"]) == 1
    assert "expected a file" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "line"), [
    (["models:/graph/1"], "data: expected the data that models:/graph/1 is analysed on (--data), "
     "as no run of wua logged it, but got none"),
    (["models:/graph/1", "--data", "wine"],
     "data: models:/graph/1 does not take the inputs of wine: "),
    (["models:/graph/1", *DATA, "--hidden", "3"],
     "run_id: a logged model is analysed as it is, so expected nothing like hidden beside "
     "models:/graph/1"),
    (["models:/other/1", *DATA], "run_id: expected a PyTorch model, whose weights can be "
     "analysed, but models:/other/1 is one of MLflow's flavour sklearn; its answers can be "
     "compared: wua compare A B"),
    (["models:/one_row/1", *DATA], "model: expected one that takes batches of any size, but "
     "models:/one_row/1 takes 1 row at a time"),
    (["models:/none/1", *DATA], "run_id: expected a model's URI, such as models:/name/1, but "
     "models:/none/1 cannot be had: "),
])
def test_what_cannot_be_is_one_line_and_makes_no_run(store, capsys, words, line):
    before = len(runs())
    capsys.readouterr()
    assert main(["analyze", "--model-uri", *words]) in (1, 2)
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith(f"wua: {line}")
    assert printed.out == ""
    assert len(runs()) == before
